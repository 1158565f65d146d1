"""Whether transactions are whole in every journal mode, and nothing is lost when modes are switched.

Calls: those of databases.py; a read also answers ``"whole"``, the elements of which every part was there, and
``"parts"``, of how many elements any part was there. ``switch`` of ``{"database", "mode"}`` answers the mode that it
is now.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from jepsen.checkers.databases import by_database, check_sets
from jepsen.checkers.result import Findings, Result, of_process
from jepsen.history import Call, Malformed, entry_of, number

NAME: Final = "journal"
MODES: Final = frozenset({"delete", "truncate", "persist", "wal"})


def check(calls: Sequence[Call], *, lost: Iterable[int] = (), stale_reads: bool = False) -> Result:
    """Raises Malformed where calls are not of this kind."""
    findings = Findings()
    counts, unknown = check_sets(calls, findings, lost=lost, stale_reads=stale_reads)
    for reads in by_database(calls, "read").values():
        for read in reads:
            if read.ok:
                _whole(read, findings)
    switched = 0
    for name, switches in by_database(calls, "switch").items():
        for call in switches:
            if call.ok and call.completion is not None:
                switched += entry_of(call.completion, "mode") == entry_of(call.invocation, "mode")
                if (mode := entry_of(call.completion, "mode")) not in MODES:
                    findings.add("wrong-mode", f"{of_process(call)}: {name} is in mode {mode}", call)
    counts["switched"] = switched
    return findings.result(NAME, counts, "; ".join(unknown[:5]))


def _whole(read: Call, findings: Findings) -> None:
    """Every element of the set has all its parts, and there are no parts of others."""
    assert read.completion is not None
    elements, whole = entry_of(read.completion, "elements"), entry_of(read.completion, "whole")
    parts = number(entry_of(read.completion, "parts"), read.completion)
    if not isinstance(elements, list) or not isinstance(whole, list):
        raise Malformed(f"operation {read.completion.index}: elements are lists")
    torn = sorted(set(elements) ^ set(whole))
    if torn or parts != len(elements):
        text = (
            f"{of_process(read)} found {len(elements)} elements on {read.node or 'some node'}, {len(whole)} with all "
            f"their parts, and parts of {parts}; not in both: {', '.join(map(str, torn[:10])) or 'none'}"
        )
        findings.add("torn", text, read)
