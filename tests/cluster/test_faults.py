"""Nodes, appliers and connections die in the middle of work; in the end everything acknowledged is everywhere."""

import random
import signal
import time
from typing import Final

import pytest

from tests.cluster.comparing import assert_same, caught_up
from tests.cluster.conftest import MakeGroup
from tests.cluster.group import (
    TIMEOUT_S,
    Group,
    Watcher,
    Writer,
    forget_data,
    kill,
    kill_applier,
    prepare,
    visible,
    writers,
)
from tests.support.nodes import Node
from tests.support.sql import Session, make_database, run_sql
from tests.support.waiting import wait_until

BUSY: Final = "busy.db"
LONG_S: Final = 110.0
"""Writers are ended by their tests, on a busy machine too."""
PAUSE_S: Final = 0.004
"""Without one the lock is hardly ever free for the other writers: SQLite looks only now and then."""


def rows(node: Node, database: str = BUSY) -> dict[str, int]:
    """How many rows each writer has; their numbers have no gap."""
    found = {}
    for writer, count, last in run_sql(
        node.path(database), "SELECT writer, count(*), max(number) FROM entry GROUP BY writer"
    ):
        assert count == last, (node.name, writer, count, last)
        found[writer] = count
    return found


def is_connected(group: Group, replica: Node) -> bool:
    """What the primary says of it."""
    found = {each["name"]: each["connected"] for each in group.primary_node.status()["replicas"]}
    return bool(found[replica.name])


def prepared(group: Group, database: str = BUSY) -> None:
    """The database is on every node."""
    if database in visible(group.primary_node):
        return
    prepare(group.path(database))
    caught_up(group.primary_node, group.replicas)


def test_a_replica_killed_again_and_again_in_mid_burst(group: Group) -> None:
    prepared(group)
    victim, numbers = group.replicas[0], random.Random(1)
    with writers(group.path(BUSY), 2, seconds=LONG_S, pause_s=PAUSE_S) as made, Watcher(victim.path(BUSY)) as watcher:
        for _ in range(3):
            start = made[0].acknowledged
            made[0].await_number(start + numbers.randint(50, 400))
            kill(victim)
            made[0].await_number(made[0].acknowledged + 100)
            victim.start()
        for each in made:
            each.end()
        caught_up(group.primary_node, group.replicas)
        assert watcher.finish()["reads"] > 0
    assert_same(group.all, BUSY)


def test_the_applier_killed_again_and_again_in_mid_burst(group: Group) -> None:
    prepared(group)
    victim, numbers = group.replicas[1], random.Random(2)
    with (
        writers(group.path(BUSY), 2, seconds=LONG_S, size=2000, pause_s=PAUSE_S) as made,
        Watcher(victim.path(BUSY)) as watcher,
    ):
        for _ in range(3):
            made[0].await_number(made[0].acknowledged + numbers.randint(20, 200))
            deaths = len(victim.log_lines("applier.died"))
            kill_applier(victim)
            wait_until(lambda: len(victim.log_lines("applier.died")) > deaths, "its death is noticed")  # noqa: B023
            victim.wait_for(BUSY, group.primary_node.position(BUSY))
        for each in made:
            each.end()
        caught_up(group.primary_node, group.replicas)
        seen = watcher.finish()
        assert seen["reads"] > 100
        assert seen["errors"] == 0
    assert_same(group.all, BUSY)


def test_the_connection_cut_in_the_middle_of_records(group: Group) -> None:
    prepared(group)
    line, numbers = group.lines[0], random.Random(3)
    before = line.connections
    with writers(group.path(BUSY), 1, seconds=LONG_S, size=20_000) as made:
        for _ in range(5):
            line.cut_after(numbers.randint(1, 400_000))
            wait_until(lambda: not line.is_cut_pending, "the line is cut")
        made[0].end()
    assert line.connections >= before + 4
    assert_same(group.all, BUSY)


def test_a_big_record_cut_again_and_again_comes_through(group: Group) -> None:
    prepared(group)
    line = group.lines[0]
    with Session(group.path(BUSY)) as writer:
        writer.send("INSERT INTO entry VALUES ('big', 1, randomblob(15000000))")
        for size in (1, 1_000, 100_000, 1_000_000, 7_000_000):
            line.cut_after(size)
            wait_until(lambda: not line.is_cut_pending, "the line is cut")
        writer.receive()
    assert_same(group.all, BUSY)


