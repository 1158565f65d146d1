"""What must hold after every run, whatever happened in it.

All nodes have the same bytes; every transaction that was acknowledged is in the database, or kept and listed in
``diverged/`` of the node that acknowledged it; and no node acknowledged a commit that was begun after another had taken
over. Knows the commands that list what was kept. Does not know how it is kept.
"""

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tests.cluster.comparing import assert_same
from tests.failover.clients import Acknowledged, Clients, Failed
from tests.failover.field import DATABASE, Field
from tests.failover.machine import Machine
from tests.support.sql import run_sql

LIMIT_S: Final = 40.0

Rows = set[tuple[str, int]]
"""(writer, number)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``lost``: acknowledged, not in the cluster, and kept in ``diverged/``."""

    acknowledged: int
    lost: tuple[Acknowledged, ...]


def check(field: Field, clients: Clients, *, limit_s: float = LIMIT_S) -> Verdict:
    """Clients have ended and nothing is broken any more: wait until the cluster is well, and look at everything."""
    acknowledged = clients.acknowledged()
    primary = field.await_settled(limit_s)
    assert_one_at_a_time(field, acknowledged)
    # The primary takes a transaction, and it arrives everywhere (so every node has touched its WAL since it changed).
    run_sql(field.path(primary), "INSERT INTO entry VALUES ('check', ?, '', x'')", time.monotonic_ns(), mode="rw")
    assert_same([primary, *field.others(primary)], DATABASE, limit_s=limit_s)
    have = rows(field.path(primary))
    lost = [each for each in acknowledged if (each.writer, each.number) not in have]
    kept = {name: kept_rows(field.nodes[name]) for name in {each.node for each in lost}}
    silent = [each for each in lost if (each.writer, each.number) not in kept[each.node]]
    assert not silent, f"{len(silent)} of {len(acknowledged)} acknowledged are nowhere: {silent[:10]}"
    return Verdict(len(acknowledged), tuple(lost))


def assert_one_at_a_time(field: Field, acknowledged: Sequence[Acknowledged]) -> None:
    """No commit was acknowledged that was begun after one of a later primary had been acknowledged.

    A commit that was begun before a change may be answered after it: the answer is what the client saw, and when.
    """
    acquired = sorted((at, epoch, node.name) for node in field.all for at, epoch in _acquisitions(node))
    newest, done = 0, sorted(acknowledged, key=lambda each: each.done_s)
    earlier = iter(done)
    behind = next(earlier, None)
    for each in sorted(acknowledged, key=lambda each: each.began_s):
        while behind is not None and behind.done_s < each.began_s:
            newest, behind = max(newest, _epoch_of(behind, acquired)), next(earlier, None)
        epoch = _epoch_of(each, acquired)
        assert epoch >= newest, f"{each} is of epoch {epoch}, and {newest} had been acknowledged before it was begun"


def _epoch_of(one: Acknowledged, acquired: Sequence[tuple[float, int, str]]) -> int:
    """Of the last lease that its node had got before it answered."""
    return max(epoch for at, epoch, node in acquired if node == one.node and at <= one.done_s)


def _acquisitions(node: Machine) -> list[tuple[float, int]]:
    """(instant of the monotonic clock, epoch) of each lease that a node got, as its log says before it uses it."""
    found = re.findall(r"^(\S+) +info +lease_acquired epoch=(\d+)", node.log, re.MULTILINE)
    return [(monotonic(at), int(epoch)) for at, epoch in found]


def monotonic(at: str) -> float:
    """The instant of a log line: on one machine wall clock and monotonic clock go together while a test lasts."""
    return datetime.fromisoformat(at).timestamp() - time.time() + time.monotonic()


def assert_none_failed_in_flight(field: Field, failed: Sequence[Failed]) -> None:
    """Of planned changes: whoever had got SQLite's write lock from a primary has committed.

    A writer that waits for that lock meanwhile gets it from a node that is no longer primary, and is refused: that is
    how it learns to go elsewhere.
    """
    reigns = {node.name: reigns_of(node) for node in field.all}
    wrong = [each for each in failed if any(began <= each.held_s < ended for began, ended in reigns[each.node])]
    assert not wrong, f"{len(wrong)} commits in flight failed: {wrong[:5]}; {reigns}"


def reigns_of(node: Machine) -> list[tuple[float, float]]:
    """From when to when a node says that it was the primary, by the monotonic clock."""
    found, began = [], math.inf
    for at, role in re.findall(r"^(\S+) +info +role_changed role=(\w+)", node.log, re.MULTILINE):
        instant = monotonic(at)
        if role == "primary":
            began = instant
        elif began < math.inf:
            found.append((began, instant))
            began = math.inf
    return [*found, (began, math.inf)]


def history(node: Machine) -> list[tuple[int, str]]:
    """(epoch, who became primary), oldest first, as a node knows it."""
    code, found = node.get("/history")
    assert code == 200, (code, found)
    return [(each["epoch"], each["node"]) for each in found["history"]]


def rows(path: Path) -> Rows:
    return set(run_sql(path, "SELECT writer, number FROM entry", mode="ro"))


# ---------------------------------------------------------------------------------------------------------- diverged
def kept(node: Machine) -> list[dict[str, Any]]:
    """What a node lists as kept."""
    found: list[dict[str, Any]] = json.loads(node.command("--json", "diverged", "list"))
    return found


def kept_rows(node: Machine) -> Rows:
    """The rows of everything that a node has kept, by exporting each, once."""
    found: Rows = set()
    for entry in kept(node):
        target = node.folder / f"export-{entry['id']}-{entry['kept_ms']}"
        if not target.exists():
            node.command("diverged", "export", entry["id"], str(target))
        found |= set(run_sql(target, "SELECT writer, number FROM entry", mode="rw"))
    return found
