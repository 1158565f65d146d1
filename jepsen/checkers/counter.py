"""Whether a counter shows at least what was acknowledged and at most what was begun.

Calls: ``add`` of a whole number, which may be negative; ``read`` answers the sum. A read must lie between the least and
the most that it can be: additions that were acknowledged before it began count, those that were begun before its end
(without an answer, or still open) may count, those that failed do not.

When everything that is added is positive, no read may show less than one that had ended before it began.

``lost``: calls that are kept in ``diverged/``: acknowledged, and they may be missing. ``stale_reads``: reads may be
old: what was acknowledged need not be seen yet. Reads that were committed in a lost history are in ``lost`` too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jepsen.checkers.result import Findings, Result
from jepsen.history import Call, number

NAME = "counter"


@dataclass(slots=True)
class _Sums:
    """Of additions above and below zero: those that count for certain, and all that were begun."""

    sure_above: int = 0
    sure_below: int = 0
    begun_above: int = 0
    begun_below: int = 0
    highest: tuple[int, Call] | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    """What a read cannot do without: sums as they were when it began."""

    sure_above: int
    sure_below: int
    highest: tuple[int, Call] | None


def check(calls: Sequence[Call], *, initial: int = 0, lost: Iterable[int] = (), stale_reads: bool = False) -> Result:
    """Raises Malformed where calls are not of a counter."""
    findings = Findings()
    excused = frozenset(lost)
    adds = [call for call in calls if call.f == "add" and not call.failed]
    amounts = {call.index: number(call.invocation.value, call.invocation) for call in adds}
    reads = [call for call in calls if call.f == "read" and call.ok and call.index not in excused]
    slack = sum(max(0, amounts[call.index]) for call in adds if call.index in excused)
    rising = not stale_reads and all(amount >= 0 for amount in amounts.values())
    sums = _Sums()
    begun: dict[int, _Begun] = {}
    for _, call, begins in _events([*adds, *reads]):
        amount = amounts.get(call.index)
        if amount is not None:
            if begins:
                sums.begun_above += max(0, amount)
                sums.begun_below += min(0, amount)
            elif call.index not in excused and not stale_reads:
                sums.sure_above += max(0, amount)
                sums.sure_below += min(0, amount)
        elif begins:
            begun[call.index] = _Begun(sums.sure_above, sums.sure_below, sums.highest)
        else:
            then = begun.pop(call.index)
            _read(call, then, sums, initial, findings)
            if rising:
                _rises(call, then, slack, findings)
            value = _value(call)
            if sums.highest is None or value > sums.highest[0]:
                sums.highest = value, call
    counts = {
        "adds": sum(call.f == "add" for call in calls),
        "acknowledged": sum(call.ok for call in adds),
        "indeterminate": sum(call.indeterminate for call in adds),
        "lost-and-listed": sum(call.index in excused for call in adds),
        "reads": len(reads),
    }
    return findings.result(NAME, counts, "" if reads else "no read was answered")


def _events(calls: Iterable[Call]) -> list[tuple[int, Call, bool]]:
    found: list[tuple[int, Call, bool]] = []
    for call in calls:
        found.append((call.index, call, True))
        if call.ok and call.completion is not None:
            found.append((call.completion.index, call, False))
    return sorted(found, key=lambda each: each[0])


def _value(read: Call) -> int:
    assert read.completion is not None
    return number(read.value, read.completion)


def _read(read: Call, then: _Begun, now: _Sums, initial: int, findings: Findings) -> None:
    least = initial + then.sure_above + now.begun_below
    most = initial + now.begun_above + then.sure_below
    value = _value(read)
    if value < least:
        findings.add("too-low", f"T{read.index} read {value}; what was acknowledged makes at least {least}", read)
    elif value > most:
        findings.add("too-high", f"T{read.index} read {value}; all that was begun makes at most {most}", read)


def _rises(read: Call, then: _Begun, slack: int, findings: Findings) -> None:
    if then.highest is not None and _value(read) < then.highest[0] - slack:
        highest, before = then.highest
        text = f"T{read.index} read {_value(read)}, and T{before.index} had read {highest} before it began"
        findings.add("went-back", text, before, read)
