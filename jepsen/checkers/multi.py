"""Whether many databases are so many sets, which have nothing to do with each other, and none is missing.

Calls: those of databases.py, and ``create`` of ``{"database"}``. What was created and acknowledged is found by every
read of it that began later, and that did not wait for a replica to catch up.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from jepsen.checkers.databases import by_database, check_sets
from jepsen.checkers.result import Findings, Result
from jepsen.history import Call, Malformed

NAME: Final = "multi"


def check(calls: Sequence[Call], *, lost: Iterable[int] = (), stale_reads: bool = False) -> Result:
    """Raises Malformed where calls are not of this kind."""
    findings = Findings()
    excused = frozenset(lost)
    created = by_database(calls, "create")
    gone = {name for name, makings in created.items() if makings[0].index in excused}
    counts, unknown = check_sets(calls, findings, lost=lost, stale_reads=stale_reads, gone=gone)
    reads = by_database(calls, "read")
    for name, makings in created.items():
        if len(makings) > 1:
            raise Malformed(f"operation {makings[1].index}: {name} was created before, by T{makings[0].index}")
        making = makings[0]
        if not making.ok or making.index in excused:
            continue
        tried = [read for read in reads.get(name, ()) if making.before(read)]
        if tried and not any(read.ok for read in tried):
            text = f"{name} was acknowledged to T{making.index}, and none of {len(tried)} reads found it"
            findings.add("missing-database", text, making, tried[-1])
    counts["created"] = sum(each[0].ok for each in created.values())
    return findings.result(NAME, counts, "; ".join(unknown[:5]))
