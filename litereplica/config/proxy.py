"""The settings of the HTTP proxy: its keys, their units and defaults, and how its path patterns are written.

Knows the notation of a pattern. Does not know requests (proxy.rules) or which settings fit together (check_proxy).
"""

import fnmatch
import re
from dataclasses import dataclass, field
from typing import Final, Literal

from litereplica.config.units import KEY, Address, HttpUrl, Seconds

DEFAULT_TARGET: Final = HttpUrl("http://127.0.0.1:8000")
REGEX_MARK: Final = "~"


def compile_pattern(text: str) -> "re.Pattern[str]":
    r"""A pattern to search a path for; raises ValueError that says what was expected.

    A glob for the whole path, in which ``*`` stands for anything, slashes too (``/static/*``, ``*.css``); or ``~`` and
    a regular expression that may be found anywhere (``~^/items/\d+/search$``).
    """
    if text.startswith(REGEX_MARK):
        try:
            return re.compile(text[1:])
        except re.error as error:
            raise ValueError(f"expected a regular expression after '~', found {text!r}: {error}") from None
    if not text.startswith(("/", "*", "?", "[")):
        raise ValueError(
            f"expected a path such as /search or /static/*, *.css, or ~ and a regular expression, found {text!r}"
        )
    return re.compile(r"\A" + fnmatch.translate(text))


@dataclass(frozen=True, slots=True)
class ProxyRules:
    """Paths that are not as their method says; the first that matches counts, in this order.

    ``passthrough``: to the application of this node at once, whatever it is. ``always_forward``: as a write, also GET.
    ``read_only``: as a read, also POST.
    """

    passthrough: tuple[str, ...] = ()
    always_forward: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProxyTimeouts:
    """How long each step may take.

    ``connect_s``: to the application or the primary's proxy. ``response_s``: from the end of a request to the first
    line of its answer. ``idle_s``: between two pieces of a body, either way. ``primary_s``: for a write while nobody
    is primary. ``stop_s``: for the requests that are under way at a stop.
    """

    connect_s: Seconds = field(default=Seconds(2.0), metadata={KEY: "connect"})
    response_s: Seconds = field(default=Seconds(60.0), metadata={KEY: "response"})
    idle_s: Seconds = field(default=Seconds(300.0), metadata={KEY: "idle"})
    primary_s: Seconds = field(default=Seconds(10.0), metadata={KEY: "primary"})
    stop_s: Seconds = field(default=Seconds(10.0), metadata={KEY: "stop"})


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The HTTP proxy in front of the application; there is one where ``listen`` is set.

    ``advertise``: the URL by which the other nodes' proxies reach this one. ``target``: the application.
    ``databases``: those whose position a client's cookie carries. ``writes``: what becomes of a write on a replica.
    ``wait_s``: how long a read waits until this node is where the cookie says, and ``behind`` what it gets then.
    """

    listen: Address | None = None
    advertise: HttpUrl | None = None
    target: HttpUrl = DEFAULT_TARGET
    databases: tuple[str, ...] = ()
    writes: Literal["forward", "redirect", "fly-replay", "local"] = "forward"
    wait_s: Seconds = field(default=Seconds(5.0), metadata={KEY: "wait"})
    behind: Literal["serve", "refuse"] = "serve"
    cookie: str = "litereplica"
    cookie_age_s: Seconds = field(default=Seconds(86400.0), metadata={KEY: "cookie_age"})
    health: str = "/litereplica/health"
    rules: ProxyRules = field(default_factory=ProxyRules)
    timeouts: ProxyTimeouts = field(default_factory=ProxyTimeouts)

    @property
    def advertised(self) -> HttpUrl | None:
        """The URL for other nodes: as configured, else of the address it listens on; None when that is not enough."""
        listen = self.listen
        if self.advertise is not None or listen is None or not listen.port or listen.is_any or listen.is_loopback:
            return self.advertise if listen is not None else None
        return HttpUrl(f"http://{listen}")
