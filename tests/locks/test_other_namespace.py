"""Applications of processes that the daemon cannot see: it runs in a PID namespace of its own, as in a sidecar."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.locks.conftest import FAST
from tests.locks.opener import Opener
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, run_sql
from tests.support.waiting import wait_until

FORWARDS = {"on_replica": "forward", "timeout": "3s"}
INSERT = "INSERT INTO t (node) VALUES (?)"


@pytest.fixture
def pair(nodes: Nodes) -> Iterator[tuple[Node, Node]]:
    """A primary, and a replica of which every application is a stranger."""
    a = nodes.primary("a", replication=FAST, writes=FORWARDS)
    run_sql(a.path(), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, node TEXT);")
    b = nodes.make_replica(a, "b", replication=FAST, writes=FORWARDS)
    b.start(prefix=("unshare", "--pid", "--fork", "--kill-child=SIGTERM"))
    b.wait_for("app.db", a.position())
    yield a, b
    for child in Path(f"/proc/{b.pid}/task/{b.pid}/children").read_text(encoding="ascii").split():
        os.kill(int(child), signal.SIGTERM)
    b.wait_ended()


def locked(node: Node) -> int:
    """How often anybody has been given the database's lock."""
    return len(node.log_lines("database_locked"))


def test_the_lock_is_had_and_given_back(pair: tuple[Node, Node]) -> None:
    a, b = pair
    with Opener(b) as opener:
        assert opener.word(10) == "held"
        run_sql(b.path(), INSERT, "b", mode="rw")
    wait_until(lambda: b.status()["writes"]["locks"] == [], "it is closed")
    assert locked(a) == 1
    run_sql(a.path(), INSERT, "a", mode="rw")


def test_who_waits_asks_seldom_and_a_signal_is_felt_in_the_end(pair: tuple[Node, Node]) -> None:
    a, b = pair
    with Opener(a) as holder:
        holder.wait_held()
        with Opener(b, handles=True) as waiting:
            assert waiting.word(1) == ""
            tokens = {lock["since_ms"] for lock in b.status()["writes"]["locks"]}
            assert waiting.word(1) == ""
            assert {lock["since_ms"] for lock in b.status()["writes"]["locks"]} == tokens
            waiting.signal(signal.SIGUSR1)
            assert waiting.word(10) == "interrupted"
        with Opener(b) as patient:
            # Longer than ``writes.timeout``: Python asks again by itself.
            assert patient.word(5) == ""
            holder.close()
            assert patient.word(10) == "held"


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
def test_a_database_that_is_made_here_takes_transactions_in_every_mode(pair: tuple[Node, Node], mode: str) -> None:
    a, b = pair
    path = b.path("new.db")
    run_sql(path, f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, node TEXT);")
    for _ in range(10):
        with Session(path, mode="rw") as session:
            session.run(f"PRAGMA journal_mode={mode}")
            session.run(INSERT, "b", times=3)
    assert run_sql(a.path("new.db"), "SELECT count(*) FROM t", mode="ro") == [(30,)]
    assert not b.log_lines("transaction_rolled_back")


# Its journal is on the disk by then, and pages are in the file that are not committed.
_DIES = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in ("PRAGMA journal_mode=DELETE", "PRAGMA cache_size=2", "BEGIN IMMEDIATE"):
    connection.execute(statement)
for _ in range(300):
    connection.execute("INSERT INTO t (node) VALUES (hex(zeroblob(1500)))")
os.kill(os.getpid(), 9)
"""


def test_a_transaction_of_a_dead_one_is_rolled_back_by_whoever_comes_next(pair: tuple[Node, Node]) -> None:
    a, b = pair
    run_sql(b.path("new.db"), "PRAGMA journal_mode=DELETE; CREATE TABLE t (id INTEGER PRIMARY KEY, node TEXT);")
    assert subprocess.run([sys.executable, "-c", _DIES, str(b.path("new.db"))], check=False, timeout=30).returncode < 0
    assert b.path("new.db-journal").exists()
    run_sql(a.path("new.db"), INSERT, "a", mode="rw")
    b.wait_for("new.db", a.position("new.db"))
    for node in (a, b):
        assert run_sql(node.path("new.db"), "SELECT node FROM t", mode="ro") == [("a",)]
