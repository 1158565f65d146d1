"""``litereplica status``: where a cluster stands, once or again and again.

Knows how the status of one node is shown to a person (several: cluster_view). Does not know how it came about.
"""

import sys
import time
from typing import Any, Final

import click

from litereplica.cli.cluster_view import (
    cluster_lines,
    damage_lines,
    halt_lines,
    lag_text,
    lock_lines,
    nodes_of,
    status_of,
)
from litereplica.cli.options import Options, command, node_url, print_json
from litereplica.cli.table import cell, paint, table
from litereplica.errors import LitereplicaError, Misconfigured

WATCH_INTERVAL_S: Final = 1.0
# A node gives the others 2 s.
WATCH_ANSWER_LIMIT_S: Final = 5.0

_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_CLEAR_SCREEN: Final = "\x1b[2J"
_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"


@command("status", short_help="The whole cluster: roles, positions, lag.")
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
def status(options: Options, watch: bool) -> None:
    """Show every node of the cluster and its databases; of a node that is alone, also its replicas.

    Any node may be asked. One that does not answer is listed as such.
    """
    from litereplica.cli.client import get  # noqa: PLC0415 - only when it is about to be used

    if watch and options.json:
        raise Misconfigured("--watch is for people, --json for programs: leave one out")
    url = node_url(options)
    if watch:
        _watch(url)
    elif options.json:
        print_json(get(url, "/cluster"))
    else:
        click.echo("\n".join(shown_lines(get(url, "/cluster"))))


def shown_lines(document: dict[str, Any]) -> list[str]:
    """Lines that show a cluster document: of its one node, or of all of them and what only the primary knows of."""
    nodes = nodes_of(document)
    if len(nodes) == 1:
        return status_lines(status_of(nodes[0]))
    names = {each.get("name") for each in nodes}
    # Without a lease that knows its members a primary still knows who replicates from it.
    replicas = [
        each for node in nodes for each in status_of(node).get("replicas") or [] if each.get("name") not in names
    ]
    lines = cluster_lines(document)
    return [*lines, "", *_replicas(replicas)] if replicas else lines


def status_lines(document: dict[str, Any]) -> list[str]:
    """Lines that show a status document: the node, its databases, its replicas."""
    ready = bool(document.get("ready"))
    node = [
        ("node", document.get("node")),
        ("role", document.get("role")),
        ("primary", document.get("primary")),
        ("epoch", document.get("epoch")),
    ]
    lines = [f"{name:<9}{'-' if value is None else value}" for name, value in node]
    why = f"  {document['reason']}" if document.get("reason") else ""
    lines.append(f"{'ready':<9}" + (paint("yes", "green") if ready else paint("no", "red")) + why)
    lines += [*_writes(document), *lock_lines(document), "", *_databases(document.get("databases") or [])]
    replicas = document.get("replicas") or []
    return [*lines, "", *_replicas(replicas)] if replicas else lines


def _writes(document: dict[str, Any]) -> list[str]:
    """On a replica: what became of its applications' transactions."""
    writes = document.get("writes")
    if document.get("role") != "replica" or not isinstance(writes, dict):
        return []
    counts = {name: count for name, count in (writes.get("forwarded") or {}).items() if count}
    figures = ", ".join(f"{count} {cell(name)}" for name, count in counts.items())
    return [f"{'writes':<9}{cell(writes.get('on_replica'))}" + (f" ({figures})" if figures else "")]


def _databases(databases: list[dict[str, Any]]) -> list[str]:
    rows = [
        (
            database.get("name"),
            database.get("txid"),
            database.get("checksum"),
            database.get("journal_mode"),
            database.get("pages"),
            lag_text(database.get("lag_ms")),
        )
        for database in databases
    ]
    headers = ("DATABASE", "TXID", "CHECKSUM", "JOURNAL MODE", "PAGES", "LAG")
    below = [*damage_lines(databases), *halt_lines(databases)]
    return [*table(headers, rows), *below] or ["no databases yet: create one in the mount"]


def _replicas(replicas: list[dict[str, Any]]) -> list[str]:
    rows: list[tuple[object, ...]] = []
    for replica in replicas:
        head = (replica.get("name"), bool(replica.get("connected")))
        lag = lag_text(replica.get("lag_ms"))
        positions = replica.get("databases") or {}
        rows += [(*head, name, at.get("logged"), at.get("applied"), lag) for name, at in sorted(positions.items())]
        if not positions:
            rows.append((*head, None, None, None, lag))
    return table(("REPLICA", "CONNECTED", "DATABASE", "LOGGED", "APPLIED", "LAG"), rows)


def _watch(url: str) -> None:
    """Redraw in place; a node that does not answer is shown as such, and asked again."""
    terminal = sys.stdout.isatty()
    try:
        if terminal:
            click.echo(_HIDE_CURSOR + _CLEAR_SCREEN, nl=False)
        while True:
            lines = [f"{url}  {time.strftime('%H:%M:%S')}", "", *_lines_or_error(url)]
            if terminal:
                click.echo(_HOME + "\n".join(line + _CLEAR_LINE for line in lines) + "\n" + _CLEAR_BELOW, nl=False)
            else:
                click.echo("\n".join(lines) + "\n")
            time.sleep(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        return  # the way to end it, not an error
    finally:
        if terminal:
            click.echo(_SHOW_CURSOR, nl=False)


def _lines_or_error(url: str) -> list[str]:
    from litereplica.cli.client import get  # noqa: PLC0415 - only when it is about to be used

    try:
        return shown_lines(get(url, "/cluster", answer_timeout_s=WATCH_ANSWER_LIMIT_S))
    except Misconfigured:
        raise
    except LitereplicaError as error:
        return [paint(error.message, "red")]
