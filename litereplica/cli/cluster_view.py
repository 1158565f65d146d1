"""The whole cluster, for a person: one table of its nodes, one of its databases.

Knows how a cluster document (``GET /cluster``) is shown. Does not know how it came about, or how one node alone is
shown (status).
"""

import time
from typing import Any, Final

from litereplica.cli.table import cell, paint, table

_SLOW_LAG_MS: Final = 10_000


def nodes_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a cluster document."""
    return [each for each in document.get("nodes") or [] if isinstance(each, dict)]


def status_of(node: dict[str, Any]) -> dict[str, Any]:
    """The status of one of them; empty when it did not answer."""
    found = node.get("status")
    return found if node.get("answers") and isinstance(found, dict) else {}


def total_of(status: dict[str, Any], key: str = "txid") -> int | None:
    """The sum of a node's TXIDs: how many transactions it has."""
    try:
        return sum(int(str(database[key]), 16) for database in status["databases"])
    except (KeyError, TypeError, ValueError):
        return None


def cluster_lines(document: dict[str, Any]) -> list[str]:
    """Lines that show a cluster of several nodes."""
    nodes = nodes_of(document)
    leading = next((status_of(each) for each in nodes if each.get("name") == document.get("primary")), {})
    lines = table(
        ("NODE", "ROLE", "EPOCH", "DATABASES", "TRANSACTIONS", "BEHIND", "LAG", "READY", ""),
        [_node(each, total_of(leading)) for each in nodes],
    )
    if document.get("primary") is None:
        lines.append(paint("no node accepts commits", "red"))
    for each in nodes:
        lines += _lease(status_of(each))
        lines += lock_lines(status_of(each))
    return [*lines, "", *_databases(nodes)]


def lag_text(milliseconds: Any) -> str | None:
    """Milliseconds, or seconds when they are many."""
    if not isinstance(milliseconds, int | float):
        return None
    return f"{milliseconds} ms" if milliseconds < _SLOW_LAG_MS else f"{milliseconds / 1000:.0f} s"


def damage_lines(databases: list[dict[str, Any]], where: str = "") -> list[str]:
    """A line for each database that has damaged pages."""
    return [
        paint(f"{each.get('name')} has damaged pages{where}: litereplica verify names them", "red")
        for each in databases
        if each.get("damaged")
    ]


def halt_lines(databases: list[dict[str, Any]]) -> list[str]:
    """A line for each database that a node has to itself, as its primary says."""
    found = [(each.get("name"), each.get("halt")) for each in databases]
    return [paint(_halt_line(name, halt), "yellow") for name, halt in found if isinstance(halt, dict)]


def _halt_line(database: Any, halt: dict[str, Any]) -> str:
    name, since = cell(database), _since(halt.get("since_ms"))
    if halt.get("kind") == "handoff":
        return f"{name} is held for a handoff{since}"
    has = "the write lease" if halt.get("kind") == "lease" else "the lock"
    waiting = f"; {halt['waiting']} waiting" if halt.get("waiting") else ""
    return f"{cell(halt.get('node'))} has {has} of {name}{since}{waiting}"


def lock_lines(status: dict[str, Any]) -> list[str]:
    """A line for each lock that an application of a node has lost and not closed: nothing is committed there."""
    writes = status.get("writes")
    locks = writes.get("locks") if isinstance(writes, dict) else None
    lost = [each for each in locks or [] if isinstance(each, dict) and each.get("state") == "lost"]
    return [paint(_lost_line(cell(status.get("node")), cell(each.get("database")), each), "red") for each in lost]


def _lost_line(node: str, name: str, lock: dict[str, Any]) -> str:
    return (
        f"{node} has lost the lock of {name} ({cell(lock.get('reason'))}) and commits nothing to it: end the process "
        f"that has {name}-halt open"
    )


def _since(milliseconds: Any) -> str:
    if not isinstance(milliseconds, int):
        return ""
    return f" since {time.strftime('%H:%M:%S', time.localtime(milliseconds / 1000))}"


def _node(node: dict[str, Any], most: int | None) -> tuple[object, ...]:
    name, found = node.get("name"), status_of(node)
    if not found:
        return name, None, None, None, None, None, None, False, f"no answer: {node.get('reason')}"
    total = total_of(found)
    behind = max(0, most - total) if most is not None and total is not None else None
    lags = [each.get("lag_ms") for each in found.get("databases") or []]
    known = [each for each in lags if isinstance(each, int | float)]
    lag = lag_text(max(known)) if known and len(known) == len(lags) else None
    count = len(found.get("databases") or [])
    ready = bool(found.get("ready"))
    return name, found.get("role"), found.get("epoch"), count, total, behind, lag, ready, found.get("reason") or ""


def _lease(status: dict[str, Any]) -> list[str]:
    """What is out of order with the lease, as one node sees it."""
    lease, name = status.get("lease"), status.get("node")
    if not isinstance(lease, dict):
        return []
    lines = []
    if lease.get("outage"):
        rest = lease.get("remaining_ms")
        left = f"; commits go on for {rest / 1000:.1f} s" if isinstance(rest, int | float) else ""
        lines.append(paint(f"{name}: the lease is out of reach ({lease['outage']}){left}", "yellow"))
    lines += [paint(f"{name}: in the way of a handoff: {each}", "yellow") for each in lease.get("unyielding") or []]
    return lines


def _databases(nodes: list[dict[str, Any]]) -> list[str]:
    rows: list[tuple[object, ...]] = []
    below: list[str] = []
    for node in nodes:
        databases = status_of(node).get("databases") or []
        below += damage_lines(databases, f" on {node.get('name')}") + halt_lines(databases)
        rows += [
            (
                database.get("name"),
                node.get("name"),
                database.get("txid"),
                database.get("checksum"),
                database.get("journal_mode"),
                database.get("pages"),
                lag_text(database.get("lag_ms")),
            )
            for database in databases
        ]
    rows.sort(key=lambda row: (str(row[0]), str(row[1])))
    headers = ("DATABASE", "NODE", "TXID", "CHECKSUM", "JOURNAL MODE", "PAGES", "LAG")
    return [*table(headers, rows), *below] or ["no databases yet: create one in the mount of the primary"]
