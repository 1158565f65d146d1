"""A node changes its role while applications have its databases open: no remount, no reader interrupted."""

import contextlib
import time
from functools import partial

import pytest

from tests.cluster.comparing import assert_same
from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.support.sql import Session, SqlError, make_database, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)
# A database in each mode: what a change of role does, it does to all at once.
NAMES = {mode: f"{mode}.db" for mode in ("WAL", "DELETE", "TRUNCATE", "PERSIST")}
REFUSED = {"SQLITE_IOERR_WRITE", "SQLITE_READONLY", "SQLITE_IOERR_FSYNC", "SQLITE_CANTOPEN"}


def pair(directed: Direct) -> tuple[DirectedNode, DirectedNode]:
    """a is primary of epoch 1, b follows it."""
    a, b = directed("a"), directed("b")
    a.promote(1)
    b.follow(a)
    return a, b


def switch(old: DirectedNode, new: DirectedNode, epoch: int) -> None:
    """The new node has everything, and takes over."""
    for each in old.status()["databases"]:
        new.wait_for(each["name"], f"{each['txid']}/{each['checksum']}")
    old.demote()
    new.promote(epoch)
    old.follow(new)


def make(node: DirectedNode, mode: str, name: str = "app.db") -> None:
    run_sql(node.path(name), f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")


def insert(node: DirectedNode, number: int, name: str = "app.db") -> None:
    run_sql(node.path(name), f"INSERT INTO t VALUES ({number}, 'row {number}')", mode="rw")


def ids(node: DirectedNode, name: str = "app.db") -> list[int]:
    return [row[0] for row in run_sql(node.path(name), "SELECT id FROM t ORDER BY id", mode="ro")]


def test_roles_go_back_and_forth_and_both_nodes_stay_equal(directed: Direct) -> None:
    a, b = pair(directed)
    for mode, name in NAMES.items():
        make(a, mode, name)
    number = 0
    nodes = [a, b]
    for epoch in range(2, 8):
        for _ in range(3):
            number += 1
            for name in NAMES.values():
                insert(nodes[0], number, name)
        switch(nodes[0], nodes[1], epoch)
        nodes.reverse()
    number += 1
    for name in NAMES.values():
        insert(nodes[0], number, name)
        assert ids(nodes[0], name) == list(range(1, number + 1))
    assert_same(nodes)
    for name in NAMES.values():
        assert ids(nodes[1], name) == list(range(1, number + 1))
    assert not [line for node in nodes for line in node.log_lines("snapshot_begins")]
    assert [node.status()["epoch"] for node in nodes] == [7, 7]


def test_a_connection_from_before_gets_an_error_at_its_next_commit_and_nothing_of_it_is_seen(directed: Direct) -> None:
    a, b = pair(directed)
    with contextlib.ExitStack() as sessions:
        connections = {}
        for mode, name in NAMES.items():
            make(a, mode, name)
            connections[name] = sessions.enter_context(Session(a.path(name)))
            connections[name].run("INSERT INTO t VALUES (1, 'kept')")
        switch(a, b, 2)
        for name, old in connections.items():
            with pytest.raises(SqlError) as error:
                old.run("INSERT INTO t VALUES (2, 'lost')")
            assert error.value.code in REFUSED, name
            insert(b, 3, name)
            a.wait_for(name, b.position(name))
            assert ids(a, name) == [1, 3]
            assert old.run("SELECT id FROM t ORDER BY id") == [(1,), (3,)]
    for name in NAMES.values():
        assert ids(b, name) == [1, 3]
    assert_same([b, a])


def test_a_transaction_that_is_open_during_the_change_is_rolled_back(directed: Direct) -> None:
    a, b = pair(directed)
    with contextlib.ExitStack() as sessions:
        connections = {}
        for mode, name in NAMES.items():
            make(a, mode, name)
            insert(a, 1, name)
            connections[name] = sessions.enter_context(Session(a.path(name)))
            connections[name].run("BEGIN IMMEDIATE")
            connections[name].run("INSERT INTO t VALUES (2, 'lost')")
        switch(a, b, 2)
        for name, old in connections.items():
            insert(b, 3, name)
            with pytest.raises(SqlError):
                old.run("COMMIT")
            with contextlib.suppress(SqlError):
                old.run("ROLLBACK")
            a.wait_for(name, b.position(name))
            assert ids(a, name) == [1, 3]
    assert_same([b, a])


def test_a_writer_that_dies_inside_a_transaction_around_the_change_leaves_nothing(directed: Direct) -> None:
    """3,000 rows of 4 KB: more than is held in memory, so the backing file has uncommitted pages."""
    a, b = pair(directed)
    writers = {}
    for mode, rows in (("WAL", 1), ("WAL", 3000), ("DELETE", 1), ("DELETE", 3000), ("PERSIST", 1)):
        name = f"{mode}-{rows}.db"
        make(a, mode, name)
        insert(a, 1, name)
        writers[name] = old = Session(a.path(name))
        old.run("PRAGMA cache_size=10")
        old.run("BEGIN IMMEDIATE")
        for number in range(2, rows + 2):
            old.send(f"INSERT INTO t VALUES ({number}, randomblob(4000))")
        for _ in range(rows):
            old.receive()
    switch(a, b, 2)
    for name, old in writers.items():
        old.kill()
        insert(b, 100000, name)
        a.wait_for(name, b.position(name))
        assert ids(a, name) == [1, 100000]
    assert_same([b, a])


def test_a_reader_with_an_open_snapshot_is_not_disturbed_by_either_change(directed: Direct) -> None:
    a, b = pair(directed)
    make(a, "WAL")
    insert(a, 1)
    b.wait_for("app.db", a.position())
    with Session(a.path(), mode="ro") as on_a, Session(b.path(), mode="ro") as on_b:
        for reader in (on_a, on_b):
            reader.run("BEGIN")
            assert reader.run("SELECT id FROM t") == [(1,)]
        switch(a, b, 2)
        insert(b, 2)
        a.wait_for("app.db", b.position())
        for reader in (on_a, on_b):
            assert reader.run("SELECT id FROM t") == [(1,)]
            reader.run("COMMIT")
            assert reader.run("SELECT id FROM t") == [(1,), (2,)]
    assert_same([b, a])


def test_what_other_nodes_write_through_the_wal_that_a_promotion_left_is_durable_too(forwarding: Direct) -> None:
    """In rollback mode, whatever ``synchronous`` is: as under the journal that is used when the WAL is gone."""
    a, b = pair(forwarding)
    make(a, "DELETE")
    insert(a, 1)
    b.wait_for("app.db", a.position())
    with Session(b.path(), mode="ro") as reader:
        assert reader.run("SELECT id FROM t") == [(1,)]
        switch(a, b, 2)
        with Session(a.path(), mode="rw") as elsewhere, Session(b.path(), mode="rw") as here:
            for number, session in enumerate((elsewhere, here, elsewhere), 2):
                session.run("PRAGMA synchronous=NORMAL")
                wait_until(partial(_inserts, session, number), "it commits")
                assert b.is_durable()
            assert here.run("PRAGMA journal_mode") == [("wal",)]
        assert reader.run("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,), (4,)]
    assert_same([b, a])


def _inserts(session: Session, number: int) -> bool:
    with contextlib.suppress(SqlError):  # a stale one, or the applier lays page 1 over
        session.run("INSERT INTO t VALUES (?, 'x')", number)
        return True
    return False


def test_no_commit_is_accepted_after_the_fence_and_the_log_has_none(directed: Direct) -> None:
    a, _ = pair(directed)
    make(a, "WAL")
    with Session(a.path()) as session:
        session.run("INSERT INTO t VALUES (1, 'in time')")
        before = a.position()
        a.tell("fence", fence_s=0.0)
        with pytest.raises(SqlError):
            session.run("INSERT INTO t VALUES (2, 'too late')")
        assert a.position() == before
        a.tell("fence", fence_s=60.0)
        session.run("INSERT INTO t VALUES (3, 'again')")
        assert session.run("SELECT id FROM t ORDER BY id") == [(1,), (3,)]


def test_the_fence_stops_every_kind_of_commit(directed: Direct) -> None:
    a = directed("a")
    a.promote(1)
    with contextlib.ExitStack() as sessions:
        connections = {}
        for mode, synchronous in (
            ("WAL", "NORMAL"), ("WAL", "FULL"), ("DELETE", "FULL"), ("TRUNCATE", "NORMAL"), ("PERSIST", "FULL"),
        ):  # fmt: skip
            name = f"{mode}-{synchronous}.db"
            make(a, mode, name)
            connections[name] = sessions.enter_context(Session(a.path(name)))
            connections[name].run(f"PRAGMA synchronous={synchronous}")
            connections[name].run("INSERT INTO t VALUES (1, 'in time')")
        before = {name: a.position(name) for name in connections}
        a.tell("fence", fence_s=-1.0)
        for name, session in connections.items():
            for _ in range(2):
                with pytest.raises(SqlError):
                    session.run("INSERT INTO t VALUES (2, 'too late')")
            assert a.position(name) == before[name]
            assert session.run("SELECT id FROM t") == [(1,)]


def test_writers_wait_in_their_busy_timeout_while_the_role_is_handed_over(directed: Direct) -> None:
    a, b = pair(directed)
    make(a, "WAL")
    make(a, "DELETE", "other.db")
    b.wait_for("other.db", a.position("other.db"))
    with Session(a.path(), busy_s=30) as first, Session(a.path("other.db"), busy_s=30) as second:
        assert a.tell("quiesce", limit_s=10.0) == {"unyielding": []}
        first.send("INSERT INTO t VALUES (1, 'waits')")
        second.send("INSERT INTO t VALUES (1, 'waits')")
        assert a.tell("acknowledged", node="b", limit_s=20.0) == {"acknowledged": True}
        before = [a.position(), a.position("other.db")]
        time.sleep(0.2)  # they would be done by now
        assert [a.position(), a.position("other.db")] == before
        a.tell("resume")
        first.receive()
        second.receive()
    assert ids(a) == ids(a, "other.db") == [1]


def test_who_holds_the_write_lock_is_named(directed: Direct) -> None:
    a = directed("a")
    a.promote(1)
    make(a, "WAL")
    with Session(a.path()) as idle:
        idle.run("BEGIN IMMEDIATE")
        found = a.tell("quiesce", limit_s=0.3)
        assert found["unyielding"] == [f"app.db: process {idle.pid} (python3)"] or str(idle.pid) in str(found)
        a.tell("resume")
        idle.run("INSERT INTO t VALUES (1, 'goes on')")
        idle.run("COMMIT")
    assert ids(a) == [1]


def test_a_node_that_applies_much_is_promoted_only_when_its_readers_see_it_all(directed: Direct) -> None:
    a, b = pair(directed)
    make_database(a.path(), rows=20000)
    for number in range(5):
        run_sql(a.path(), f"UPDATE t SET v = v || '{number}'")
    wait_until(lambda: b.position() == a.position(), "b has logged it")
    a.demote()
    b.promote(2)
    assert run_sql(b.path(), "SELECT count(*) FROM t WHERE v LIKE '%01234'", mode="ro") == [(20000,)]
    a.follow(b)
    insert(b, 30000)
    assert_same([b, a])
