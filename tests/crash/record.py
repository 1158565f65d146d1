"""A trace of a real node: started with the recording disk, used by real programs, stopped and killed and started again.

Knows what the two kinds of traces go through (a primary's, a replica's). Does not know what is done with a trace.
"""

import json
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.crash.program import ROLLBACK_MODES, Program
from tests.crash.recording import KILLED, Step, Trace, load_trace
from tests.crash.replay import SEGMENT_BYTES
from tests.support.mounts import force_unmount
from tests.support.nodes import Node, Nodes
from tests.support.sql import SqlError
from tests.support.waiting import wait_until

# Small, so that segments go, and the launcher looks often.
RETENTION_S: Final = 4.5
# After so long without a transaction a replica folds its WAL.
IDLE_S: Final = 1.5
_RETENTION: Final = {"age": "1s", "size": "200KB"}
# Of the primary of a replica that is recorded: what that has not yet is kept while it is connected.
_LONGER: Final = {"age": "4s", "size": "8MB"}


@dataclass(frozen=True, slots=True)
class Recorded:
    trace: list[Step]
    groups: list[list[str]]
    counts: dict[str, int]


def launch(node: Node, trace: Path | None, die_after: int = 0, refuse_every: int = 0, *, wait: bool = True) -> None:
    """Start a node whose disk is recorded, or (``trace`` None) one that only has small segments too."""
    prefix = [
        sys.executable, "-m", "tests.crash.launcher", str(trace) if trace else "-", str(SEGMENT_BYTES), str(die_after),
        str(refuse_every),
    ]  # fmt: skip
    node.start(prefix=prefix, wait=wait)


def record_primary(
    nodes: Nodes,
    trace: Path,
    seed: int,
    *,
    rounds: int,
    actions: int,
    rollback: bool,
    unsafe: bool = False,
    refuse_every: int = 0,
) -> Recorded:
    """A standalone node: in each round programs run, then it is stopped, or killed in the middle of them."""
    chance = random.Random(seed)
    node = _with_retention(nodes.make("a"), _RETENTION)
    log = Trace(trace)
    modes = ("WAL", *ROLLBACK_MODES) if rollback else ("WAL",)
    program = Program(node.mount, log, seed, modes, multi=rollback, unsafe=unsafe)
    for number in range(rounds):
        is_killed = number % 2 == 1
        launch(node, trace, chance.randint(200, 2000) if is_killed else 0, refuse_every)
        if not is_killed:
            program.run(actions)
            program.close()
            _stop(node, refused=bool(refuse_every))
        else:
            _run_until_killed(node, program, actions)
    launch(node, trace)
    program.run(max(3, actions // 4))
    program.close()
    node.stop()
    log.close()
    return Recorded(load_trace(trace), program.groups, program.counts)


def _stop(node: Node, *, refused: bool) -> None:
    """``refused``: the disk may have been full for the stop too; then it is not a clean one."""
    if not refused:
        node.stop()
        return
    node.terminate()
    wait_until(lambda: not node.children(), "the children of the node end")


def _with_retention(node: Node, retention: dict[str, str]) -> Node:
    document = json.loads(node.config.read_text(encoding="utf-8"))
    document["data"]["retention"] = retention
    node.config.write_text(json.dumps(document), encoding="utf-8")
    return node


def _run_until_killed(node: Node, program: Program, actions: int) -> None:
    process = node.process
    assert process is not None
    try:
        for _ in range(20):
            program.run(actions)
    except (AssertionError, OSError, SqlError) as error:
        # The mount has gone away under the program; anything else is a finding.
        wait_until(lambda: process.poll() is not None, f"the node is killed (after {error})")
    if process.poll() is None:
        program.close()
        node.kill()
    else:
        assert process.returncode == KILLED, node.log
    force_unmount(node.folder)
    program.gone()
    wait_until(lambda: not node.children(), "the children of the killed node end")


def record_replica(nodes: Nodes, trace: Path, seed: int, *, rounds: int, actions: int, rollback: bool) -> Recorded:
    """A replica: from nothing; stopped, killed; so far behind that it takes a snapshot; at last of another history."""
    chance = random.Random(seed)
    primary = _with_retention(nodes.make_primary("a"), _LONGER)
    replica = _with_retention(nodes.make_replica(primary, "b"), _RETENTION)
    modes = ("WAL", *ROLLBACK_MODES) if rollback else ("WAL",)
    program = Program(primary.mount, lambda _: None, seed, modes)
    launch(primary, None)
    program.run(actions)
    program.close()
    primary.stop()
    earlier = primary.data.with_name("earlier")
    for number in range(rounds):
        is_killed = number % 2 == 1
        is_last = number == rounds - 1
        if is_last:
            # The primary comes back from a backup, and goes on from there: less than the replica has.
            shutil.rmtree(primary.data)
            earlier.rename(primary.data)
        elif not earlier.exists():
            shutil.copytree(primary.data, earlier)
        launch(primary, None)
        program.run(actions // 4 if is_last else actions)
        if number % 2 and not is_last:
            # The replica comes after retention, and gets a snapshot.
            time.sleep(RETENTION_S)
            program.run(max(3, actions // 3))
        launch(replica, trace, chance.randint(100, 600) if is_killed and not is_last else 0, wait=False)
        _run_until_ended(replica, program, actions)
        program.close()
        _end(replica)
        primary.stop()
    return Recorded(load_trace(trace), [], program.counts)


def _run_until_ended(replica: Node, program: Program, actions: int) -> None:
    """The replica receives, applies, and folds its WAL when nothing comes for a while (or dies meanwhile)."""
    process = replica.process
    assert process is not None
    for part in range(3):
        program.run(max(1, actions // 3))
        end = time.monotonic() + IDLE_S
        while part and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)


def _end(replica: Node) -> None:
    process = replica.process
    assert process is not None
    if process.poll() is None:
        replica.wait_ready()
        # Its last step may come in the stop.
        if replica.terminate() == 0:
            replica.assert_gone()
            return
    assert process.returncode == KILLED, replica.log
    force_unmount(replica.folder)
    wait_until(lambda: not replica.children(), "the children of the killed replica end")
