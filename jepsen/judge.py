"""Which checkers a run is given to, and what they say together.

Knows what each workload promises. Does not know how a run is made, stored or shown.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from jepsen.availability import Availability, availability
from jepsen.checkers import (
    answers,
    append,
    bank,
    cookies,
    counter,
    ddl,
    final_state,
    journal,
    log_lines,
    monotonic,
    multi,
    own_writes,
    primaries,
    register,
    sets,
)
from jepsen.checkers.log_lines import Expected
from jepsen.checkers.result import Result, Validity, overall
from jepsen.description import Description
from jepsen.ending import Ending, Kept, LogLine
from jepsen.history import Call, Malformed, pair
from jepsen.lines import Record
from jepsen.periods import Period, busy, periods, restored


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything that a report shows besides the history itself."""

    description: Description
    calls: tuple[Call, ...]
    periods: tuple[Period, ...]
    results: tuple[Result, ...]
    availability: Availability

    @property
    def valid(self) -> Validity:
        return overall(self.results)


@dataclass(frozen=True, slots=True)
class _Case:
    """What the checkers of workloads are given."""

    calls: tuple[Call, ...]
    description: Description
    ending: Ending
    clock: Callable[[], float]
    restored: Mapping[str, Sequence[tuple[int, int]]]

    @property
    def lost(self) -> frozenset[int]:
        return self.ending.kept

    @property
    def diverged(self) -> dict[str, Sequence[Kept]]:
        """By node, and when each had gone back: one that is killed before that still shows what it has put aside."""
        gone = [line for line in self.ending.log if line.event == "went_back"]
        return {
            node.node: tuple(
                replace(entry, gone_ns=_gone_ns(entry, [line for line in gone if line.node == node.node]))
                for entry in node.diverged
            )
            for node in self.ending.nodes
        }


def _gone_ns(entry: Kept, gone: Sequence[LogLine]) -> int:
    of_database = f" database={entry.database} "
    return min((line.time_ns for line in gone if line.time_ns >= entry.time_ns and of_database in line.text), default=0)


def _append(case: _Case) -> Result:
    return append.check(case.calls, realtime=not case.description.stale_reads, lost=case.lost)


def _register(case: _Case) -> Result:
    return register.check(case.calls, clock=case.clock, lost=case.lost)


def _cookies(case: _Case) -> Result:
    return cookies.check(case.calls, lost=case.lost)


def _set(case: _Case) -> Result:
    return sets.check(case.calls, lost=case.lost, stale_reads=case.description.stale_reads)


def _bank(case: _Case) -> Result:
    one = case.description
    return bank.check(case.calls, total=one.total, accounts=one.accounts, negative=one.negative)


def _counter(case: _Case) -> Result:
    return counter.check(case.calls, lost=case.lost, stale_reads=case.description.stale_reads)


def _monotonic(case: _Case) -> Result:
    return monotonic.check(case.calls, diverged=case.diverged, restored=case.restored)


def _own_writes(case: _Case) -> Result:
    return own_writes.check(case.calls, lost=case.lost, diverged=case.diverged)


def _multi(case: _Case) -> Result:
    return multi.check(case.calls, lost=case.lost, stale_reads=case.description.stale_reads)


def _journal(case: _Case) -> Result:
    return journal.check(case.calls, lost=case.lost, stale_reads=case.description.stale_reads)


def _ddl(case: _Case) -> Result:
    return ddl.check(case.calls, lost=case.lost, stale_reads=case.description.stale_reads)


CHECKERS: Final[dict[str, tuple[Callable[[_Case], Result], ...]]] = {
    "anywhere": (_append, _register, _cookies),
    "append": (_append,),
    "bank": (_bank,),
    "counter": (_counter,),
    "ddl": (_ddl, _set),
    "journal": (_journal,),
    "monotonic": (_monotonic,),
    "multi": (_multi,),
    "own-writes": (_own_writes,),
    "register": (_register,),
    "set": (_set,),
}
"""By workload. Whatever the workload, ``answers`` looks at errors, and a run with an ending is also given to those that
look at nodes."""


def judge(
    record: Record,
    *,
    clock: Callable[[], float],
    description: Description | None = None,
    expected: Sequence[Expected] = (),
) -> Judgement:
    """``description``: instead of the one in the record. Raises Malformed when the record cannot be judged."""
    description = description or record.description
    if description is None:
        raise Malformed("nothing says which workload this history is of")
    if description.workload not in CHECKERS:
        raise Malformed(f"{description.workload!r} is no workload; there are {', '.join(CHECKERS)}")
    calls = pair(record.operations)
    under = periods(record.operations)
    ending = record.ending or Ending()
    case = _Case(calls, description, ending, clock, restored(record.operations))
    results = [*(checker(case) for checker in CHECKERS[description.workload]), answers.check(calls, under)]
    if record.ending is not None:
        results += [
            final_state.check(calls, ending, nodes=description.nodes, replication=description.replication),
            primaries.check(calls, ending.roles, forwards=description.forwards),
            log_lines.check(ending.log, expected, [*under, *busy(record.operations)]),
        ]
    return Judgement(description, calls, under, tuple(results), availability(calls, under))


def verdict_line(judgement: Judgement) -> str:
    """One line: what was run, what came out, and how much was looked at."""
    one = judgement.description
    words = {True: "valid", False: "INVALID", "unknown": "UNKNOWN"}
    outcomes = Counter(
        "acknowledged" if call.ok else "failed" if call.failed else "indeterminate" for call in judgement.calls
    )
    planted = f", with the planted bug {one.mutation}" if one.mutation else ""
    parts = [
        f"{one.workload} × {','.join(one.nemeses) or 'no nemesis'}, seed {one.seed}{planted}: {words[judgement.valid]}"
    ]
    parts.append(
        f"{len(judgement.calls)} operations, {outcomes['acknowledged']} acknowledged, {outcomes['failed']} failed, "
        f"{outcomes['indeterminate']} indeterminate"
    )
    if judgement.availability.shares:
        whole = judgement.availability.shares[0]
        parts.append(f"writes accepted {whole.share:.2%} of the time, longest gap {whole.longest_s:.2f} s")
    for result in judgement.results:
        if result.valid is not True:
            kinds = sorted(Counter(anomaly.kind for anomaly in result.anomalies))
            found = ", ".join(f"{result.counts[kind]} {kind}" for kind in kinds)
            parts.append(f"{result.checker}: {found or result.why}")
    return "; ".join(parts)
