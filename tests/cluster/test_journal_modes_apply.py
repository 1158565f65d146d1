"""Replicas of databases in rollback modes, on real mounts: readers go on through switches, restarts, snapshots."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

from tests.cluster.comparing import caught_up, content, difference, rolling_checksum
from tests.cluster.conftest import MakeGroup
from tests.cluster.group import CAUGHT_UP_S, Group, kill, kill_applier, visible
from tests.support.nodes import Node
from tests.support.sql import Session, SqlError, fold, integrity, run_sql
from tests.support.waiting import wait_until

QUESTION = "SELECT count(*), max(n), sum(length(data)) FROM t"


def insert(path: Path, first: int, count: int, size: int = 500) -> None:
    with Session(path) as session:
        for number in range(first, first + count):
            session.run("INSERT INTO t (n, data) VALUES (?, randomblob(?))", number, size)


def make(path: Path, mode: str = "DELETE", page_size: int = 4096) -> None:
    run_sql(
        path,
        f"PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, n, data);",
    )


def assert_exact(group: Group, name: str) -> None:
    """Every replica has the primary's bytes, in its mount and folded on its disk, at the same position."""
    primary = group.primary_node
    if run_sql(primary.path(name), "PRAGMA journal_mode") == [("wal",)]:
        fold(primary.path(name))
    caught_up(primary, group.replicas)
    expected = content(primary.path(name))
    position = visible(primary)[name]
    assert position.endswith(f"{rolling_checksum(expected):016x}")
    for replica in group.replicas:
        _assert_exact(replica, name, expected)


def _assert_exact(replica: Node, name: str, expected: bytes) -> None:
    on_disk = replica.data / "files" / name
    wait_until(lambda: content(on_disk) == expected, f"{replica.name} folds {name}", CAUGHT_UP_S)
    found = content(replica.path(name))
    assert found == expected, difference(replica.name, name, expected, found)
    assert integrity(replica.path(name)) == "ok"
    if expected[19] != 2:
        assert (replica.data / "files" / f"{name}-wal").stat().st_size > 0


def test_readers_on_a_replica_through_every_switch(group: Group) -> None:
    path, replica = group.path("modes.db"), group.replicas[0]
    make(path)
    insert(path, 0, 5)
    caught_up(group.primary_node, group.replicas)
    with Session(replica.path("modes.db"), mode="ro") as idle, Session(replica.path("modes.db"), mode="ro") as held:
        held.run("BEGIN")
        before = held.run(QUESTION)
        assert before[0][:2] == (5, 4)
        number = 5
        for mode in ("WAL", "DELETE", "TRUNCATE", "PERSIST", "WAL", "PERSIST", "DELETE"):
            run_sql(path, f"PRAGMA journal_mode={mode};")
            insert(path, number, 20)
            number += 20
            caught_up(group.primary_node, group.replicas)
            assert idle.run(QUESTION)[0][:2] == (number, number - 1)
            assert run_sql(replica.path("modes.db"), QUESTION, mode="ro")[0][:2] == (number, number - 1)
            assert held.run(QUESTION) == before
        held.run("COMMIT")
        assert held.run(QUESTION)[0][:2] == (number, number - 1)
    assert_exact(group, "modes.db")


def test_readers_on_a_replica_through_changes_of_the_page_size(group: Group) -> None:
    path, replica = group.path("sizes.db"), group.replicas[0]
    make(path)
    insert(path, 0, 200, 3000)
    caught_up(group.primary_node, group.replicas)
    with Session(replica.path("sizes.db"), mode="ro") as idle:
        number = 200
        for page_size in (512, 65536, 1024, 8192, 4096):
            run_sql(path, f"PRAGMA page_size={page_size}; VACUUM;")
            insert(path, number, 3)
            number += 3
            caught_up(group.primary_node, group.replicas)
            assert idle.run(QUESTION)[0][:2] == (number, number - 1)
            assert idle.run("PRAGMA page_size") == [(page_size,)]
        with Session(replica.path("sizes.db"), mode="ro") as held:
            held.run("BEGIN")
            before = held.run(QUESTION)
            insert(path, number, 1)
            run_sql(path, "PRAGMA page_size=512; VACUUM;")
            assert held.run(QUESTION) == before
            held.run("COMMIT")
            caught_up(group.primary_node, group.replicas)
            for each in (held, idle):
                assert each.run(QUESTION)[0][:2] == (number + 1, number)
                assert each.run("PRAGMA page_size") == [(512,)]
    assert_exact(group, "sizes.db")


