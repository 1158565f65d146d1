"""Random applications and random faults, from a seed; in the end all nodes hold the same bytes.

A longer run: LITEREPLICA_CLUSTER_SECONDS=600 pytest tests/cluster/test_random.py. The seed is printed;
LITEREPLICA_CLUSTER_SEED repeats it (the programs and the order of faults; not how processes meet).
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.cluster.group import Group, kill, kill_applier
from tests.support.nodes import Node
from tests.support.waiting import wait_until

SECONDS: Final = float(os.environ.get("LITEREPLICA_CLUSTER_SECONDS", "12"))
SEED: Final = os.environ.get("LITEREPLICA_CLUSTER_SEED") or str(random.randrange(1 << 32))
PROGRAM: Final = Path(__file__).with_name("program.py")
WORKERS: Final = 2
# To catch up after the last fault, and to compare.
END_S: Final = 100.0


class Faults:
    def __init__(self, group: Group) -> None:
        self.group = group
        self.random = random.Random(f"{SEED} faults")
        self.done: list[str] = []

    def one(self) -> None:
        number = self.random.randrange(len(self.group.replicas))
        replica, line = self.group.replicas[number], self.group.lines[number]
        pause_s = self.random.choice((0.0, 0.1, 0.5, 2.0))
        kind = self.random.choice(("kill", "kill twice", "applier", "applier", "cut", "cut after", "stop", "stall"))
        self.done.append(f"{kind} {replica.name} {pause_s:g}")
        if kind.startswith("kill"):
            self.restart(replica, pause_s, twice=kind == "kill twice")
        elif kind == "applier":
            # A node whose very first applier does not come up ends, as documented.
            if replica.get("/readyz")[0] == 200:
                kill_applier(replica)
            time.sleep(pause_s)
        elif kind == "cut":
            line.cut()
        elif kind == "cut after":
            line.cut_after(self.random.randint(1, 300_000))
        elif kind == "stop":
            replica.signal(signal.SIGSTOP)
            time.sleep(pause_s)
            replica.signal(signal.SIGCONT)
        else:
            line.stall()
            time.sleep(pause_s)
            line.go_on()
        time.sleep(self.random.choice((0.05, 0.3, 1.0)))

    def restart(self, replica: Node, pause_s: float, *, twice: bool) -> None:
        kill(replica)
        time.sleep(pause_s)
        replica.start(wait=False)
        if twice:
            # In the middle of its start, or in the first moments of its work.
            time.sleep(0.3 + self.random.random())
            kill(replica)
            replica.start(wait=False)


@pytest.mark.timeout(SECONDS + 2 * END_S)
def test_all_nodes_are_equal_after_random_work_and_random_faults(group: Group) -> None:
    print(f"LITEREPLICA_CLUSTER_SEED={SEED}")  # noqa: T201
    faults = Faults(group)
    workers = [
        subprocess.Popen(
            [sys.executable, PROGRAM, group.primary_node.mount, SEED, str(number), str(SECONDS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(WORKERS)
    ]
    try:
        while any(each.poll() is None for each in workers):
            faults.one()
        for each in workers:
            said, _ = each.communicate(timeout=END_S)
            assert each.returncode == 0, (said, faults.done)
    finally:
        for each in workers:
            each.kill()
            each.communicate(timeout=END_S)
        print("; ".join(faults.done))  # noqa: T201
    for replica in group.replicas:
        wait_until(lambda replica=replica: replica.get("/readyz")[0] == 200, f"{replica.name} is ready", END_S)  # type: ignore[misc]
    assert_same(group.all, limit_s=END_S)
