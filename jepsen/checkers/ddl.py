"""Whether every schema that was read is one that its changes make, and the rows go with it.

Calls: ``change`` of ``[what, name]``: add-column, drop-column, create-index, drop-index, create-table, drop-table;
``look`` answers, of one snapshot, ``{"changes": [[call, what, name], …], "column", "index", "table": [name, …], "rows",
"by-index": {name: rows}, "wrong"}``: ``changes`` in their order, each with the index of its call, what is there by the
schema, how many rows are found with and without each index, and how many have something in a column that they cannot
have. Elements (``add`` and ``read``) are judged by sets.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from jepsen.checkers.result import Findings, Result, of_process
from jepsen.history import Call, Malformed, entry_of, number

NAME: Final = "ddl"
KINDS: Final = ("column", "index", "table")
MAKING: Final = frozenset({"add-column", "create-index", "create-table"})


@dataclass(frozen=True, slots=True)
class _Change:
    """``call``: the index of its invocation."""

    call: int
    what: str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name} (T{self.call})"


@dataclass(frozen=True, slots=True)
class _Look:
    call: Call
    changes: tuple[_Change, ...]


def check(calls: Sequence[Call], *, lost: Iterable[int] = (), stale_reads: bool = False) -> Result:
    """``stale_reads``: a change that is missing is an anomaly only when no later look shows it. Raises Malformed."""
    findings = Findings()
    excused = frozenset(lost)
    changes = [call for call in calls if call.f == "change"]
    asked = {call.index: (_asked(call), call) for call in changes}
    looks = [_Look(call, _changes(call)) for call in calls if call.f == "look" and call.ok]
    for look in looks:
        _one(look, asked, findings)
    _order(looks, excused, findings)
    for change, call in asked.values():
        if call.ok and call.index not in excused:
            _kept(change, call, looks, findings, stale_reads=stale_reads)
    counts = {
        "looks": len(looks),
        "changes": len(changes),
        "acknowledged": sum(call.ok for call in changes),
        "indeterminate": sum(call.indeterminate for call in changes),
        "lost-and-listed": sum(call.index in excused for call in changes),
        "vacuums": sum(call.ok for call in calls if call.f == "vacuum"),
    }
    return findings.result(NAME, counts, "" if looks else "nobody looked")


def _asked(call: Call) -> _Change:
    value = call.invocation.value
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise Malformed(f"operation {call.index}: {value!r} is no change of a schema")
    return _Change(call.index, value[0], value[1])


def _changes(look: Call) -> tuple[_Change, ...]:
    assert look.completion is not None
    found = entry_of(look.completion, "changes")
    if not isinstance(found, list) or not all(isinstance(each, list | tuple) and len(each) == 3 for each in found):
        raise Malformed(f"operation {look.completion.index}: {found!r} is not a list of changes")
    return tuple(_Change(number(call, look.completion), str(what), str(name)) for call, what, name in found)


def _one(look: _Look, asked: Mapping[int, tuple[_Change, Call]], findings: Findings) -> None:
    """What can be said of one snapshot alone."""
    completion = look.call.completion
    assert completion is not None
    who = f"{of_process(look.call)} on {look.call.node or 'some node'}"
    if len(set(look.changes)) != len(look.changes):
        findings.add("duplicate", f"{who} found a change twice: {_listed(look.changes)}", look.call)
    for change in look.changes:
        wanted, call = asked.get(change.call, (None, look.call))
        if wanted != change or call.index > completion.index:
            findings.add("from-nowhere", f"{who} found {change}, which nobody had asked for", look.call)
        elif call.failed:
            findings.add("failed-seen", f"{who} found {change}, which failed", call, look.call)
    for kind in KINDS:
        expected = _expected(look.changes, kind)
        found = entry_of(completion, kind)
        if not isinstance(found, list):
            raise Malformed(f"operation {completion.index}: {found!r} is not a list of names")
        if expected != set(found):
            differing = ", ".join(sorted(expected ^ set(found)))
            text = f"{who}: by its own changes and by its schema not the same: {kind} {differing}"
            findings.add("schema-differs", text, look.call)
    rows = number(entry_of(completion, "rows"), completion)
    by_index = entry_of(completion, "by-index")
    if not isinstance(by_index, dict):
        raise Malformed(f"operation {completion.index}: {by_index!r} is not a map of indexes")
    differing = ", ".join(f"{found} by {name}" for name, found in sorted(by_index.items()) if found != rows)
    if differing:
        findings.add("index-differs", f"{who} found {rows} rows, and {differing}", look.call)
    if wrong := number(entry_of(completion, "wrong"), completion):
        findings.add("wrong-column", f"{who} found {wrong} rows with what no row can have in a column", look.call)


def _expected(changes: Iterable[_Change], kind: str) -> set[str]:
    there: set[str] = set()
    for change in changes:
        if change.what.endswith(f"-{kind}"):
            if change.what in MAKING:
                there.add(change.name)
            else:
                there.discard(change.name)
    return there


def _order(looks: Sequence[_Look], lost: frozenset[int], findings: Findings) -> None:
    """All saw beginnings of one list of changes; what was lost is no part of it."""
    histories = [_Look(look.call, _until_lost(look.changes, lost)) for look in looks]
    for one, two in pairwise(sorted(histories, key=lambda each: len(each.changes))):
        if two.changes[: len(one.changes)] != one.changes:
            at = next(at for at, change in enumerate(one.changes) if change != two.changes[at])
            text = (
                f"T{one.call.index} and T{two.call.index} found different histories of changes: as number {at + 1} "
                f"{one.changes[at]} or {two.changes[at]}"
            )
            findings.add("incompatible-order", text, one.call, two.call)


def _until_lost(changes: tuple[_Change, ...], lost: frozenset[int]) -> tuple[_Change, ...]:
    """What comes after the first one that was lost belongs to the same lost history."""
    first = next((at for at, change in enumerate(changes) if change.call in lost), len(changes))
    return changes[:first]


def _kept(change: _Change, call: Call, looks: Sequence[_Look], findings: Findings, *, stale_reads: bool) -> None:
    later = [look for look in looks if call.before(look.call)]
    without = [look for look in later if change not in look.changes]
    if not without:
        return
    if later[-1] is without[-1]:
        text = f"{change} was acknowledged, and T{without[-1].call.index} is without it"
        findings.add("lost", text, call, without[-1].call)
    elif not stale_reads:
        findings.add(
            "stale", f"{change} was acknowledged, and T{without[0].call.index} is without it", call, without[0].call
        )


def _listed(changes: Sequence[_Change]) -> str:
    return ", ".join(map(str, changes[-10:]))
