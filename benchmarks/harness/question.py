"""A question: a name, a title, and how it is asked; and the rounds in which systems take turns.

Knows that a system may fail at any time, and that the others are measured all the same.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer
from benchmarks.harness.processes import client
from benchmarks.harness.systems import Lab, Present, System

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure. `seconds` is one client's measuring time in one round."""

    quick: bool
    rounds: int
    seconds: float

    def choose(self, quick: T, full: T) -> T:
        """The value for the kind of run that this is."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Question:
    """`name` is what --only takes; `ask` measures."""

    name: str
    title: str
    ask: Callable[[Lab, Effort], Answer]


def take_turns(present: Present, rounds: int, measure: Callable[[System, int], None]) -> None:
    """Measures every system in every round, each round beginning one system further on.

    A system that raises BenchmarkError takes no further part, and is named in `present.failures`.
    """
    for turn in range(rounds):
        systems = [system for system in present.systems if system.name not in present.failures]
        if systems:
            start = turn % len(systems)
            for system in systems[start:] + systems[:start]:
                try:
                    measure(system, turn)
                except BenchmarkError as error:
                    present.failures[system.name] = str(error)


def discard(system: System, databases: Iterable[str]) -> None:
    """Removes databases that are done with, so that a long run does not fill the disk or a peer's directory."""
    client("remove", paths=[str(system.directory / database) for database in databases])
