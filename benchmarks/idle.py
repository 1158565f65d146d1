"""What does a node cost that has nothing to do: resident memory, processor time, wake-ups a second.

One database that has been written to, and then nobody. A node is the tree of its processes, applier included. Memory is
the proportional set size (pages shared with other processes shared out among them); the resident set size is beside it.
"""

import time

from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.processes import client
from benchmarks.harness.procfs import activity_of, memory_of
from benchmarks.harness.question import Effort, Question
from benchmarks.harness.systems import ALONE, FLOOR, PAIR, Lab

DATABASE = "benchmark-idle.db"
# What the last transactions left to do (a checkpoint, a timer) is over by then.
QUIET_S = 5.0
NODES = (ALONE, f"{ALONE} primary", f"{ALONE} replica")


def goals(limit: float) -> tuple[Goal, ...]:
    return tuple(Goal(node, limit) for node in NODES)


def ask(lab: Lab, effort: Effort) -> Answer:
    proportional = Figure("resident memory, proportional (PSS)", "MB", "lower", goals=goals(80.0))
    resident = Figure("resident memory, summed (RSS)", "MB", "lower")
    busy = Figure("idle processor time", "% of a core", "lower", goals=goals(0.5))
    wakeups = Figure("idle wake-ups", "1/s", "lower", goals=goals(2.0))
    watched_s = effort.choose(8.0, 20.0)
    with lab.systems(QUESTION.name, (FLOOR, ALONE, PAIR), peers=False) as present:
        for system in present.systems:
            found = client("small", path=system.directory / DATABASE, synchronous="NORMAL", seconds=1.0)
            system.settle(DATABASE, "small", found["last"])
        time.sleep(QUIET_S)
        processes = [process for system in present.systems for process in system.processes]
        for _ in range(effort.choose(1, 3)):
            before = {pid: activity_of(pid) for _, pid in processes}
            begin = time.monotonic()
            time.sleep(watched_s)
            for name, pid in processes:
                seconds, switches = activity_of(pid).since(before[pid])
                elapsed = time.monotonic() - begin
                busy.add(name, 100 * seconds / elapsed)
                wakeups.add(name, switches / elapsed)
                memory = memory_of(pid)
                proportional.add(name, memory.pss_bytes / 1e6)
                resident.add(name, memory.rss_bytes / 1e6)
    return Answer([proportional, resident, busy, wakeups], present.failures)


QUESTION = Question("idle", "An idle node", ask)
