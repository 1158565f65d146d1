"""How many small transactions a second: one inserted row of about 100 bytes each, at each synchronous level.

SQLite checkpoints by itself every 1000 pages, as it does for everybody. With a replica attached, the round ends when
the replica shows the last row; how long that took after the last COMMIT is a figure of its own.
"""

import time

from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.systems import ALONE, FLOOR, OWN_SYSTEMS, PAIR, PLAIN, Lab, System

LEVELS = ("OFF", "NORMAL", "FULL")
GOALS = {
    "NORMAL": (Goal(ALONE, 0.7, FLOOR), Goal(PAIR, 0.5, FLOOR)),
    "FULL": (Goal(ALONE, 0.6, PLAIN),),
}


def ask(lab: Lab, effort: Effort) -> Answer:
    figures = {
        level: Figure(f"small transactions, synchronous {level}", "tx/s", goals=GOALS.get(level, ()))
        for level in LEVELS
    }
    behind = {level: Figure(f"replica complete after the last of them, {level}", "ms", "lower") for level in LEVELS}

    def measure(system: System, turn: int) -> None:
        for level in LEVELS:
            database = f"benchmark-small-{level.lower()}-{turn}.db"
            path = system.directory / database
            found = client("small", path=path, synchronous=level, seconds=effort.seconds)
            end = time.monotonic()
            figures[level].add(system.name, found["transactions"] / found["seconds"])
            if system.replica:
                system.settle(database, "small", found["last"])
                behind[level].add(system.name, (time.monotonic() - end) * 1000)
            discard(system, [database])

    with lab.systems(QUESTION.name, OWN_SYSTEMS, peers=True) as present:
        take_turns(present, effort.rounds, measure)
    return Answer([*figures.values(), *behind.values()], present.failures)


QUESTION = Question("small", "Small transactions", ask)
