"""Does a commit cost more in a larger database: 1 MB, 64 MB, 1 GB, 4 GB.

In each, small transactions that add a row, and small transactions that change a random row anywhere in it. A system has
one database of each size, and a round goes through them all, so that sizes are compared within a round as systems are.
Flat means: as flat as on the plain disk, where random pages cost something too.
"""

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer, Figure, growth
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, take_turns
from benchmarks.harness.systems import ALONE, FLOOR, PLAIN, Lab, System

SIZES = {"1 MB": 1_000_000, "64 MB": 64_000_000, "1 GB": 1_000_000_000, "4 GB": 4_000_000_000}
QUICK_SIZES = 2


def database_of(size: str) -> str:
    return f"benchmark-sizes-{size.replace(' ', '').lower()}.db"


def ask(lab: Lab, effort: Effort) -> Answer:
    sizes = list(SIZES)[: effort.choose(QUICK_SIZES, len(SIZES))]
    adds = {size: Figure(f"small transactions, {size} database", "tx/s") for size in sizes}
    changes = {size: Figure(f"random changes, {size} database", "tx/s") for size in sizes}

    def measure(system: System, _turn: int) -> None:
        for size in sizes:
            path = system.directory / database_of(size)
            found = client("small", path=path, synchronous="NORMAL", seconds=effort.seconds)
            adds[size].add(system.name, found["transactions"] / found["seconds"])
            found = client("update", path=path, seconds=effort.seconds)
            changes[size].add(system.name, found["transactions"] / found["seconds"])

    with lab.systems(QUESTION.name, (PLAIN, FLOOR, ALONE), peers=False) as present:
        for system in present.systems:
            try:
                for size in sizes:
                    client("fill", path=system.directory / database_of(size), size_bytes=SIZES[size])
            except BenchmarkError as error:
                present.failures[system.name] = str(error)
        take_turns(present, effort.rounds, measure)
    costs = [
        growth(f"cost against {sizes[0]}: {figures[size].name}", figures[sizes[0]], figures[size])
        for figures in (adds, changes)
        for size in sizes[1:]
    ]
    return Answer([*adds.values(), *changes.values(), *costs], present.failures)


QUESTION = Question("sizes", "Commit cost against database size", ask)