def test_a_silent_line_is_given_up_and_a_slow_one_is_not(group: Group) -> None:
    prepared(group)
    replica, line = group.replicas[0], group.lines[0]
    with writers(group.path(BUSY), 1, seconds=LONG_S) as made:
        made[0].await_number(made[0].acknowledged + 50)
        connections = line.connections
        line.stall()
        wait_until(
            lambda: replica.status()["reason"] == "not connected to the primary", "the replica notices", 5 * TIMEOUT_S
        )
        wait_until(lambda: not is_connected(group, replica), "the primary notices", 5 * TIMEOUT_S)
        line.go_on()
        wait_until(lambda: replica.status()["reason"] == "", "the replica is back")
        assert line.connections > connections
        connections = line.connections
        line.delay_s, line.rate_bytes_s = 0.05, 300_000
        end = time.monotonic() + 2 * TIMEOUT_S
        while time.monotonic() < end:
            made[0].await_number(made[0].acknowledged + 1)
            time.sleep(0.1)
        made[0].end()
        line.delay_s, line.rate_bytes_s = 0.0, 0
        assert line.connections == connections, "a slow line is not a dead one"
    assert_same(group.all, BUSY)


def test_a_replica_joins_under_load(make_group: MakeGroup) -> None:
    group = make_group(1)
    group.start()
    prepare(group.path(BUSY))
    run_sql(
        group.path(BUSY),
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        " INSERT INTO entry SELECT 'x', i, randomblob(1500) FROM n;",
    )
    group.path("sub").mkdir()
    make_database(group.path("sub/quiet.db"), rows=1000)
    with writers(group.path(BUSY), 2, seconds=LONG_S, pause_s=PAUSE_S) as made:
        made[0].await_number(50)
        late = group.join()
        group.lines[-1].rate_bytes_s = 20_000_000
        late.start(wait=False)
        wait_until(lambda: group.lines[-1].passed_bytes > 5_000_000, "pages are on their way")
        run_sql(group.path(BUSY), "PRAGMA wal_checkpoint(PASSIVE)")
        group.lines[-1].cut()
        group.lines[-1].rate_bytes_s = 0
        late.wait_ready()
        for each in made:
            each.await_number(each.acknowledged + 50)
            each.end()
    assert_same(group.all)


def test_a_clean_restart_of_the_primary_loses_nothing(group: Group) -> None:
    prepared(group)
    before = rows(group.primary_node)
    with writers(group.path(BUSY), 2, seconds=LONG_S, pause_s=PAUSE_S) as made:
        made[0].await_number(before.get("w0", 0) + 200)
        group.primary_node.stop()
        last = {each.name: each.join() for each in made}
        assert all(each.stopped_by for each in made)
    group.primary_node.start()
    found = rows(group.primary_node)
    for name, number in last.items():
        assert number <= found.get(name, 0) <= number + 1
    with writers(group.path(BUSY), 2, count=100) as made:
        for each in made:
            each.finish()
    assert_same(group.all, BUSY)


def test_the_primary_killed_in_mid_burst_keeps_what_it_acknowledged(group: Group) -> None:
    prepared(group)
    for _ in range(2):
        before = rows(group.primary_node)
        with (
            writers(group.path(BUSY), 3, seconds=LONG_S, pause_s=PAUSE_S) as made,
            Watcher(group.replicas[0].path(BUSY)) as watcher,
        ):
            for each in made:
                # Who has not opened the database by the time of the kill could not do so any more.
                each.await_number(before.get(each.name, 0) + 1)
            made[0].await_number(before.get("w0", 0) + 200)
            kill(group.primary_node)
            last = {each.name: each.join() for each in made}
            group.primary_node.start()
            found = rows(group.primary_node)
            for name, number in last.items():
                assert number <= found.get(name, 0) <= number + 1
            caught_up(group.primary_node, group.replicas)
            watcher.finish()
        assert rows(group.replicas[0]) == found
    assert_same(group.all, BUSY)


