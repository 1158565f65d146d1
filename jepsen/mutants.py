"""Which run finds which planted bug: a table, and how it is gone through.

A planted bug is found when its run has an anomaly of a kind that stands in the table; that something else is said does
not count. As a control the same run without the bug is valid. Does not know how a bug is planted (mutations/), or how a
run is made (runner.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jepsen.history import Malformed
from jepsen.judge import Judgement
from jepsen.runner import Plan, Say, run


@dataclass(frozen=True, slots=True)
class Mutant:
    """``kinds``: ``checker: kind``, of which one at least is found each time."""

    plan: Plan
    kinds: frozenset[str]

    @property
    def name(self) -> str:
        return self.plan.mutation

    @property
    def control(self) -> Plan:
        """The same without the bug."""
        return replace(self.plan, mutation="")


def _mutant(mutation: str, workload: str, nemesis: str, seconds: float, seed: int, *kinds: str) -> Mutant:
    nemeses = (nemesis,) if nemesis else ()
    return Mutant(Plan(workload, nemeses, seconds, seed, mutation=mutation), frozenset(kinds))


MUTANTS: Final = {
    each.name: each
    for each in (
        # The primary is alone from 0.5 s to 6.3 s; every second client stays with it.
        _mutant("skip-fence", "set", "isolate-primary", 9, 1, "primaries: late-acknowledgement"),
        _mutant("ignore-epoch", "set", "failover", 6, 1, "primaries: two-primaries"),
        # A replica is killed at 0.5 s, the primary from 3.3 s to 5.6 s.
        _mutant("acknowledge-before-log", "set", "kill", 8, 10, "final-state: lost"),
        _mutant("apply-out-of-order", "bank", "", 5, 1, "bank: wrong-total", "final-state: bytes-differ"),
        _mutant("forget-page", "bank", "", 5, 1, "bank: wrong-total", "final-state: checksum"),
        _mutant(
            *("accept-stale", "anywhere", "", 6, 1),
            *("final-state: lost", "final-state: failed-present", "final-state: integrity"),
        ),
        # Appliers of replicas are killed at 0.5, 2, 2.5 and 3 s.
        _mutant("answer-wait-early", "own-writes", "kill-applier", 6, 6, "own-writes: not-seen"),
        _mutant("forget-diverged", "set", "isolate-primary", 9, 1, "final-state: lost"),
    )
}
"""Nemeses do what the seed says, whoever is primary: that those above are seen is no luck."""
REQUIRED: Final = ("skip-fence", "ignore-epoch", "acknowledge-before-log", "apply-out-of-order", "forget-page")
"""Without these the checkers are worth nothing; the others are instructive."""


@dataclass(frozen=True, slots=True)
class Hunt:
    """What came of one run. ``said``: of the expected kinds those that were found. ``other``: the rest."""

    plan: Plan
    verdict: str
    said: dict[str, int]
    other: dict[str, int]

    @property
    def is_right(self) -> bool:
        """A planted bug was found, or nothing was where there was none."""
        return bool(self.said) if self.plan.mutation else self.verdict == "valid"


def hunt(mutant: Mutant, folder: Path, say: Say, *, control: bool = False) -> Hunt:
    """One run, with the bug or as a control. One that cannot be made finds nothing."""
    plan = mutant.control if control else mutant.plan
    try:
        (outcome,) = run([plan], [folder], say)
    except (AssertionError, Malformed) as error:
        say(f"{plan.title}: broke off: {error}")
        return Hunt(plan, "broke off", {}, {})
    judgement = outcome.judgement
    found = kinds_of(judgement)
    said = {kind: number for kind, number in found.items() if kind in mutant.kinds}
    other = {kind: number for kind, number in found.items() if kind not in mutant.kinds}
    verdict = {True: "valid", False: "INVALID", "unknown": "UNKNOWN"}[judgement.valid]
    return Hunt(plan, verdict, said, other)


def kinds_of(judgement: Judgement) -> dict[str, int]:
    """Every kind of anomaly, with its checker, and how many of it."""
    return {
        f"{result.checker}: {anomaly.kind}": result.counts[anomaly.kind]
        for result in judgement.results
        for anomaly in result.anomalies
    }


def hunt_all(names: Sequence[str], out: Path, say: Say, *, times: int = 1, controls: bool = False) -> list[Hunt]:
    """Each so many times, and with ``controls`` once without its bug."""
    found: list[Hunt] = []
    for name in names:
        found += [hunt(MUTANTS[name], out / f"{name}-{number}", say) for number in range(1, times + 1)]
        if controls:
            found.append(hunt(MUTANTS[name], out / f"{name}-control", say, control=True))
    return found


def markdown(hunts: Sequence[Hunt]) -> str:
    """A row for each bug, and one for each control."""
    lines = ["| planted bug | workload | nemeses | seconds | seed | right | said |", "|---|---|---|--:|--:|--:|---|"]
    for plan in dict.fromkeys(each.plan for each in hunts):
        own = [each for each in hunts if each.plan == plan]
        said = sorted({kind for each in own for kind in each.said} | {kind for each in own for kind in each.other})
        totals = ", ".join(f"{_counts(own, kind)} {kind}" for kind in said) or "nothing"
        lines.append(
            f"| {plan.mutation or 'none'} | {plan.workload} | {', '.join(plan.nemeses) or 'none'} | {plan.seconds:g} "
            f"| {plan.seed} | {sum(each.is_right for each in own)} of {len(own)} | {totals} |"
        )
    return "\n".join([*lines, ""])


def _counts(own: Sequence[Hunt], kind: str) -> str:
    """How many there were in each run."""
    return "/".join(str(each.said.get(kind, 0) + each.other.get(kind, 0)) for each in own)
