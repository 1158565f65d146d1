"""What must hold when a run is over and every fault is healed, whatever happened.

Every node can be looked at and has the same databases, byte for byte; SQLite finds them sound; the bytes have the
rolling checksum that the node's position names; and every acknowledged write is in the cluster, or (with asynchronous
replication only) kept in ``diverged/``. Nothing that certainly failed is there.
"""

from collections.abc import Sequence

from jepsen.checkers.result import Findings, Result, of_process
from jepsen.description import Replication
from jepsen.ending import DatabaseEnd, Ending, NodeEnd
from jepsen.history import Call

NAME = "final-state"


def check(
    calls: Sequence[Call], ending: Ending, *, nodes: Sequence[str] = (), replication: Replication = "async"
) -> Result:
    """``nodes``: the names of all that took part; those that the ending says nothing of are missing."""
    findings = Findings()
    there = {each.node: each for each in ending.nodes}
    for name in nodes:
        if name not in there:
            findings.add("not-examined", f"{name} took part, and nothing was found out about it")
    for each in ending.nodes:
        if each.problem:
            findings.add("not-examined", f"{each.node}: {each.problem}")
        for database in each.databases:
            _sound(each.node, database, findings)
    whole = [each for each in ending.nodes if not each.problem]
    _equal(whole, findings)
    writes = [call for call in calls if call.writes]
    counts = {
        "nodes": len(whole),
        "databases": len({database.name for each in whole for database in each.databases}),
        "diverged-entries": sum(len(each.diverged) for each in ending.nodes),
        "writes": len(writes),
        "acknowledged": sum(call.ok for call in writes),
    }
    unknown = "" if whole else "no node was looked at"
    if ending.present is not None:
        counts |= _writes(writes, ending, ending.present, replication, findings)
        for index in sorted((ending.kept | frozenset(ending.present)) - {call.index for call in calls}):
            findings.add("from-nowhere", f"there is a row of operation {index}, which is no call")
    return findings.result(NAME, counts, unknown)


def _sound(node: str, database: DatabaseEnd, findings: Findings) -> None:
    name = f"{database.name} on {node}"
    if database.integrity != ("ok",):
        findings.add("integrity", f"{name}: {'; '.join(database.integrity[:5]) or 'no answer'}")
    if database.computed != database.checksum:
        findings.add(
            "checksum",
            f"{name}: its bytes have the checksum {database.computed}, its position says {database.checksum}",
        )


def _equal(nodes: Sequence[NodeEnd], findings: Findings) -> None:
    names = sorted({database.name for each in nodes for database in each.databases})
    by_node = {each.node: {database.name: database for database in each.databases} for each in nodes}
    for name in names:
        missing = [node for node, databases in by_node.items() if name not in databases]
        if missing:
            findings.add("missing-database", f"{name} is not on {', '.join(missing)}")
        ends = {node: databases[name] for node, databases in by_node.items() if name in databases}
        for kind, what, values in (
            ("positions-differ", "at", {node: f"{end.txid:016x}/{end.checksum}" for node, end in ends.items()}),
            ("bytes-differ", "with bytes", {node: f"{end.digest} ({end.size_bytes})" for node, end in ends.items()}),
        ):
            if len(set(values.values())) > 1:
                said = ", ".join(f"on {node} {what} {value}" for node, value in values.items())
                findings.add(kind, f"{name} is {said}")


def _writes(
    writes: Sequence[Call], ending: Ending, present: Sequence[int], replication: Replication, findings: Findings
) -> dict[str, int]:
    there = frozenset(present)
    kept = ending.kept
    listed = recovered = 0
    for call in writes:
        who = f"{of_process(call)} on {call.node or 'some node'}"
        if call.index in there:
            recovered += call.indeterminate
            if call.failed:
                findings.add("failed-present", f"{who} failed, and what it wrote is there", call)
        elif call.failed and call.index in kept:
            findings.add("failed-present", f"{who} failed, and what it wrote is in diverged/", call)
        elif call.ok and call.index not in kept:
            findings.add("lost", f"{who} was acknowledged, and what it wrote is nowhere", call)
        elif call.ok:
            listed += 1
            if replication == "sync":
                text = f"{who} was acknowledged, and is only in diverged/, where synchronous replication loses nothing"
                findings.add("lost-in-sync-mode", text, call)
    return {"lost-and-listed": listed, "recovered": recovered}
