"""How long after COMMIT has returned does a reader on a replica see the transaction: median and 99th percentile.

A writer commits at a steady pace and notes when each COMMIT had returned; a reader on the other mount asks for the
highest row without pause and notes when it saw each first. Both read the machine's monotonic clock. The reader keeps
one core busy. For a system without a replica the reader reads where the writer writes: what the method itself adds.
"""

import statistics

from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.processes import Client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.systems import FLOOR, PAIR, PLAIN, Lab, System

RATE_PER_S = 150
READY_LIMIT_S = 60.0
SLACK_S = 60.0


def ask(lab: Lab, effort: Effort) -> Answer:
    middle = Figure("commit → visible, p50", "ms", "lower", goals=(Goal(PAIR, 1.0),))
    late = Figure("commit → visible, p99", "ms", "lower", goals=(Goal(PAIR, 5.0),))
    seconds = effort.choose(3.0, 8.0)
    count = int(RATE_PER_S * seconds)

    def measure(system: System, turn: int) -> None:
        database = f"benchmark-visible-{turn}.db"
        options = {"path": system.directory / database, "rate_per_s": RATE_PER_S, "count": count}
        with Client("write_paced", options) as writer:
            first = writer.line(READY_LIMIT_S)["first"]
            system.settle(database, "small", first - 1)
            watching = {
                "path": system.readable / database, "first": first, "count": count, "seconds": seconds + SLACK_S,
            }  # fmt: skip
            with Client("watch", watching) as reader:
                reader.line(READY_LIMIT_S)
                writer.go()
                committed = writer.line(seconds + SLACK_S)["committed_ns"]
                seen = reader.line(seconds + SLACK_S)["seen_ns"]
        delays_ms = [(saw - was) / 1e6 for saw, was in zip(seen, committed, strict=True)]
        middle.add(system.name, statistics.median(delays_ms))
        late.add(system.name, statistics.quantiles(delays_ms, n=100)[98])
        discard(system, [database])

    with lab.systems(QUESTION.name, (PLAIN, FLOOR, PAIR), peers=True) as present:
        take_turns(present, effort.rounds, measure)
    return Answer([middle, late], present.failures)


QUESTION = Question("visible", "Commit → visible on a replica", ask)
