"""What is found when a run is over, out of all nodes: an Ending.

Knows the order in which a cluster comes to rest and is looked at; whatever cannot be found out becomes the problem of
its node, so that there always is an ending. Does not know what is right: checkers do.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jepsen.cluster.log_reading import fields, lines, role_changes
from jepsen.cluster.looking import (
    Calls,
    Look,
    await_folded,
    fold_at_replica,
    kept,
    kept_ids,
    look,
    plain_copy,
    touch_and_fold,
)
from jepsen.cluster.machine import BreakableMachine
from jepsen.ending import Ending, LogLine, NodeEnd, RoleChange
from tests.support.sql import SqlError

if TYPE_CHECKING:
    from jepsen.cluster.cluster import Cluster

LEAST_S: Final = 5.0
"""For each step, however long the ones before it took."""
KEPT_EVENT: Final = "transactions_kept"


@dataclass(frozen=True, slots=True)
class Start:
    """How it stood when a run began: what happened before is no part of it.

    ``began_ns``: of CLOCK_MONOTONIC. ``log_bytes``, ``kept``: of each node, so long its log, such entries of diverged/.
    """

    began_ns: int
    log_bytes: Mapping[str, int]
    kept: Mapping[str, frozenset[str]]
    roles: tuple[RoleChange, ...]

    def clock_ns(self, since_1970_ns: int) -> int:
        """On the clock of the run; wall clock and monotonic clock of one machine go together while it lasts."""
        return max(0, since_1970_ns - time.time_ns() + time.monotonic_ns() - self.began_ns)


def start(nodes: Sequence[BreakableMachine]) -> Start:
    """Now. AssertionError when a node does not answer."""
    began_ns = time.monotonic_ns()
    log_bytes = {each.name: each.log_file.stat().st_size for each in nodes}
    roles = tuple(_role(each) for each in nodes)
    return Start(began_ns, log_bytes, {each.name: kept_ids(each) for each in nodes}, roles)


def _role(node: BreakableMachine) -> RoleChange:
    status = node.status()
    role = status["role"]
    return RoleChange(0, node.name, role if role in {"primary", "replica"} else "none", status["epoch"])


def log_of(node: BreakableMachine, since: Start) -> list[LogLine]:
    """What it has logged since the start."""
    with node.log_file.open("rb") as log:
        log.seek(since.log_bytes[node.name])
        text = log.read().decode(errors="replace")
    return lines(text, node.name, since.clock_ns)


def find_out(cluster: "Cluster", databases: Sequence[str], calls_in: Calls | None, limit_s: float) -> Ending:
    """Nobody writes any more, and everything is healed."""
    end = time.monotonic() + limit_s
    folder = cluster.folder / "ending"
    folder.mkdir(exist_ok=True)
    common = _come_to_rest(cluster, databases, end)
    order = sorted(cluster.machines, key=lambda node: node.role != "primary")
    looks: dict[str, tuple[list[Look], list[str]]] = {}
    expected: dict[str, bytes] = {}
    for node in order:
        looks[node.name] = _databases(node, databases, expected, folder, max(LEAST_S, end - time.monotonic()))
        if node is order[0] and not common:
            expected = {one.end.name: one.content for one in looks[node.name][0]}
    logs = [line for node in cluster.machines for line in log_of(node, cluster.since)]
    nodes = tuple(
        _node_end(node, cluster.since, databases, calls_in, folder, logs, looks[node.name], common)
        for node in cluster.machines
    )
    present = None
    if calls_in is not None and _all_seen(cluster.machines, databases, looks):
        present = _present([looks[node.name][0] for node in order], calls_in, folder)
    return Ending(nodes, present, (*cluster.since.roles, *role_changes(logs)), tuple(logs))


def _come_to_rest(cluster: "Cluster", databases: Sequence[str], end: float) -> str:
    """One primary, everybody as far as it, WALs folded in; what keeps it from that."""
    try:
        primary = cluster.await_settled(max(LEAST_S, end - time.monotonic()))
        there = {each["name"] for each in primary.status()["databases"]}
        for number, name in enumerate(each for each in databases if each in there):
            touch_and_fold(primary.path(name), time.monotonic_ns() // 1_000_000 + number)
        cluster.await_settled(max(LEAST_S, end - time.monotonic()))
        for node in cluster.others(primary):
            for name in databases:
                if name in there:
                    fold_at_replica(node.path(name))
    except (AssertionError, SqlError, OSError) as error:
        return f"it does not come to rest: {error}"
    return ""


def _databases(
    node: BreakableMachine, names: Sequence[str], expected: Mapping[str, bytes], folder: Path, limit_s: float
) -> tuple[list[Look], list[str]]:
    """What it holds, and what is wrong with that. ``expected``: what the primary has, where that is known."""
    found: list[Look] = []
    problems: list[str] = []
    try:
        positions = _positions(node.status())
    except AssertionError:
        return [], ["it does not answer" if node.is_running else "it does not run"]
    for name in names:
        if name not in positions:
            continue
        try:
            await_folded(node, name, expected.get(name), limit_s)
            found.append(look(node, name, positions[name], folder))
        except (AssertionError, SqlError, OSError, TimeoutError) as error:
            problems.append(f"{name} cannot be looked at: {error}")
    return found, problems


def _positions(status: Mapping[str, Any]) -> dict[str, str]:
    """Of the databases that are there; one that was dropped has nothing."""
    return {each["name"]: f"{each['txid']}/{each['checksum']}" for each in status["databases"]}


def _node_end(
    node: BreakableMachine,
    since: Start,
    databases: Sequence[str],
    calls_in: Calls | None,
    folder: Path,
    logs: Sequence[LogLine],
    found: tuple[list[Look], list[str]],
    common: str,
) -> NodeEnd:
    looks, problems = found
    problems = [each for each in (common, *problems, *(one.problem for one in looks)) if each]
    times_ns = {
        fields(line)["id"]: line.time_ns for line in logs if line.node == node.name and line.event == KEPT_EVENT
    }
    ends = tuple(one.end for one in looks)
    one = NodeEnd(node.name, ends, (), "; ".join(problems))
    try:
        entries, unreadable = kept(node, databases, since.kept[node.name], calls_in, times_ns, folder)
    except (AssertionError, OSError) as error:
        return replace(one, problem="; ".join([*problems, f"diverged/ cannot be listed: {error}"]))
    return replace(one, diverged=tuple(entries), problem="; ".join([*problems, *unreadable]))


def _all_seen(
    nodes: Sequence[BreakableMachine], databases: Sequence[str], looks: Mapping[str, tuple[list[Look], list[str]]]
) -> bool:
    """Whether each of the databases that some node has could be looked at: else nobody knows which calls are there."""
    seen = {one.end.name for found, _ in looks.values() for one in found}
    there: set[str] = set()
    for node in nodes:
        with contextlib.suppress(AssertionError):
            there |= _positions(node.status()).keys()
    return there.intersection(databases) <= seen


def _present(by_node: Sequence[list[Look]], calls_in: Calls, folder: Path) -> tuple[int, ...]:
    """Of each database what the first node has of it that could be looked at; the primary comes first."""
    contents: dict[str, bytes] = {}
    for looks in by_node:
        for one in looks:
            contents.setdefault(one.end.name, one.content)
    calls: set[int] = set()
    for name, found in contents.items():
        calls.update(calls_in(name, plain_copy(found, folder, "present.db")))
    return tuple(sorted(calls))
