"""A node that has a database's lock stands still, dies, is cut off, or loses the database: nobody is stuck, nothing is
lost, and what comes too late is refused as a whole."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.cluster.group import Group
from tests.forward.opener import Opener
from tests.support.nodes import Node
from tests.support.sql import Session, SqlError, refusal, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(115)

LOCK_LIMIT_S: Final = 10.0
"""As the manual says: a lock that is not renewed for so long is over."""
FREE_LIMIT_S: Final = LOCK_LIMIT_S + 15.0
INSERT: Final = "INSERT INTO t (v) VALUES (?)"
HANG_S: Final = 100.0

_names: Final = iter(f"locked{number}.db" for number in range(1000))


@pytest.fixture
def database(group: Group, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database that both nodes have; in the end nobody has its lock, both take transactions and are equal."""
    name = next(_names)
    run_sql(group.path(name), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    replica = group.replicas[0]
    replica.wait_for(name, group.primary_node.position(name))
    failed = request.session.testsfailed
    yield name
    if request.session.testsfailed == failed:
        for node in group.all:
            wait_until(lambda node=node: is_taken(node.path(name), "last"), f"{node.name} writes {name}", FREE_LIMIT_S)  # type: ignore[misc]
        run_sql(group.path(name), INSERT, "the end")
        assert_same(group.all, name)


def is_taken(path: Path, value: str, busy_s: float = 0.2) -> bool:
    try:
        run_sql(path, INSERT, value, busy_s=busy_s, mode="rw")
    except SqlError:
        return False
    return True


def values(path: Path) -> list[str]:
    return [value for (value,) in run_sql(path, "SELECT v FROM t ORDER BY id", mode="ro")]


def stand_still(node: Node) -> None:
    for pid in (node.pid, *node.children()):
        os.kill(pid, signal.SIGSTOP)


def go_on(node: Node) -> None:
    for pid in (node.pid, *node.children()):
        os.kill(pid, signal.SIGCONT)


def test_a_holder_whose_node_stood_still_beyond_the_limit_commits_nothing_until_it_gives_the_lock_back(
    group: Group, database: str
) -> None:
    replica = group.replicas[0]
    with Opener(replica.path(database)) as opener, Session(replica.path(database), mode="rw") as session:
        opener.wait_held()
        session.run(INSERT, "under the lock")
        assert not is_taken(group.path(database), "not now")
        stand_still(replica)
        since = time.monotonic()
        try:
            run_sql(group.path(database), INSERT, "when it was over", busy_s=FREE_LIMIT_S)
            took = time.monotonic() - since
        finally:
            go_on(replica)
        assert took < FREE_LIMIT_S, took
        for number in range(3):
            assert refusal(session, INSERT, f"too late {number}")
        opener.close()
        wait_until(lambda: is_taken(replica.path(database), "given back"), "the replica writes again", FREE_LIMIT_S)
        session.run(INSERT, "the same connection")
    found = values(group.path(database))
    assert found == ["under the lock", "when it was over", "given back", "the same connection"]


def test_a_transaction_that_was_open_when_its_node_stood_still_is_refused_as_a_whole(
    group: Group, database: str
) -> None:
    replica = group.replicas[0]
    with Opener(replica.path(database)) as opener, Session(replica.path(database), mode="rw") as session:
        opener.wait_held()
        session.run("BEGIN IMMEDIATE")
        session.run(INSERT, "half")
        stand_still(replica)
        try:
            run_sql(group.path(database), INSERT, "when it was over", busy_s=FREE_LIMIT_S)
        finally:
            go_on(replica)
        # The statement may still be let in: the transaction is decided about when it commits.
        with contextlib.suppress(SqlError):
            session.run(INSERT, "the other half")
        with pytest.raises(SqlError):
            session.run("COMMIT")
    assert values(group.path(database)) == ["when it was over"]


def test_the_lock_of_a_node_that_is_killed_is_over(group: Group, database: str) -> None:
    replica = group.replicas[0]
    with Opener(replica.path(database)) as opener:
        opener.wait_held()
        replica.kill()
        since = time.monotonic()
        run_sql(group.path(database), INSERT, "when it was over", busy_s=FREE_LIMIT_S)
        assert time.monotonic() - since < FREE_LIMIT_S
    replica.start()
    assert values(group.path(database)) == ["when it was over"]


def test_the_lock_of_a_node_whose_wire_went_dead_is_over_on_both_ends(group: Group, database: str) -> None:
    replica, line = group.replicas[0], group.lines[0]
    with Opener(replica.path(database)) as opener, Session(replica.path(database), mode="rw") as session:
        opener.wait_held()
        session.run(INSERT, "under the lock")
        line.stall()
        try:
            run_sql(group.path(database), INSERT, "when it was over", busy_s=FREE_LIMIT_S)
            assert refusal(session, INSERT, "cut off")
        finally:
            line.cut()
            line.go_on()
        replica.wait_for(database, group.primary_node.position(database))
        assert refusal(session, INSERT, "its lock is lost")
        opener.close()
        wait_until(lambda: is_taken(replica.path(database), "given back"), "the replica writes again", FREE_LIMIT_S)
    assert values(group.path(database)) == ["under the lock", "when it was over", "given back"]


def test_a_database_that_is_dropped_under_a_lock_takes_the_lock_with_it(group: Group, database: str) -> None:
    replica = group.replicas[0]
    with Opener(replica.path(database)) as opener, Session(replica.path(database), mode="rw") as session:
        opener.wait_held()
        session.run(INSERT, "of the old one")
        for each in (database, f"{database}-wal", f"{database}-shm"):
            group.path(each).unlink(missing_ok=True)
        wait_until(lambda: not replica.path(database).exists(), "the replica drops it", FREE_LIMIT_S)
        assert refusal(session, INSERT, "of nothing")
    run_sql(group.path(database), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    replica.wait_for(database, group.primary_node.position(database))
    with Opener(replica.path(database)) as opener:
        opener.wait_held()
        run_sql(replica.path(database), INSERT, "of the new one", mode="rw")
    assert values(group.path(database)) == ["of the new one"]


def test_a_node_that_is_behind_has_the_lock_only_when_it_has_caught_up(group: Group, database: str) -> None:
    replica, line = group.replicas[0], group.lines[0]
    filling = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
    with Session(replica.path(database), mode="rw") as session:
        assert session.run("SELECT count(*) FROM t") == [(0,)]
        line.rate_bytes_s = 1_500_000
        try:
            run_sql(group.path(database), f"{filling} INSERT INTO t (v) SELECT randomblob(1000) FROM n")
            with Opener(replica.path(database)) as opener:
                opener.wait_held()
                assert session.run("SELECT count(*) FROM t") == [(4000,)]
                session.run("UPDATE t SET v = id", limit_s=90)
                session.run(INSERT, "mine")
        finally:
            line.rate_bytes_s = 0
    question = "SELECT count(*), sum(v) FROM t"
    assert run_sql(group.path(database), question, mode="ro") == [(4001, sum(range(4001)))]


def test_a_node_that_is_cut_off_is_refused_the_lock_in_time(group: Group, database: str) -> None:
    replica, line = group.replicas[0], group.lines[0]
    line.stall()
    try:
        with Opener(replica.path(database)) as opener:
            word = opener.word(3 * LOCK_LIMIT_S)
            assert word.startswith("refused"), word
    finally:
        line.cut()
        line.go_on()
    replica.wait_for(database, group.primary_node.position(database))
