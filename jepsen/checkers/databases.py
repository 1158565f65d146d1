"""Calls on several databases, each of which is a set: taken apart, and judged one by one.

Calls: ``add`` of ``{"database", "element"}``; ``read`` of ``{"database"}`` answers ``{"database", "elements"}``. The
anomalies are those of sets.py. An element of another database is one that nobody added here: unexpected.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from jepsen.checkers import sets
from jepsen.checkers.result import Findings
from jepsen.history import Call, Malformed, entry_of


def by_database(calls: Iterable[Call], *fs: str) -> dict[str, list[Call]]:
    """Those calls that are one of ``fs``; raises Malformed where one does not say which database it is about."""
    found: dict[str, list[Call]] = {}
    for call in calls:
        if call.f in fs:
            name = entry_of(call.invocation, "database")
            if not isinstance(name, str):
                raise Malformed(f"operation {call.index}: {name!r} is no database")
            if call.ok and call.completion is not None and entry_of(call.completion, "database") != name:
                raise Malformed(f"operation {call.completion.index} answers of another database than {name}")
            found.setdefault(name, []).append(call)
    return found


def check_sets(
    calls: Sequence[Call], findings: Findings, *, lost: Iterable[int], stale_reads: bool, gone: Collection[str] = ()
) -> tuple[Counter[str], list[str]]:
    """(counts, reasons why nobody can tell) of all databases together; anomalies go to ``findings``.

    ``gone``: made in a history that was lost. Nobody can read them; that nothing else of them is expected is seen here.
    """
    counts: Counter[str] = Counter()
    unknown: list[str] = []
    excused = frozenset(lost)
    databases = by_database(calls, "add", "read")
    for name in sorted(databases):
        result = sets.check([_as_of_a_set(call) for call in databases[name]], lost=excused, stale_reads=stale_reads)
        counts.update(findings.take(result, name))
        expected = any(call.ok and call.f == "add" and call.index not in excused for call in databases[name])
        if result.why and (expected or name not in gone):
            unknown.append(f"{name}: {result.why}")
    counts["databases"] = len(databases)
    if not databases:
        unknown.append("no database was used")
    return counts, unknown


def _as_of_a_set(call: Call) -> Call:
    inside = "element" if call.f == "add" else "elements"
    invocation = replace(call.invocation, value=entry_of(call.invocation, "element") if call.f == "add" else None)
    completion = call.completion
    if completion is not None:
        value = entry_of(completion, inside) if call.ok else invocation.value
        completion = replace(completion, value=value)
    return Call(invocation, completion)
