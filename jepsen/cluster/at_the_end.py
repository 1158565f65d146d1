"""What is found when a run is over, out of all nodes: an Ending.

Knows the order in which a cluster comes to rest and is looked at; whatever cannot be found out becomes the problem of
its node, so that there always is an ending. Does not know what is right: checkers do.
"""

import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jepsen.cluster.log_reading import fields, lines, role_changes
from jepsen.cluster.looking import (
    Calls,
    Look,
    Problem,
    await_folded,
    fold,
    kept,
    kept_ids,
    look,
    plain_copy,
    touch_and_fold,
)
from jepsen.cluster.machine import BreakableMachine
from jepsen.ending import Ending, Kept, LogLine, NodeEnd, RoleChange
from tests.support.sql import SqlError

if TYPE_CHECKING:
    from jepsen.cluster.cluster import Cluster

LEAST_S: Final = 5.0
"""For each step, however long the ones before it took."""
AT_ONCE: Final = 2
"""Processes that ask SQLite something: as many as the smallest machine has cores."""
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


def find_out(
    cluster: "Cluster", groups: Sequence[Sequence[str]], calls_in: Calls | None, limit_s: float
) -> list[Ending]:
    """Nobody writes any more, and everything is healed. ``groups``: databases of which each group has an ending."""
    end = time.monotonic() + limit_s
    folder = cluster.folder / "ending"
    folder.mkdir(exist_ok=True)
    databases = [name for group in groups for name in group]
    common = _come_to_rest(cluster, databases, end)
    order = sorted(cluster.machines, key=lambda node: node.role != "primary")
    found: dict[str, _Found] = {}
    expected: dict[str, bytes] = {}
    for node in order:
        found[node.name] = _databases(node, databases, expected, folder, max(LEAST_S, end - time.monotonic()))
        if node is order[0] and not common:
            expected = {one.end.name: one.content for one in found[node.name].looks}
    logs = [line for node in cluster.machines for line in log_of(node, cluster.since)]
    for node in cluster.machines:
        if common:
            found[node.name].problems.insert(0, Problem(common))
        _list_kept(node, cluster.since, databases, calls_in, folder, logs, found[node.name])
    roles = (*cluster.since.roles, *role_changes(logs))
    there = _there(cluster.machines)
    seen = {one.end.name for each in found.values() for one in each.looks}
    about = [(fields(line).get("database", ""), line) for line in logs]
    every = frozenset(databases)
    endings = []
    for group in groups:
        names = frozenset(group)
        present = None
        # When one of them could be looked at nowhere, nobody knows which calls are there.
        if calls_in is not None and there & names <= seen:
            present = _present([found[node.name].looks for node in order], names, calls_in, folder)
        nodes = tuple(found[node.name].end(node.name, names) for node in cluster.machines)
        own = tuple(line for database, line in about if database in names or database not in every)
        endings.append(Ending(nodes, present, roles, own))
    return endings


@dataclass(slots=True)
class _Found:
    """Of one node."""

    looks: list[Look]
    problems: list[Problem]
    kept: list[Kept]

    def end(self, node: str, databases: frozenset[str]) -> NodeEnd:
        """What of it concerns some databases."""
        looks = [one for one in self.looks if one.end.name in databases]
        problems = [one.text for one in self.problems if not one.database or one.database in databases]
        return NodeEnd(
            node,
            tuple(one.end for one in looks),
            tuple(one for one in self.kept if one.database in databases),
            "; ".join([*problems, *(one.problem for one in looks if one.problem)]),
        )


def _come_to_rest(cluster: "Cluster", databases: Sequence[str], end: float) -> str:
    """One primary, everybody as far as it, WALs folded in; what keeps it from that."""
    try:
        primary = cluster.await_settled(max(LEAST_S, end - time.monotonic()))
        there = {each["name"] for each in primary.status()["databases"]}
        names = [each for each in databases if each in there]
        numbers = range(time.monotonic_ns() // 1_000_000, 2**63)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(touch_and_fold, map(primary.path, names), numbers))
            cluster.await_settled(max(LEAST_S, end - time.monotonic()))
            list(threads.map(fold, [node.path(name) for node in cluster.others(primary) for name in names]))
    except (AssertionError, SqlError, OSError) as error:
        return f"it does not come to rest: {error}"
    return ""


def _databases(
    node: BreakableMachine, names: Sequence[str], expected: Mapping[str, bytes], folder: Path, limit_s: float
) -> _Found:
    """What it holds, and what is wrong with that. ``expected``: what the primary has, where that is known."""
    found = _Found([], [], [])
    try:
        positions = _positions(node.status())
    except AssertionError:
        found.problems.append(Problem("it does not answer" if node.is_running else "it does not run"))
        return found
    for name in names:
        if name not in positions:
            continue
        try:
            await_folded(node, name, expected.get(name), limit_s)
            found.looks.append(look(node, name, positions[name], folder))
        except (AssertionError, SqlError, OSError, TimeoutError) as error:
            found.problems.append(Problem(f"{name} cannot be looked at: {error}", name))
    return found


def _positions(status: Mapping[str, Any]) -> dict[str, str]:
    """Of the databases that are there; one that was dropped has nothing."""
    return {each["name"]: f"{each['txid']}/{each['checksum']}" for each in status["databases"]}


def _list_kept(
    node: BreakableMachine,
    since: Start,
    databases: Sequence[str],
    calls_in: Calls | None,
    folder: Path,
    logs: Sequence[LogLine],
    found: _Found,
) -> None:
    """Add what it has put aside since the start."""
    times_ns = {
        fields(line)["id"]: line.time_ns for line in logs if line.node == node.name and line.event == KEPT_EVENT
    }
    try:
        found.kept, unreadable = kept(node, databases, since.kept[node.name], calls_in, times_ns, folder)
    except (AssertionError, OSError) as error:
        unreadable = [Problem(f"diverged/ cannot be listed: {error}")]
    found.problems += unreadable


def _there(nodes: Sequence[BreakableMachine]) -> set[str]:
    """The databases that some node has."""
    there: set[str] = set()
    for node in nodes:
        with contextlib.suppress(AssertionError):
            there |= _positions(node.status()).keys()
    return there


def _present(
    by_node: Sequence[list[Look]], databases: frozenset[str], calls_in: Calls, folder: Path
) -> tuple[int, ...] | None:
    """Of each database what the first node has of it that could be looked at; the primary comes first.

    None when one is so damaged that it cannot be read; its integrity says that.
    """
    contents: dict[str, bytes] = {}
    for looks in by_node:
        for one in looks:
            if one.end.name in databases:
                contents.setdefault(one.end.name, one.content)
    calls: set[int] = set()
    for name, content in contents.items():
        try:
            calls.update(calls_in(name, plain_copy(content, folder, "present.db")))
        except sqlite3.DatabaseError:
            return None
    return tuple(sorted(calls))
