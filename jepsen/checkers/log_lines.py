"""Whether nodes logged warnings and errors that nobody expects.

A line from level warning up is expected when an expectation names its event, and either always holds or holds while one
of some nemeses is at work (or was, shortly before: consequences take time). A traceback is never expected.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from jepsen.checkers.result import Findings, Result
from jepsen.ending import LogLine
from jepsen.periods import Period

NAME = "log-lines"
GRAVE: Final = frozenset({"warning", "error", "critical"})
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
TRACEBACK: Final = "Traceback (most recent call last)"
AFTERWARDS_S: Final = 30.0
"""What a fault does may be logged later: a ttl, an election, a timeout of replication, one after the other."""
SHOWN_BYTES: Final = 2000


@dataclass(frozen=True, slots=True)
class Expected:
    """Lines with this ``event``, up to ``level``; ``during``: names of nemeses, none when at all times.

    ``saying``: one of these is in their text; none when it does not matter.
    ``why``: what makes the line right; nobody may expect a line without a reason.
    """

    event: str
    why: str
    level: str = "warning"
    during: frozenset[str] = frozenset()
    saying: tuple[str, ...] = ()


def check(
    lines: Iterable[LogLine],
    expected: Sequence[Expected],
    periods: Sequence[Period],
    *,
    afterwards_s: float = AFTERWARDS_S,
) -> Result:
    """One anomaly for each node and event that was not expected: a line that is repeated is one cause."""
    findings = Findings()
    by_event: dict[str, list[Expected]] = {}
    for each in expected:
        by_event.setdefault(each.event, []).append(each)
    seen: dict[tuple[str, str, str], list[LogLine]] = {}
    looked = grave = 0
    for line in lines:
        looked += 1
        traceback = TRACEBACK in line.text
        grave += line.level in GRAVE or traceback
        if traceback:
            seen.setdefault(("traceback", line.node, line.event), []).append(line)
        elif line.level in GRAVE and not any(
            _covers(each, line, periods, afterwards_s) for each in by_event.get(line.event, ())
        ):
            seen.setdefault(("unexpected-line", line.node, line.event), []).append(line)
    for (kind, node, event), found in seen.items():
        first = found[0]
        findings.add(
            kind,
            f"{node} logged {event} ({first.level}) {len(found)} times, first {first.time_ns / 1e9:.3f} s after the "
            f"start: {first.text[:SHOWN_BYTES]}",
        )
    return findings.result(NAME, {"lines": looked, "grave": grave}, "" if looked else "no log was read")


def _covers(each: Expected, line: LogLine, periods: Sequence[Period], afterwards_s: float) -> bool:
    if LEVELS.index(line.level) > LEVELS.index(each.level):
        return False
    if each.saying and not any(words in line.text for words in each.saying):
        return False
    if not each.during:
        return True
    later_ns = round(afterwards_s * 1e9)
    return any(
        period.name in each.during and period.began_ns <= line.time_ns <= period.ended_ns + later_ns
        for period in periods
    )
