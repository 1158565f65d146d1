"""Does a commit cost more among more databases: 1, 100, 1000 of them.

Small transactions in one of them while the others lie still, and in all of them in turn over connections that stay
open. The plain disk shows what SQLite and the caches add by themselves.
"""

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer, Figure, growth
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, take_turns
from benchmarks.harness.systems import OWN_SYSTEMS, Lab, System

PREFIX = "benchmark-counts-"
COUNTS = (1, 100, 1000)
QUICK_COUNTS = 2


def ask(lab: Lab, effort: Effort) -> Answer:
    figures: list[Figure] = []
    with lab.systems(QUESTION.name, OWN_SYSTEMS, peers=False) as present:
        made = 0
        for count in COUNTS[: effort.choose(QUICK_COUNTS, len(COUNTS))]:
            for system in present.systems:
                if system.name not in present.failures:
                    try:
                        client("create_many", path=system.directory / PREFIX, first=made, count=count - made)
                    except BenchmarkError as error:
                        present.failures[system.name] = str(error)
            made = count
            one = Figure(f"small transactions, one of {count}", "tx/s")
            every = Figure(f"small transactions, all {count} in turn", "tx/s")
            figures += [one, every] if count > 1 else [one]

            def measure(
                system: System, _turn: int, count: int = count, one: Figure = one, every: Figure = every
            ) -> None:
                path = system.directory / f"{PREFIX}0000.db"
                found = client("small", path=path, synchronous="NORMAL", seconds=effort.seconds)
                one.add(system.name, found["transactions"] / found["seconds"])
                system.settle(path.name, "small", found["last"])
                if count > 1:
                    found = client("small_in_many", path=system.directory / PREFIX, count=count, seconds=effort.seconds)
                    every.add(system.name, found["transactions"] / found["seconds"])
                    system.settle(f"{PREFIX}{found['number']:04}.db", "small", found["last"])

            take_turns(present, effort.rounds, measure)
    # Against a single database, whichever of the two ways the many are used.
    costs = [growth(f"cost against 1 database: {figure.name}", figures[0], figure) for figure in figures[1:]]
    return Answer([*figures, *costs], present.failures)


QUESTION = Question("counts", "Commit cost against the number of databases", ask)
