"""In how much of the time some node accepted writes, under each nemesis, and how long nobody did.

Only what clients saw counts. The end of an acknowledged write is an instant at which some node accepts. Between two of
them that are not far apart some node is taken to have accepted all along; where they are farther apart, and somebody
asked meanwhile, nobody did: a gap, from the first question without an answer (or the last answer, when a question was
open then) to the next answer. Time in which nobody asked is left out.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from jepsen.history import Call
from jepsen.periods import Period, merged

SMALLEST_GAP_S: Final = 0.25
"""Shorter ones are what a busy machine, an fsync or a queue of writers costs, not a node that does not accept."""
AFTERWARDS_S: Final = 10.0
"""An accident of one moment (a kill) has consequences: the time after it counts as under it. Twice a ttl of 5 s."""
EVERYTHING: Final = "(the whole run)"
NOTHING: Final = "(no nemesis)"

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Gap:
    """``nemeses``: those at work at some time of it."""

    began_ns: int
    ended_ns: int
    nemeses: tuple[str, ...]

    @property
    def length_s(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Share:
    """Of the time under one nemesis in which somebody asked."""

    nemesis: str
    asked_s: float
    accepted_s: float
    lengths_s: tuple[float, ...] = ()
    """Of the gaps."""

    @property
    def gaps(self) -> int:
        return len(self.lengths_s)

    @property
    def longest_s(self) -> float:
        return max(self.lengths_s, default=0.0)

    @property
    def share(self) -> float:
        """1.0 when nobody asked: nobody was refused."""
        return self.accepted_s / self.asked_s if self.asked_s else 1.0


@dataclass(frozen=True, slots=True)
class Availability:
    """``shares``: of the whole run, without nemesis, and under each, by name."""

    shares: tuple[Share, ...]
    gaps: tuple[Gap, ...]

    def percentile_s(self, share: float) -> float:
        """Of the lengths of all gaps."""
        return percentile([gap.length_s for gap in self.gaps], share)


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest rank; 0 when there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def availability(
    calls: Sequence[Call],
    periods: Sequence[Period],
    *,
    smallest_gap_s: float = SMALLEST_GAP_S,
    afterwards_s: float = AFTERWARDS_S,
) -> Availability:
    """Of calls that write; nothing at all when there are none."""
    writes = [call for call in calls if call.writes]
    if not writes:
        return Availability((), ())
    began_ns = writes[0].invocation.time_ns
    ended_ns = max(operation.time_ns for call in writes for operation in call.operations)
    spans, idle = _gaps(writes, began_ns, ended_ns, round(smallest_gap_s * 1e9))
    under = _under(periods, began_ns, ended_ns, round(afterwards_s * 1e9))
    asked = without([(began_ns, ended_ns)], idle)
    gaps = tuple(
        Gap(*span, tuple(name for name, spans in under.items() if overlap_ns(spans, [span]))) for span in spans
    )
    shares = [_share(EVERYTHING, asked, gaps), _share(NOTHING, without(asked, _all(under)), gaps)]
    shares += [_share(name, _both(asked, under[name]), gaps) for name in sorted(under)]
    return Availability(tuple(shares), gaps)


def _gaps(writes: Sequence[Call], began_ns: int, ended_ns: int, smallest_ns: int) -> tuple[Spans, Spans]:
    """Where nobody accepted, and where nobody asked."""
    answers = sorted(call.completion.time_ns for call in writes if call.ok and call.completion is not None)
    gaps: list[tuple[int, int]] = []
    idle: list[tuple[int, int]] = []
    before = began_ns
    for answer in [*answers, ended_ns]:
        if answer - before > smallest_ns:
            questions = [call.invocation.time_ns for call in writes if _ended_ns(call, ended_ns) > before]
            first = max(before, min(questions, default=answer))
            if first > before:
                idle.append((before, min(first, answer)))
            if answer - first > smallest_ns:
                gaps.append((first, answer))
        before = answer
    return gaps, idle


def _ended_ns(call: Call, last_ns: int) -> int:
    return last_ns + 1 if call.completion is None else call.completion.time_ns


def _under(periods: Sequence[Period], began_ns: int, ended_ns: int, afterwards_ns: int) -> dict[str, Spans]:
    found: dict[str, list[tuple[int, int]]] = {}
    for each in periods:
        until = each.ended_ns if each.lasting else each.ended_ns + afterwards_ns
        span = max(began_ns, each.began_ns), min(ended_ns, until)
        if span[0] < span[1]:
            found.setdefault(each.name, []).append(span)
    return {name: merged(spans) for name, spans in sorted(found.items())}


def _share(nemesis: str, asked: Spans, gaps: Iterable[Gap]) -> Share:
    inside = [gap for gap in gaps if overlap_ns(asked, [(gap.began_ns, gap.ended_ns)])]
    lost_ns = overlap_ns(asked, [(gap.began_ns, gap.ended_ns) for gap in inside])
    asked_ns = sum(ended - began for began, ended in asked)
    return Share(nemesis, asked_ns / 1e9, (asked_ns - lost_ns) / 1e9, tuple(gap.length_s for gap in inside))


# ------------------------------------------------------------------------------------------------------------- spans
def _all(under: dict[str, Spans]) -> Spans:
    return merged(span for spans in under.values() for span in spans)


def _both(one: Spans, other: Spans) -> list[tuple[int, int]]:
    found = [(max(a, c), min(b, d)) for a, b in one for c, d in other]
    return [(began, ended) for began, ended in found if began < ended]


def without(spans: Spans, holes: Spans) -> list[tuple[int, int]]:
    """What of ``spans`` is in none of ``holes``, which are in order and do not overlap."""
    found: list[tuple[int, int]] = []
    for began, ended in spans:
        at = began
        for hole_began, hole_ended in holes:
            if hole_ended <= at or hole_began >= ended:
                continue
            if hole_began > at:
                found.append((at, hole_began))
            at = max(at, hole_ended)
        if at < ended:
            found.append((at, ended))
    return found


def overlap_ns(one: Spans, other: Spans) -> int:
    """How long both last together; neither overlaps with itself."""
    return sum(ended - began for began, ended in _both(one, other))
