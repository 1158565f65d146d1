"""The write lock and commits on a real mount of a primary: the first changes nothing of what the daemon logs, and each
of the others is one transaction in it, in every journal mode.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.applier.protocol import Committed, Held, Hold, Lock, Locked, LockRefused, Message, Unhold, Unlock
from tests.applier.applications import application, busy_writer
from tests.applier.forwarding import answer_to, commit, forwarded
from tests.applier.support import Child, rows
from tests.support.nodes import Node, Nodes

pytestmark = pytest.mark.timeout(120)

MODES = ("WAL", "DELETE", "TRUNCATE", "PERSIST")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    made = Nodes()
    try:
        yield made.standalone()
    finally:
        problems = made.tear_down()
    assert not problems, problems


@pytest.fixture
def mounted(node: Node) -> Iterator[Child]:
    """An applier beside the node's own: to the primary it is an application like any other."""
    with Child(node.mount) as running:
        yield running


def lock(child: Child, path: Path, limit_ms: int = 3000) -> Message:
    child.send(Lock(path.name, limit_ms))
    return child.receive()


@pytest.mark.parametrize("mode", MODES)
def test_the_lock_is_had_and_given_back_and_nothing_is_logged(node: Node, mounted: Child, mode: str) -> None:
    path = node.path(f"{mode}.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchall() == [(mode.lower(),)]
        connection.execute("CREATE TABLE t (n)")
    at = node.position(path.name)
    assert lock(mounted, path) == Locked(path.name)
    with application(path) as hasty, application(path, 5) as patient:
        assert hasty.run("INSERT INTO t VALUES (1)") == "SQLITE_BUSY"
        patient.begin("INSERT INTO t VALUES (2)")
        assert hasty.run("SELECT n FROM t") == []
        assert node.position(path.name) == at
        mounted.send(Unlock(path.name))
        assert patient.end() == []
        assert hasty.run("BEGIN IMMEDIATE") == []
        assert lock(mounted, path, 100) == LockRefused(path.name, hasty.described)
        assert hasty.run("ROLLBACK") == []
        hasty.run("PRAGMA cache_size=5")
        hasty.run("BEGIN")
        hasty.run(
            "WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 8000) "
            "INSERT INTO t SELECT randomblob(900) FROM i"
        )
        at = node.position(path.name)
    # It died in a transaction that was too long to be held in memory.
    assert lock(mounted, path) == Locked(path.name)
    assert rows(path, "SELECT n FROM t") == [(2,)]
    mounted.send(Unlock(path.name))
    assert node.position(path.name) == at
    with busy_writer(path), busy_writer(path):
        for _ in range(5):
            assert lock(mounted, path) == Locked(path.name)
            at = node.position(path.name)
            count = rows(path, "SELECT count(*) FROM t")
            assert node.position(path.name) == at
            assert rows(path, "SELECT count(*) FROM t") == count
            mounted.send(Unlock(path.name))
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


LONG = (
    "WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 8000) "
    "INSERT INTO t SELECT randomblob(900) FROM i"
)


def txid(node: Node, path: Path) -> int:
    return int(str(node.position(path.name)).partition("/")[0], 16)


@pytest.mark.parametrize(
    ("mode", "page_size"),
    [*((mode, 4096) for mode in MODES), ("WAL", 512), ("DELETE", 512), ("WAL", 65536), ("DELETE", 65536)],
)
def test_each_commit_is_one_transaction_of_the_log(node: Node, mounted: Child, mode: str, page_size: int) -> None:
    path = node.path(f"commit-{mode}-{page_size}.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE t (n)")
    with application(path, 5) as app:
        for number in range(3):
            at = txid(node, path)
            commit(mounted, path, "INSERT INTO t VALUES (zeroblob(3000))")
            assert txid(node, path) == at + 1
            assert app.run("SELECT count(*) FROM t") == [(2 * number + 1,)]
            assert app.run("INSERT INTO t VALUES (2)") == []
        at = txid(node, path)
        mounted.send(Hold(path.name, 1, 2000))
        while not isinstance(mounted.receive(), Held):
            pass
        for statement in (LONG, "DELETE FROM t WHERE rowid > 4", "VACUUM"):
            commit(mounted, path, statement)
            at += 1
            assert txid(node, path) == at
        mounted.send(Unhold(path.name))
        assert app.run("INSERT INTO t VALUES (4)") == []
        assert app.run("PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT count(*) FROM t") == [(5,)]
    assert txid(node, path) == at + 1


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_new_database_is_logged_from_its_first_transaction_on(node: Node, mounted: Child, mode: str) -> None:
    path = node.path(f"new-{mode}.db")
    wanted = forwarded(node.path("none.db"), f"PRAGMA journal_mode={mode}", "CREATE TABLE t (n)", name=path.name)
    assert answer_to(mounted, wanted) == Committed(path.name, wanted.number)
    assert txid(node, path) == 1
    commit(mounted, path, "INSERT INTO t VALUES (1)")
    assert txid(node, path) == 2
    assert rows(path, "SELECT n FROM t") == [(1,)]
    assert rows(path, "PRAGMA journal_mode") == [(mode.lower(),)]
