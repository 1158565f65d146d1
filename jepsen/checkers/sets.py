"""Whether elements that were added to a set are in it, and none that were not.

Calls: ``add`` of one element; ``read`` answers all elements. An element is known to be in the set from the end of its
add, or from the end of the first read that shows it, whichever comes first; every later read must show it.

- lost: known, and missing in every read that was begun later. stale: known, missing in a read, and there again later.
- unexpected: in a read, and nobody ever added it, or the add certainly failed, or was begun after the read had ended.
- incomparable: two reads, each with an element that the other is without: one of them shows a state that never was.
- without-earlier: a read shows an element without one that was there before the add of the first began; never right,
  however old the read.
- recovered: of an add without an answer, and there: that is allowed, and counted. never-read: known after the
  last read began.

``lost``: calls that are kept in ``diverged/``: their elements may vanish, once. ``stale_reads``: reads may be old, so a
missing element is an anomaly only when no later read at all shows it; a read of the end, on every node, belongs there.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from jepsen.checkers.result import Findings, Result
from jepsen.history import Atom, Call, Malformed, atom

NAME: Final = "set"


@dataclass(slots=True)
class _Element:
    """``known``: the index of the operation since which it is. ``shown``: the last read that shows it.

    ``missed``: the last read that does not, of those that should. ``told``: that it is missing is an anomaly already.
    """

    add: Call
    known: int
    shown: Call | None = None
    missed: Call | None = None
    told: bool = False

    @property
    def element(self) -> Atom:
        return atom(self.add.invocation.value, self.add.invocation)


def check(calls: Sequence[Call], *, lost: Iterable[int] = (), stale_reads: bool = False) -> Result:
    """Raises Malformed where calls are not of a set, or an element was added twice."""
    findings = Findings()
    adds = _adds(calls)
    reads = [(call, _elements(call)) for call in calls if call.f == "read" and call.ok]
    for read, elements in reads:
        _twice(read, elements, findings)
    shown = [(read, set(elements)) for read, elements in reads]
    by_end = sorted(shown, key=lambda each: _end(each[0]))
    _unexpected(by_end, adds, findings)
    judged = _known(adds, by_end)
    excused = frozenset(lost)
    excused_elements = {element for element, add in adds.items() if add.index in excused}
    _follow(judged, shown, excused_elements, findings, stale_reads=stale_reads)
    _comparable(shown, excused_elements, findings)
    counts = {
        "adds": len(adds),
        "acknowledged": sum(add.ok for add in adds.values()),
        "indeterminate": sum(add.indeterminate for add in adds.values()),
        "reads": len(reads),
        "never-read": 0,
        "recovered": 0,
        "lost-and-listed": 0,
        "old-reads": 0,
    }
    for element, one in judged.items():
        if one.shown is not None and one.add.indeterminate:
            counts["recovered"] += 1
        if one.shown is None and one.missed is None and one.add.index not in excused:
            counts["never-read"] += 1
        elif one.missed is not None:
            _missed(element, one, excused, counts, findings, stale_reads=stale_reads)
    unknown = "" if reads else "no read was answered"
    if counts["never-read"] and not unknown:
        unknown = f"{counts['never-read']} elements were added after the last read had begun"
    return findings.result(NAME, counts, unknown)


def _missed(
    element: Atom,
    one: _Element,
    excused: frozenset[int],
    counts: dict[str, int],
    findings: Findings,
    *,
    stale_reads: bool,
) -> None:
    assert one.missed is not None
    back = one.shown is not None and one.shown.index > one.missed.index
    if one.add.index in excused:
        counts["lost-and-listed"] += 1
    elif not back:
        seen = [one.shown] if one.shown is not None else []
        since = f"was seen last by T{seen[0].index}" if seen else f"was acknowledged to T{one.add.index}"
        text = f"{element} {since}, and T{one.missed.index} and every later read is without it"
        findings.add("lost", text, one.add, one.missed, *seen)
    elif stale_reads:
        counts["old-reads"] += 1
    else:
        assert one.shown is not None
        text = (
            f"{element} was in the set before T{one.missed.index} began, which did not show it; T{one.shown.index} did"
        )
        findings.add("stale", text, one.add, one.missed, one.shown)


def _adds(calls: Iterable[Call]) -> dict[Atom, Call]:
    adds: dict[Atom, Call] = {}
    for call in calls:
        if call.f == "add":
            element = atom(call.invocation.value, call.invocation)
            if element in adds:
                raise Malformed(f"operation {call.index}: {element} was added before, by T{adds[element].index}")
            adds[element] = call
    return adds


def _elements(call: Call) -> list[Atom]:
    assert call.completion is not None
    if not isinstance(call.value, list):
        raise Malformed(f"operation {call.completion.index}: {call.value!r} is not a list of elements")
    if not {*map(type, call.value)} <= {int, str}:
        for each in call.value:
            atom(each, call.completion)
    return call.value


def _end(read: Call) -> int:
    assert read.completion is not None
    return read.completion.index


def _twice(read: Call, elements: list[Atom], findings: Findings) -> None:
    if len(set(elements)) != len(elements):
        numbers = Counter(elements)
        twice = ", ".join(str(element) for element, number in numbers.most_common(10) if number > 1)
        findings.add("duplicate", f"T{read.index} read {twice} more than once", read)


def _unexpected(reads: list[tuple[Call, set[Atom]]], adds: dict[Atom, Call], findings: Findings) -> None:
    """``reads``: by their ends, so that fewer and fewer elements are of a later time."""
    regular = {element for element, add in adds.items() if not add.failed}
    later = dict.fromkeys(adds)
    coming = iter(adds.items())
    following = next(coming, None)
    for read, elements in reads:
        while following is not None and following[1].index < _end(read):
            del later[following[0]]
            following = next(coming, None)
        for element in sorted((elements - regular) | (elements & later.keys()), key=str):
            add = adds.get(element)
            if add is None:
                findings.add("unexpected", f"T{read.index} read {element}, which nobody ever added", read)
            elif add.failed:
                findings.add("unexpected", f"T{read.index} read {element}, whose add had failed", read, add)
            else:
                findings.add("unexpected", f"T{read.index} read {element} before anybody began to add it", read, add)


def _comparable(reads: list[tuple[Call, set[Atom]]], excused: set[Atom], findings: Findings) -> None:
    """A set that only grows has one state for each number of elements; an old state is the beginning of a newer one."""
    states = sorted(((call, elements - excused) for call, elements in reads), key=lambda each: len(each[1]))
    for (one, smaller), (two, larger) in pairwise(states):
        if not smaller <= larger:
            only = ", ".join(str(each) for each in sorted(smaller - larger, key=str)[:10])
            others = ", ".join(str(each) for each in sorted(larger - smaller, key=str)[:10])
            text = f"T{one.index} read {only} and not {others}; T{two.index} read it the other way round"
            findings.add("incomparable", text, one, two)


def _known(adds: dict[Atom, Call], reads: list[tuple[Call, set[Atom]]]) -> dict[Atom, _Element]:
    """Every element that is known to have been in the set, and since when. ``reads``: by their ends."""
    found: dict[Atom, _Element] = {}
    for element, add in adds.items():
        if add.ok and add.completion is not None:
            found[element] = _Element(add, add.completion.index)
    seen: set[Atom] = set()
    for read, elements in reads:
        for element in (elements - seen) & adds.keys():
            one = found.setdefault(element, _Element(adds[element], _end(read)))
            one.known = min(one.known, _end(read))
        seen |= elements
    return found


def _follow(
    judged: dict[Atom, _Element],
    reads: list[tuple[Call, set[Atom]]],
    excused: set[Atom],
    findings: Findings,
    *,
    stale_reads: bool,
) -> None:
    """Note which reads should have shown each element, and did or did not. ``reads``: by their beginnings."""
    seen: set[Atom] = set()
    for read, elements in reversed(reads):
        for element in (elements - seen) & judged.keys():
            judged[element].shown = read
        seen |= elements
    order = sorted(judged.values(), key=lambda one: one.known)
    by_add = sorted(judged.values(), key=lambda one: one.add.index)
    must: set[Atom] = set()
    at = 0
    for read, elements in reads:
        while at < len(order) and order[at].known < read.index:
            must.add(order[at].element)
            at += 1
        missing = [judged[element] for element in must - elements]
        for one in missing:
            one.missed = read
            one.told = one.told or not stale_reads
        newest = _newest(read, elements - excused, by_add)
        if newest is not None:
            until = bisect_left(order, newest.add.index, key=lambda each: each.known)
            missing += [one for one in order[at:until] if one.element not in elements]
            _beginning(read, newest, [one for one in missing if one.element not in excused], findings)


def _newest(read: Call, elements: set[Atom], by_add: list[_Element]) -> _Element | None:
    """Of the elements that a read shows the one whose add began last."""
    until = bisect_left(by_add, _end(read), key=lambda one: one.add.index)
    return next((by_add[at] for at in range(until - 1, -1, -1) if by_add[at].element in elements), None)


def _beginning(read: Call, newest: _Element, missing: list[_Element], findings: Findings) -> None:
    """Whoever shows an element, however old the state is, shows everything that was there before its add began."""
    for one in missing:
        if one.known < newest.add.index and not one.told:
            one.told = True
            text = (
                f"T{read.index} read {newest.element} without {one.element}, which was there before "
                f"T{newest.add.index} began to add it"
            )
            findings.add("without-earlier", text, one.add, newest.add, read)