def test_a_replica_whose_data_directory_is_deleted_gets_everything_again(group: Group) -> None:
    prepared(group)
    victim = group.replicas[1]
    for is_clean in (True, False):
        if is_clean:
            victim.stop()
        else:
            kill(victim)
        forget_data(victim)
        with Writer(group.path(BUSY), count=200) as writer:
            victim.start()
            writer.finish()
    assert_same(group.all)


def test_a_stopped_replica_does_not_slow_commits(make_group: MakeGroup) -> None:
    group = make_group(2).start()
    prepared(group)

    def commits() -> int:
        with Writer(group.path(BUSY), seconds=3) as writer:
            before = rows(group.primary_node).get("w", 0)
            return writer.finish() - before

    commits()
    found: list[tuple[int, int]] = []
    # With one replica less to feed it should rather be faster. The machine is shared: what is slow once is tried again.
    while not found or found[-1][1] <= found[-1][0] * 0.5:
        assert len(found) < 4, found
        alone = commits()
        group.replicas[0].signal(signal.SIGSTOP)
        found.append((alone, commits()))
        group.replicas[0].signal(signal.SIGCONT)
        caught_up(group.primary_node, group.replicas)
    assert_same(group.all, BUSY)


def test_a_replica_that_was_away_too_long_gets_a_snapshot(make_group: MakeGroup) -> None:
    group = make_group(1, age="1s", size="8MiB").start()
    prepared(group)
    replica = group.replicas[0]
    with Session(replica.path(BUSY)) as reader:
        reader.run("BEGIN")
        reader.run("SELECT count(*) FROM entry")
        replica.signal(signal.SIGSTOP)
        with Session(group.path(BUSY)) as writer:
            for number in range(50):
                writer.run("INSERT INTO entry VALUES ('x', ?, randomblob(1000000))", number + 1)
            wait_until(lambda: group.primary_node.log_lines("log_trimmed"), "the log is trimmed", 90)
        replica.signal(signal.SIGCONT)
        replica.wait_for(BUSY, group.primary_node.position(BUSY))
        assert replica.log_lines("snapshot_installed")
        assert reader.run("SELECT count(*) FROM entry") == [(0,)], "a snapshot disturbs no reader"
        reader.run("COMMIT")
        assert reader.run("SELECT count(*) FROM entry") == [(50,)]
    assert_same(group.all)


@pytest.mark.parametrize("page_size", [4096, 512])
def test_a_replica_ahead_of_a_primary_that_lost_its_data_converges_and_says_so(
    make_group: MakeGroup, page_size: int
) -> None:
    group = make_group(1).start()
    prepared(group)
    replica = group.replicas[0]
    with writers(group.path(BUSY), 1, count=300) as made:
        made[0].finish()
    caught_up(group.primary_node, group.replicas)
    kill(group.primary_node)
    forget_data(group.primary_node)
    with Session(replica.path(BUSY)) as reader:
        assert reader.run("SELECT count(*) FROM entry") == [(300,)]
        group.primary_node.start()
        prepare(group.path(BUSY), page_size)
        run_sql(group.path(BUSY), "INSERT INTO entry VALUES ('new', 1, 'x');")
        position = group.primary_node.position(BUSY)
        caught_up(group.primary_node, group.replicas)
        code, body = replica.get(f"/wait?db={BUSY}&txid={position[:16]}&timeout=5s")
        assert (code, body["txid"]) == (200, position[:16])
        assert rows(replica) == {"new": 1}
        # Nothing that is not there yet is announced, although this node once was further.
        ahead = int(position[:16], 16) + 5
        assert replica.get(f"/wait?db={BUSY}&txid={ahead:x}&timeout=300ms")[0] == 504
        with Writer(group.path(BUSY), count=20) as writer:
            writer.finish()
        replica.wait_for(BUSY, group.primary_node.position(BUSY))
        assert rows(replica) == {"new": 1, "w": 20}
    assert_same(group.all)
    assert list((replica.data / "diverged").iterdir()), "what the primary has not is kept"
    assert [line for line in replica.log.splitlines() if " warning" in line and "log_set_aside" in line]
