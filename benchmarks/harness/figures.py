"""Figures: what was measured, round by round, and what is said of it.

A round measures every system once, one after the other; the next round starts with another one. So what disturbs the
machine disturbs all alike, and a ratio is taken within a round, before the median. Pure: no processes, no files.
"""

import statistics
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.harness.systems import FLOOR, PLAIN

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a system should reach: a ratio to the system `against`, or, with None, the figure itself."""

    system: str
    limit: float
    against: str | None = None

    def __str__(self) -> str:
        return f"{self.limit:g} × {self.against}" if self.against else f"{self.limit:g}"


@dataclass(slots=True)
class Figure:
    """One measured quantity over all systems: `rounds[system]` has one value a round."""

    name: str
    unit: str
    better: Better = "higher"
    goals: tuple[Goal, ...] = ()
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, system: str, value: float) -> None:
        """Notes the value of the round that is on."""
        self.rounds.setdefault(system, []).append(value)

    def median(self, system: str) -> float:
        """Over all rounds; the system must have been measured."""
        return statistics.median(self.rounds[system])

    def ratio(self, system: str, base: str) -> float | None:
        """How many times as good as `base`: above 1 is better, whatever the unit. None: not both were measured."""
        ours, theirs = self.rounds.get(system, []), self.rounds.get(base, [])
        if self.better == "lower":
            ours, theirs = theirs, ours
        ratios = [our / their for our, their in zip(ours, theirs, strict=False) if their > 0]
        return statistics.median(ratios) if ratios else None

    def judge(self, goal: Goal) -> tuple[float, bool] | None:
        """What stands against a goal's limit, and whether it is reached; None if it was not measured."""
        if goal.system not in self.rounds:
            return None
        if goal.against:
            ratio = self.ratio(goal.system, goal.against)
            return None if ratio is None else (ratio, ratio >= goal.limit)
        value = self.median(goal.system)
        return value, value >= goal.limit if self.better == "higher" else value <= goal.limit

    def document(self) -> dict[str, object]:
        """For JSON: every raw round, and what the table says."""
        systems = {
            system: {
                "rounds": values,
                "median": self.median(system),
                "min": min(values),
                "max": max(values),
                "ratio_to_plain": self.ratio(system, PLAIN),
                "ratio_to_floor": self.ratio(system, FLOOR),
            }
            for system, values in self.rounds.items()
        }
        goals = [
            {"system": goal.system, "goal": str(goal), "stands_at": verdict[0], "reached": verdict[1]}
            for goal in self.goals
            if (verdict := self.judge(goal))
        ]
        return {"name": self.name, "unit": self.unit, "better": self.better, "systems": systems, "goals": goals}


def growth(name: str, small: Figure, large: Figure) -> Figure:
    """How many times as much one operation costs in `large` as in `small`, system by system; both are rates."""
    cost = Figure(name, "times", "lower")
    for system in large.rounds:
        for few, many in zip(small.rounds.get(system, []), large.rounds[system], strict=False):
            cost.add(system, few / many)
    return cost


@dataclass(slots=True)
class Answer:
    """What a question found: its figures, and the systems that failed with what they said."""

    figures: list[Figure]
    failures: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """For JSON: every figure that was measured at all."""
        return {"figures": [figure.document() for figure in self.figures if figure.rounds], "failures": self.failures}
