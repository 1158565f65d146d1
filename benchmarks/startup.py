"""How long does a node with a large database take to start: from exec until /readyz says 200.

After a clean stop, and after kill -9. The C pass-through beside it has nothing to recover: exec until it is mounted.
"""

import time

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.node import new_node
from benchmarks.harness.processes import client, kill
from benchmarks.harness.question import Effort, Question
from benchmarks.harness.systems import ALONE, FLOOR, Lab

DATABASE = "benchmark-startup.db"
MIB = 1 << 20


def ask(lab: Lab, effort: Effort) -> Answer:
    size_bytes = effort.choose(64 * MIB, 1024 * MIB)
    size = f"{size_bytes // MIB} MiB"
    clean = Figure(f"start after a clean stop, {size}", "s", "lower", goals=(Goal(ALONE, 1.0),))
    killed = Figure(f"start after kill -9, {size}", "s", "lower")
    failures: dict[str, str] = {}
    rounds = effort.choose(2, effort.rounds)
    if FLOOR in lab.wanted:
        for _ in range(rounds):
            begin = time.monotonic()
            with lab.floor(QUESTION.name):
                clean.add(FLOOR, time.monotonic() - begin)
    if ALONE in lab.wanted:
        try:
            with lab.home(QUESTION.name, ALONE) as home:
                node = new_node(home, "alone", alone=True)
                with node.running():
                    client("fill", path=node.mount / DATABASE, size_bytes=size_bytes)
                for _ in range(rounds):
                    with node.running() as running:
                        clean.add(ALONE, running.start_s)
                        # Something for the log to bring back after the kill that follows.
                        client("small", path=node.mount / DATABASE, synchronous="NORMAL", seconds=1.0)
                        kill(running.process)
                    with node.running() as running:
                        killed.add(ALONE, running.start_s)
        except BenchmarkError as error:
            failures[ALONE] = str(error)
    return Answer([clean, killed], failures)


QUESTION = Question("startup", "Start-up", ask)
