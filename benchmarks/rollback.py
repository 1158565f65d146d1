"""How many small transactions a second in the rollback-journal modes, at synchronous FULL, as SQLite is by default.

One inserted row of about 100 bytes each, as in ``small``: the modes differ in how the journal ends, which is the commit
(deleted, cut to nothing, its header zeroed).
"""

import time

from benchmarks.harness.figures import Answer, Figure
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.systems import OWN_SYSTEMS, Lab, System

MODES = ("DELETE", "TRUNCATE", "PERSIST")


def ask(lab: Lab, effort: Effort) -> Answer:
    figures = {mode: Figure(f"small transactions, journal_mode {mode}, synchronous FULL", "tx/s") for mode in MODES}
    behind = {mode: Figure(f"replica complete after the last of them, {mode}", "ms", "lower") for mode in MODES}

    def measure(system: System, turn: int) -> None:
        for mode in MODES:
            database = f"benchmark-rollback-{mode.lower()}-{turn}.db"
            path = system.directory / database
            found = client("small", path=path, synchronous="FULL", seconds=effort.seconds, journal=mode)
            end = time.monotonic()
            figures[mode].add(system.name, found["transactions"] / found["seconds"])
            if system.replica:
                system.settle(database, "small", found["last"])
                behind[mode].add(system.name, (time.monotonic() - end) * 1000)
            discard(system, [database])

    with lab.systems(QUESTION.name, OWN_SYSTEMS, peers=True) as present:
        take_turns(present, effort.rounds, measure)
    return Answer([*figures.values(), *behind.values()], present.failures)


QUESTION = Question("rollback", "Small transactions with a rollback journal", ask)
