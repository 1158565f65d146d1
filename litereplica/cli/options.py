"""The options that every command understands, before its name or after it.

Knows where a command finds its configuration and its node. Imports nothing slow: it is loaded for every command.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:  # what reads a configuration is slow to import, and `litereplica version` does not need it
    from litereplica.config import Address, Settings

URL_VARIABLE: Final = "LITEREPLICA_URL"
DEFAULT_URL: Final = "http://127.0.0.1:20202"


@dataclass(frozen=True, slots=True)
class Options:
    """What was said around the command. ``json`` wants one JSON document on stdout and nothing else there."""

    config: Path | None = None
    url: str | None = None
    json: bool = False
    debug: bool = False


def load(options: Options) -> "Settings":
    """Return the settings in force. Raises Misconfigured."""
    from litereplica.config import load_settings  # noqa: PLC0415 - see above

    return load_settings(options.config, os.environ)


def node_url(options: Options) -> str:
    """URL of the node to ask: --url, else $LITEREPLICA_URL, else the configuration's, else the default.

    Raises Misconfigured when it comes to the configuration, and that is wrong.
    """
    url = options.url or os.environ.get(URL_VARIABLE)
    if not url:
        url = f"http://{_near(load(options).http.listen)}"
    return url.rstrip("/") if "://" in url else f"http://{url}".rstrip("/")


def _near(listen: "Address") -> "Address":
    """Where a process of the same machine reaches a listening address."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
    return dataclasses.replace(listen, host=loopback.get(listen.host, listen.host))


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


_SHARED: Final = (
    click.Option(
        ["-c", "--config"], type=click.Path(path_type=Path), metavar="FILE", help="Configuration file; see docs."
    ),
    click.Option(["--url"], metavar="URL", help=f"The node to ask; default: the configuration's, else {DEFAULT_URL}."),
    click.Option(["--json"], is_flag=True, help="Print one JSON document and nothing else."),
    click.Option(["--debug"], is_flag=True, help="Show a traceback with an error."),
)


class SharedOptions(click.Command):
    """A command that takes the shared options too, hidden from its help, and passes Options on as the context's obj."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for parameter in self.params for name in parameter.opts}
        for shared in _SHARED:
            if taken.isdisjoint(shared.opts):
                self.params.append(_copy(shared, hidden=not isinstance(self, click.Group)))


def _copy(shared: click.Option, *, hidden: bool) -> click.Option:
    return click.Option(
        [*shared.opts],
        type=shared.type,
        is_flag=shared.is_flag,
        metavar=shared.metavar,
        help=shared.help,
        hidden=hidden,
        expose_value=False,
        callback=_remember,
    )


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    options = context.obj if isinstance(context.obj, Options) else Options()
    if value:
        options = dataclasses.replace(options, **{str(parameter.name): value})
    context.obj = options


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command with the shared options; its first parameter is Options."""

    def make(function: Callable[..., Any]) -> click.Command:
        return click.command(name, cls=SharedOptions, **attributes)(click.pass_obj(function))

    return make
