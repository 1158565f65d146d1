"""How fast are reads: random rows by key, and scans of the whole table, from the database file and from the WAL.

The reader is another process than the writer, with a read-only connection and SQLite's default cache of 2 MB, so that
most pages come from the kernel. A system with a replica is read on the replica, where the pages lie as its applier left
them.
"""

from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.processes import Client, client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.systems import ALONE, OWN_SYSTEMS, PAIR, PLAIN, Lab, System

ROWS = 20_000
GOALS = (Goal(ALONE, 0.95, PLAIN), Goal(PAIR, 0.95, PLAIN))
PLACES = {"database": False, "WAL": True}
HOLD_LIMIT_S = 120.0
# Reads never leave the processor, so they show every neighbour's noise: more rounds, and shorter ones.
MORE_ROUNDS = 2


def ask(lab: Lab, effort: Effort) -> Answer:
    points = {place: Figure(f"point reads from the {place}", "reads/s", goals=GOALS) for place in PLACES}
    scans = {place: Figure(f"scans from the {place}", "MB/s", goals=GOALS) for place in PLACES}

    def measure(system: System, turn: int) -> None:
        for place, in_wal in PLACES.items():
            database = f"benchmark-reads-{place.lower()}-{turn}.db"
            options = {"path": system.directory / database, "rows": ROWS, "in_wal": in_wal}
            # The writer's connection stays open: the last one to close would empty the WAL.
            with Client("hold_rows", options) as writer:
                writer.line(HOLD_LIMIT_S)
                system.settle(database, "reads", ROWS)
                found = client("read", path=system.readable / database, rows=ROWS, seconds=effort.seconds / MORE_ROUNDS)
                writer.go()
                writer.line(HOLD_LIMIT_S)
            points[place].add(system.name, found["points"] / found["points_s"])
            scans[place].add(system.name, found["scanned_bytes"] / found["scans_s"] / 1e6)
            discard(system, [database])

    with lab.systems(QUESTION.name, OWN_SYSTEMS, peers=True) as present:
        take_turns(present, effort.rounds * MORE_ROUNDS, measure)
    return Answer([*points.values(), *scans.values()], present.failures)


QUESTION = Question("reads", "Point reads and scans", ask)
