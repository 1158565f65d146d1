"""``litereplica history``: the primaries of the past.

Knows how they are shown to a person. Does not know where they are kept.
"""

from datetime import UTC, datetime
from typing import Any

import click

from litereplica.cli.options import Options, command, node_url, print_json
from litereplica.cli.table import table


@command("history", short_help="Who has been primary, since when, and why.")
def history(options: Options) -> None:
    """Show past and present primaries, the oldest first: epoch, node, since when, why, and from which positions."""
    from litereplica.cli.client import get  # noqa: PLC0415 - only when it is about to be used

    document = get(node_url(options), "/history")
    if options.json:
        print_json(document)
    else:
        click.echo("\n".join(history_lines(document)))


def history_lines(document: dict[str, Any]) -> list[str]:
    """Lines that show a history document."""
    reigns = document.get("history") or []
    rows = [
        (each.get("epoch"), each.get("node"), _when(each.get("timestamp_ms")), _first(each), each.get("reason"))
        for each in reigns
    ]
    return table(("EPOCH", "NODE", "SINCE", "FROM", "REASON"), rows) or ["no primary yet, or none by election"]


def _when(timestamp_ms: Any) -> str | None:
    """In UTC: nodes and people are in different places."""
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _first(reign: dict[str, Any]) -> str | None:
    """Where it began: the position of one database, and how many there are beside it."""
    positions = reign.get("positions") or {}
    if not positions:
        return None
    name, position = min(positions.items())
    more = f" and {len(positions) - 1} more" if len(positions) > 1 else ""
    return f"{name} {str(position).partition('/')[0]}{more}"