def test_restarts_and_kills_of_a_replica(group: Group) -> None:
    chance = random.Random(0)
    name = "kills.db"
    path, replica = group.path(name), group.replicas[1]
    make(path, chance.choice(("DELETE", "TRUNCATE", "PERSIST")))
    number = 0
    actions: list[Callable[[Node], None]] = [kill, Node.stop, kill_applier] * 2
    chance.shuffle(actions)
    for action in actions:
        if action is not kill_applier:
            action(replica)
        insert(path, number, 30)
        number += 30
        if chance.random() < 0.5:
            run_sql(path, f"PRAGMA page_size={chance.choice((512, 4096, 65536))}; VACUUM;")
        if action is kill_applier:
            action(replica)
        else:
            replica.start()
        with contextlib.suppress(SqlError):  # a file that is not there yet
            run_sql(replica.path(name), QUESTION, mode="ro")
        caught_up(group.primary_node, group.replicas)
        assert run_sql(replica.path(name), QUESTION, mode="ro")[0][:2] == (number, number - 1)
    assert_exact(group, name)


def test_a_replica_that_lost_its_log_is_made_again(group: Group) -> None:
    """Beside a file that no log knows, of another page size by now."""
    path, replica = group.path("away.db"), group.replicas[0]
    make(path)
    insert(path, 0, 50)
    assert_exact(group, "away.db")
    replica.stop()
    for segment in (replica.data / "db" / "away.db").glob("*"):
        segment.unlink()
    (replica.data / "db" / "away.db").rmdir()
    run_sql(path, "PRAGMA page_size=512; VACUUM;")
    insert(path, 50, 50)
    replica.start()
    caught_up(group.primary_node, group.replicas)
    assert run_sql(replica.path("away.db"), QUESTION, mode="ro")[0][:2] == (100, 99)
    assert_exact(group, "away.db")


def test_a_snapshot_of_another_page_size_reaches_readers_that_are_open(make_group: MakeGroup) -> None:
    """It is written over what they have open, in place: nobody is left with a file that is gone."""
    group = make_group(1, age="1s", size="1MiB").start()
    path, replica = group.path("held.db"), group.replicas[0]
    make(path)
    insert(path, 0, 50)
    caught_up(group.primary_node, group.replicas)
    with Session(replica.path("held.db"), mode="ro") as idle, Session(replica.path("held.db"), mode="ro") as held:
        held.run("BEGIN")
        before = held.run(QUESTION)
        assert idle.run(QUESTION) == before
        group.lines[0].stall()
        run_sql(path, "PRAGMA page_size=512; VACUUM;")
        log = group.primary_node.data / "db" / "held.db"
        first = min(log.glob("*.ltx"))
        number = 50
        while first.exists():
            insert(path, number, 100, 20_000)
            number += 100
            assert number < 20_000
        group.lines[0].cut()
        group.lines[0].go_on()
        wait_until(lambda: bool(replica.log_lines("snapshot_replaces_database")), "a snapshot arrives")
        assert held.run(QUESTION) == before
        held.run("COMMIT")
        caught_up(group.primary_node, group.replicas)
        for each in (held, idle):
            assert each.run(QUESTION)[0][:2] == (number, number - 1)
            assert each.run("PRAGMA page_size") == [(512,)]
        insert(path, number, 1)
        caught_up(group.primary_node, group.replicas)
        for each in (held, idle):
            assert each.run(QUESTION)[0][:2] == (number + 1, number)
    assert_exact(group, "held.db")
