"""Writers on every node while the primary changes: what they were told is what happened, once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)
MODES = ("WAL", "DELETE")

WRITER: Final = """
import sqlite3, sys, time
path, name, until = sys.argv[1], sys.argv[2], float(sys.argv[3])
connection = sqlite3.connect(path, isolation_level=None, timeout=5)
number = 0
while time.time() < until:
    number += 1
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (?, ?)", (name, number))
        connection.execute("COMMIT")
        print(number, flush=True)
    except sqlite3.OperationalError:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    time.sleep(0.005)
"""
Written = dict[str, list[int]]


def make(node: DirectedNode, mode: str) -> None:
    run_sql(node.path(), f"PRAGMA journal_mode={mode}; CREATE TABLE t (who, n);")


@contextmanager
def writers(nodes: list[DirectedNode], seconds: float) -> Iterator[Written]:
    """One on each node; at the end what each was told to have committed."""
    until = str(time.time() + seconds)
    processes = {
        node.name: subprocess.Popen(
            [sys.executable, "-c", WRITER, str(node.path()), node.name, until], stdout=subprocess.PIPE, text=True
        )
        for node in nodes
    }
    written: Written = {}
    try:
        yield written
        for name, process in processes.items():
            output, _ = process.communicate(timeout=seconds + 60)
            written[name] = [int(line) for line in output.split()]
    finally:
        for process in processes.values():
            process.kill()


def rows(node: DirectedNode) -> Written:
    found: Written = {}
    for who, number in run_sql(node.path(), "SELECT who, n FROM t ORDER BY who, n", mode="ro"):
        found.setdefault(who, []).append(number)
    return found


def three(forwarding: Direct, mode: str) -> list[DirectedNode]:
    nodes = [forwarding(name) for name in "abc"]
    nodes[0].promote(1)
    for each in nodes[1:]:
        each.follow(nodes[0])
    make(nodes[0], mode)
    for each in nodes[1:]:
        each.wait_for("app.db", nodes[0].position())
    return nodes


def hand_over(old: DirectedNode, new: DirectedNode, epoch: int, others: list[DirectedNode]) -> None:
    """As a keeper does it (node/keeper_handoff.py)."""
    assert old.tell("quiesce", limit_s=10) == {"unyielding": []}
    assert old.tell("acknowledged", node=new.name, limit_s=10) == {"acknowledged": True}
    old.demote()
    new.promote(epoch)
    for each in [*others, old]:
        each.follow(new)
    old.tell("resume")


@pytest.mark.parametrize("mode", MODES)
def test_every_success_is_there_once_on_every_node_through_handoffs(forwarding: Direct, mode: str) -> None:
    nodes = three(forwarding, mode)
    with writers(nodes, 5.0) as written:
        for epoch in range(2, 6):
            time.sleep(0.8)
            old, new = nodes[(epoch - 2) % 3], nodes[(epoch - 1) % 3]
            hand_over(old, new, epoch, [each for each in nodes if each not in (old, new)])
    primary = nodes[(5 - 1) % 3]
    for each in nodes:
        each.wait_for("app.db", primary.position())
    assert all(len(numbers) > 3 for numbers in written.values()), {name: len(each) for name, each in written.items()}
    for each in nodes:
        assert rows(each) == written, each.name
    assert_same([primary, *(each for each in nodes if each is not primary)])


def is_done(session: Session, sql: str) -> bool:
    """False when the database was locked."""
    try:
        session.run(sql)
    except SqlError as error:
        if error.code != "SQLITE_BUSY":
            raise
        return False
    return True


@pytest.mark.parametrize("mode", MODES)
def test_a_connection_from_before_writes_on_through_the_new_primary(forwarding: Direct, mode: str) -> None:
    a, b, c = three(forwarding, mode)
    with Session(a.path()) as old:
        old.run("INSERT INTO t VALUES ('a', 1)")
        old.run("BEGIN")
        assert old.run("SELECT count(*) FROM t") == [(1,)]
        hand_over(a, b, 2, [c])
        # Begun to read on the primary, ended as a write on the replica. Whoever reads already is told at once that
        # another has the lock (sqlite3BtreeBeginTrans): the applier, which makes the first WAL.
        wait_until(lambda: is_done(old, "INSERT INTO t VALUES ('a', 2)"), "it gets the write lock")
        old.run("COMMIT")
        assert old.run("SELECT count(*) FROM t") == [(2,)]
    wait_until(lambda: rows(b) == {"a": [1, 2]}, "the new primary has it")
    a.wait_for("app.db", b.position())
    c.wait_for("app.db", b.position())
    assert_same([b, a, c])


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_that_is_held_when_its_node_becomes_primary_is_committed_there(forwarding: Direct, mode: str) -> None:
    a, b, _ = three(forwarding, mode)
    with Session(b.path()) as held:
        held.run("INSERT INTO t VALUES ('b', 1)")
        b.wait_for("app.db", a.position())
        # Nothing is unlaid any more (store.unlaid).
        time.sleep(1)
        position = b.position()
        a.kill()
        held.send("INSERT INTO t VALUES ('b', 2)")
        time.sleep(0.5)
        assert b.position() == position
        b.promote(2)
        held.receive()
        assert held.run("SELECT n FROM t") == [(1,), (2,)]
        held.run("INSERT INTO t VALUES ('b', 3)")
    assert rows(b) == {"b": [1, 2, 3]}


def test_who_leads_at_the_second_attempt_with_a_held_commit_takes_those_of_other_nodes(forwarding: Direct) -> None:
    a, b, c = three(forwarding, "WAL")
    run_sql(a.path("other.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t (n)")
    b.wait_for("other.db", a.position("other.db"))
    with Session(b.path()) as reader, Session(b.path()) as held, Session(b.path("other.db")) as other:
        # The WAL cannot be folded: a new applier would get the newest transaction again.
        reader.run("BEGIN")
        reader.run("SELECT * FROM t")
        for name, session in (("app.db", held), ("other.db", other)):
            run_sql(a.path(name), "INSERT INTO t (n) VALUES (1)")
            b.wait_for(name, a.position(name))
            session.run("SELECT * FROM t")
        a.kill()
        held.send("INSERT INTO t VALUES ('b', 2)")
        time.sleep(0.5)
        b.unreadable.touch()
        assert "cannot be gone on with" in b.tell("promote", epoch=2)["error"]
        b.unreadable.unlink()
        b.promote(2)
        held.receive()
        c.follow(b)
        run_sql(c.path(), "INSERT INTO t VALUES ('c', 3)", mode="rw")
        assert held.run("SELECT n FROM t") == [(1,), (2,), (3,)]
    c.wait_for("app.db", b.position())
    assert_same([b, c])


@pytest.mark.parametrize("mode", MODES)
def test_a_writer_that_dies_before_it_has_published_its_commit_is_in_nobodys_way(forwarding: Direct, mode: str) -> None:
    """The kernel keeps a process that is killed until its write is answered; it publishes nothing after that."""
    a, b, _ = three(forwarding, mode)
    for number in range(4):
        dying = Session(b.path())
        dying.run("SELECT count(*) FROM t")
        assert a.process is not None
        a.process.send_signal(signal.SIGSTOP)
        try:
            dying.send("INSERT INTO t VALUES ('dead', ?)", number)
            time.sleep(0.3)
            os.kill(dying.pid, signal.SIGKILL)
        finally:
            a.process.send_signal(signal.SIGCONT)
        dying.kill()

        def writes(number: int = number) -> bool:
            with contextlib.suppress(SqlError):
                run_sql(b.path(), f"INSERT INTO t VALUES ('alive', {number})", mode="rw")
                return True
            return False

        wait_until(writes, "another application of the node writes")
    b.wait_for("app.db", a.position())
    assert rows(a)["alive"] == list(range(4))
    assert rows(b) == rows(a)
    assert rows(a).get("dead", []) == list(range(4))
