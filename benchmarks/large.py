"""How fast is one transaction of 50 MB, from BEGIN until COMMIT has returned.

It outgrows SQLite's cache and spills; COMMIT ends with SQLite's own checkpoint, which an application waits for as well.
"""

from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.systems import ALONE, FLOOR, OWN_SYSTEMS, Lab, System

SIZE_BYTES = 50_000_000


def ask(lab: Lab, effort: Effort) -> Answer:
    figure = Figure("one 50 MB transaction", "MB/s", goals=(Goal(ALONE, 0.7, FLOOR),))

    def measure(system: System, turn: int) -> None:
        database = f"benchmark-large-{turn}.db"
        found = client("large", path=system.directory / database, size_bytes=SIZE_BYTES)
        figure.add(system.name, found["bytes"] / found["seconds"] / 1e6)
        system.settle(database, "large", found["last"])
        discard(system, [database])

    with lab.systems(QUESTION.name, OWN_SYSTEMS, peers=True) as present:
        take_turns(present, effort.rounds, measure)
    return Answer([figure], present.failures)


QUESTION = Question("large", "One large transaction", ask)
