"""The appliers of replicas die alone, before system calls that a seed chooses; the daemons, and readers, live on.

More: ``LITEREPLICA_KILLS=200 LITEREPLICA_CLUSTER_SECONDS=900 python -m pytest tests/cluster/test_applier_kills.py``.
"""

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.cluster.conftest import MakeGroup
from tests.cluster.group import Group
from tests.crash.program import ROLLBACK_MODES, Program
from tests.support.nodes import Node
from tests.support.sql import Session
from tests.support.waiting import wait_until

SEED: Final = random.SystemRandom().randrange(1 << 32)
# Each is a kill of every replica's applier; they come at most two seconds apart, as the node starts a new one.
ROUNDS: Final = int(os.environ.get("LITEREPLICA_KILLS", "8"))
ACTIONS: Final = 14
# What an applier calls while it applies and folds, and about how often for so many actions.
CALLS: Final = {
    "close": 30,
    "fcntl": 40,
    "fdatasync": 2,
    "ftruncate": 1,
    "openat": 30,
    "pread64": 50,
    "pwrite64": 20,
    "recvfrom": 15,
    "sendto": 20,
}
TURN: Final = "turn.db"


@contextlib.contextmanager
def killed_before(pid: int, call: str, number: int) -> Iterator[None]:
    """As long as this lasts, the ``number``-th such call of one of its threads is the process's end."""
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-p", str(pid)]
    tracer = subprocess.Popen([*command, "-e", f"inject={call}:signal=KILL:when={number}"], stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    try:
        line = tracer.stderr.readline()
        assert b"attached" in line, line
        yield
    finally:
        # Not SIGTERM: it would wait for the first thread, whose end it is told only after that of the others.
        tracer.kill()
        tracer.wait(10)
        tracer.stderr.close()


def end(pid: int) -> bool:
    """Kill it, unless it is dead already; whether it had to be."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def deaths(replica: Node) -> int:
    return len(replica.log_lines("applier.died"))


class Turns:
    """A number that goes up on the primary, and a reader on each replica that keeps its snapshot over a death."""

    def __init__(self, group: Group, stack: contextlib.ExitStack) -> None:
        self._group = group
        self._number = 0
        self._writer = stack.enter_context(Session(group.path(TURN)))
        self._writer.run("PRAGMA journal_mode=WAL")
        self._writer.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        self.next()
        self._readers = [stack.enter_context(Session(each.path(TURN), mode="ro")) for each in group.replicas]

    def next(self) -> None:
        """All replicas have the next one: their appliers are up and at work."""
        self._number += 1
        self._writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
        position = self._group.primary_node.position(TURN)
        for each in self._group.replicas:
            each.wait_for(TURN, position)

    def begin(self) -> None:
        for each in self._readers:
            each.run("BEGIN")
            self._look(each)
        self._writer.run("UPDATE t SET v = randomblob(3000)")

    def end(self) -> None:
        for each in self._readers:
            self._look(each)
            each.run("COMMIT")

    def _look(self, reader: Session) -> None:
        assert reader.run("SELECT count(*), max(id) FROM t") == [(self._number, self._number)]


@pytest.mark.timeout(60 + 6 * ROUNDS)
def test_appliers_killed_at_any_call_while_they_apply_and_fold(make_group: MakeGroup) -> None:
    chance = random.Random(SEED)
    group = make_group(replicas=2).start()
    program = Program(group.primary_node.mount, lambda _: None, SEED, ("WAL", *ROLLBACK_MODES), multi=True)
    reached = 0
    try:
        with contextlib.ExitStack() as stack:
            turns = Turns(group, stack)
            for _ in range(ROUNDS):
                turns.next()
                turns.begin()
                appliers = [each.applier() for each in group.replicas]
                before = [deaths(each) for each in group.replicas]
                with contextlib.ExitStack() as tracers:
                    for pid in appliers:
                        call = chance.choice(sorted(CALLS))
                        tracers.enter_context(killed_before(pid, call, chance.randint(1, CALLS[call])))
                    program.run(ACTIONS)
                reached += sum(not end(pid) for pid in appliers)
                for replica, earlier in zip(group.replicas, before, strict=True):
                    wait_until(lambda: deaths(replica) > earlier, "its death is noticed")  # noqa: B023
                turns.end()
        program.close()
        assert_same(group.all)
    except BaseException as error:
        error.add_note(f"seed {SEED}")
        program.gone()
        raise
    assert reached >= ROUNDS / 2, f"only {reached} died at work, seed {SEED}"
