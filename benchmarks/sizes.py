"""Does a commit cost more in a larger database: 1 MB, 64 MB, 1 GB, 4 GB.

In each, small transactions that add a row, and small transactions that change a random row anywhere in it. One database
a system, grown from size to size. Flat means: as flat as on the plain disk, where random pages cost something too.
"""

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer, Figure, growth
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, take_turns
from benchmarks.harness.systems import ALONE, FLOOR, PLAIN, Lab, System

DATABASE = "benchmark-sizes.db"
SIZES = {"1 MB": 1_000_000, "64 MB": 64_000_000, "1 GB": 1_000_000_000, "4 GB": 4_000_000_000}
QUICK_SIZES = 2


def ask(lab: Lab, effort: Effort) -> Answer:
    figures: list[Figure] = []
    with lab.systems(QUESTION.name, (PLAIN, FLOOR, ALONE), peers=False) as present:
        for size, size_bytes in list(SIZES.items())[: effort.choose(QUICK_SIZES, len(SIZES))]:
            for system in present.systems:
                if system.name not in present.failures:
                    try:
                        client("fill", path=system.directory / DATABASE, size_bytes=size_bytes)
                    except BenchmarkError as error:
                        present.failures[system.name] = str(error)
            adds = Figure(f"small transactions, {size} database", "tx/s")
            changes = Figure(f"random changes, {size} database", "tx/s")
            figures += [adds, changes]

            def measure(system: System, _turn: int, adds: Figure = adds, changes: Figure = changes) -> None:
                path = system.directory / DATABASE
                found = client("small", path=path, synchronous="NORMAL", seconds=effort.seconds)
                adds.add(system.name, found["transactions"] / found["seconds"])
                found = client("update", path=path, seconds=effort.seconds)
                changes.add(system.name, found["transactions"] / found["seconds"])

            take_turns(present, effort.rounds, measure)
    smallest = dict(zip(("adds", "changes"), figures[:2], strict=True))
    costs = [
        growth(f"cost against 1 MB: {figure.name}", smallest["changes" if turn % 2 else "adds"], figure)
        for turn, figure in enumerate(figures[2:])
    ]
    return Answer([*figures, *costs], present.failures)


QUESTION = Question("sizes", "Commit cost against database size", ask)
