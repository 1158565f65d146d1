"""Whether the settings of the HTTP proxy fit together, and with the rest.

Knows what makes a cookie, a path and a pattern. Pure: looks at values only.
"""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, urlsplit

from litereplica.config.proxy import ProxySettings, compile_pattern
from litereplica.config.settings import Settings

Complaint = tuple[tuple[str, ...], str]

# RFC 6265, 4.1.1: a token.
_COOKIE_NAME: Final = re.compile(r"[\w!#$%&'*+.^`|~-]{1,64}", re.ASCII)
# Browsers keep cookies of up to 4096 bytes, name and attributes included; each database has its name and 34 bytes.
LONGEST_COOKIE_BYTES: Final = 3800
POSITION_BYTES: Final = 35
# An application answers its login page in less; a person has gone after more.
LONGEST_WAIT_S: Final = 60.0


def check_proxy(settings: Settings) -> Iterator[Complaint]:
    """Yield the key at fault and the complaint, for everything that does not fit."""
    proxy = settings.proxy
    yield from _check_addresses(settings)
    yield from _check_databases(proxy)
    yield from _check_paths(proxy)
    yield from _check_times(proxy)
    if not _COOKIE_NAME.fullmatch(proxy.cookie):
        yield ("proxy", "cookie"), f"'proxy.cookie' must be a word of letters, digits and '-_.', found {proxy.cookie!r}"


def _check_addresses(settings: Settings) -> Iterator[Complaint]:
    proxy = settings.proxy
    listen = proxy.listen
    assert listen is not None
    if listen.host == "*":
        yield ("proxy", "listen"), f"'proxy.listen': write 0.0.0.0:{listen.port} to listen on every address"
    for key, other in (("http", settings.http.listen), ("replication", settings.replication.listen)):
        same_host = listen.host == other.host or listen.is_any or other.is_any
        if listen.port and listen.port == other.port and same_host:
            message = f"'proxy.listen' and '{key}.listen' must have different ports, both have {listen.port}"
            yield ("proxy", "listen"), message
    target = urlsplit(proxy.target)
    if target.username is not None or target.password is not None:
        yield ("proxy", "target"), "'proxy.target' must not hold a user: the client's own Authorization is passed on"
    if listen.port and target.port == listen.port and (target.hostname == listen.host or listen.is_any):
        message = f"'proxy.target' is the proxy itself ({listen}): it must be where the application listens"
        yield ("proxy", "target"), message
    if _needs_address(settings) and proxy.advertised is None:
        message = (
            f"'proxy.listen' is {listen}, and the other nodes' proxies need an address when this node is primary: set "
            f"'proxy.advertise' to the URL by which they reach it, such as http://10.0.0.1:{listen.port or 8080}"
        )
        yield ("proxy", "listen"), message


def _needs_address(settings: Settings) -> bool:
    """Whether others may have to send their writes here."""
    if settings.proxy.writes not in {"forward", "redirect"}:
        return False
    if settings.lease.type == "consul":
        return settings.node.candidate
    primary = settings.lease.static.primary
    return settings.lease.type == "static" and primary is not None and primary.name == settings.node.name


def _check_databases(proxy: ProxySettings) -> Iterator[Complaint]:
    here = ("proxy", "databases")
    if not proxy.databases:
        message = (
            "'proxy.databases' is missing: name the databases (paths below the mount, such as app.db) in which a "
            "client must see what it wrote before"
        )
        yield here, message
    for name in proxy.databases:
        if not name or name.startswith("/") or name.endswith("/") or any(p in {"", ".", ".."} for p in name.split("/")):
            yield here, f"'proxy.databases': expected a path below the mount, such as app.db, found {name!r}"
    if len(set(proxy.databases)) != len(proxy.databases):
        yield here, "'proxy.databases' names a database twice"
    size = sum(len(quote(name, safe="")) + POSITION_BYTES for name in proxy.databases)
    if size > LONGEST_COOKIE_BYTES:
        message = (
            f"'proxy.databases' makes a cookie of {size} bytes, and browsers keep {LONGEST_COOKIE_BYTES}: name fewer"
        )
        yield here, message


def _check_paths(proxy: ProxySettings) -> Iterator[Complaint]:
    for key in ("passthrough", "always_forward", "read_only"):
        for pattern in getattr(proxy.rules, key):
            try:
                compile_pattern(pattern)
            except ValueError as error:
                yield ("proxy", "rules", key), f"'proxy.rules.{key}': {error}"
    if proxy.health != "off" and not re.fullmatch(r"(/[\w.~-]+)+", proxy.health, re.ASCII):
        message = f"'proxy.health' must be a path such as /litereplica/health, or off, found {proxy.health!r}"
        yield ("proxy", "health"), message


def _check_times(proxy: ProxySettings) -> Iterator[Complaint]:
    for key in ("connect", "response", "idle"):
        if getattr(proxy.timeouts, f"{key}_s") <= 0:
            yield ("proxy", "timeouts", key), f"'proxy.timeouts.{key}' must be more than 0"
    if proxy.wait_s > LONGEST_WAIT_S:
        yield ("proxy", "wait"), "'proxy.wait' must be at most 1m: a client does not wait longer for a page"
    if 0 < proxy.cookie_age_s < 1:
        yield ("proxy", "cookie_age"), "'proxy.cookie_age' must be at least 1s, or 0 for as long as the browser runs"
