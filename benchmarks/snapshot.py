"""How fast does a late replica get a database that it has nothing of.

From the replica's exec until a reader on its mount sees the last row, its start-up included. Beside it a copy of a file
of that size, fsynced, on the plain disk and into the C pass-through. Each round is a new replica with an empty data
directory. The primary keeps so little log that the replica cannot be served from it.
"""

import time

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.node import new_node
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.systems import FLOOR, PAIR, PLAIN, Lab, System

DATABASE = "benchmark-snapshot.db"
LIMIT_S = 300.0
# Two of the transactions that `fill` makes: far less than the database.
PRIMARY_LOG = "64MiB"


def ask(lab: Lab, effort: Effort) -> Answer:
    size_bytes = effort.choose(100_000_000, 500_000_000)
    rounds = effort.choose(2, 3)
    figure = Figure(f"late replica gets {size_bytes // 1_000_000} MB", "MB/s", goals=(Goal(PAIR, 100.0),))
    with (
        lab.systems(QUESTION.name, (PLAIN, FLOOR), peers=False) as present,
        lab.home(QUESTION.name, "source") as source,
    ):
        original = source / DATABASE
        client("fill", path=original, size_bytes=size_bytes)

        def measure(system: System, turn: int) -> None:
            name = f"copy-{turn}.db"
            found = client("copy", source=original, path=system.directory / name)
            figure.add(system.name, found["bytes"] / found["seconds"] / 1e6)
            discard(system, [name])

        take_turns(present, rounds, measure)
        if PAIR in lab.wanted:
            try:
                join(lab, size_bytes, rounds, figure)
            except BenchmarkError as error:
                present.failures[PAIR] = str(error)
    return Answer([figure], present.failures)


def join(lab: Lab, size_bytes: int, rounds: int, figure: Figure) -> None:
    """A primary with the database, and new replicas one after the other."""
    with lab.home(QUESTION.name, PAIR) as home:
        first = new_node(home, "primary", alone=False, log_size=PRIMARY_LOG)
        with first.running():
            filled = client("fill", path=first.mount / DATABASE, size_bytes=size_bytes)
            for turn in range(rounds):
                replica = new_node(home, f"replica-{turn}", alone=False, primary=first)
                begin = time.monotonic()
                with replica.running():
                    seen = client(
                        "await_row", path=replica.mount / DATABASE, table="filler", last=filled["last"], seconds=LIMIT_S
                    )
                figure.add(PAIR, filled["bytes"] / (seen["at_s"] - begin) / 1e6)


QUESTION = Question("snapshot", "Snapshot", ask)
