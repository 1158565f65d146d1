"""A database file that no log knows, and another node that makes one of that name: it is kept, and named."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests.cluster.comparing import caught_up
from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.roles.test_roles import ids, insert, make
from tests.support.sql import Session, SqlError, run_sql

pytestmark = pytest.mark.timeout(110)


def put(node: DirectedNode) -> None:
    """Leave a database among the files of a node that does not run."""
    connection = sqlite3.connect(node.data / "files" / "app.db")
    connection.execute("CREATE TABLE precious (x)")
    connection.execute("INSERT INTO precious VALUES ('the only copy')")
    connection.commit()
    connection.close()


def kept(node: DirectedNode) -> list[Path]:
    return sorted((node.data / "unknown").rglob("app.db"))


def assert_kept(node: DirectedNode) -> None:
    [path] = kept(node)
    assert path == node.data / "unknown" / "app.db.1" / "app.db"
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT x FROM precious").fetchall() == [("the only copy",)]
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    [line] = node.log_lines("unknown_file_set_aside")
    assert str(path.parent) in line


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("reads", [False, True])
def test_a_database_of_the_primary_sets_an_unknown_file_aside(directed: Direct, mode: str, reads: bool) -> None:
    a, b = directed("a"), directed("b")
    a.promote(1)
    b.stop()
    put(b)
    b.start()
    with Session(b.path(), mode="ro") as session:
        if reads:
            assert session.run("SELECT x FROM precious") == [("the only copy",)]
        make(a, mode)
        insert(a, 1)
        b.follow(a)
        caught_up(a, [b])
    assert ids(b) == [1]
    assert_kept(b)
    for number in range(2):
        b.stop()
        b.start()
        b.follow(a)
        insert(a, 2 + number)
        caught_up(a, [b])
    assert ids(b) == [1, 2, 3]
    assert_kept(b)


@pytest.mark.parametrize("rows", [1, 1500])
def test_so_it_is_while_an_application_changes_it(forwarding: Direct, rows: int) -> None:
    """1,500 rows of 4 KB: more than is held in memory, so the file has some of them."""
    a, b = forwarding("a"), forwarding("b")
    a.promote(1)
    b.stop()
    put(b)
    b.start()
    b.follow(a)
    with Session(b.path()) as session:
        session.run("PRAGMA cache_size=10")
        session.run("BEGIN IMMEDIATE")
        for _ in range(rows):
            session.run("INSERT INTO precious VALUES (randomblob(4000))")
        make(a, "WAL")
        insert(a, 1)
        with pytest.raises(SqlError):
            session.run("COMMIT")
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
    caught_up(a, [b])
    assert ids(b) == [1]
    assert_kept(b)
    run_sql(b.path(), "INSERT INTO t VALUES (2, 'x')")
    caught_up(a, [b])
    assert ids(a) == [1, 2]


@pytest.mark.parametrize("synchronous", ["FULL", "OFF"])
def test_a_transaction_that_a_crash_cut_is_undone_in_an_unknown_file(directed: Direct, synchronous: str) -> None:
    """Also where the application has made its journal durable itself."""
    a = directed("a")
    a.stop()
    put(a)
    before = (a.data / "files" / "app.db").read_bytes()
    a.start()
    a.promote(1)
    # Then the application's own fsync makes the name of its journal durable, too.
    run_sql(a.path("other.db"), "SELECT count(*) FROM sqlite_schema")
    with Session(a.path()) as session:
        session.run(f"PRAGMA synchronous={synchronous}")
        session.run("PRAGMA cache_size=1")
        session.run("BEGIN IMMEDIATE")
        session.run("UPDATE precious SET x = 'lost'")
        session.run("INSERT INTO precious VALUES (randomblob(4000))", times=50)
        assert (a.data / "files" / "app.db").read_bytes() != before
        a.kill()
        session.kill()
    a.start()
    assert (a.data / "files" / "app.db").read_bytes() == before


def test_an_unknown_file_that_an_application_changes_first_is_the_database(forwarding: Direct) -> None:
    a, b = forwarding("a"), forwarding("b")
    a.promote(1)
    b.stop()
    put(b)
    b.start()
    b.follow(a)
    run_sql(b.path(), "INSERT INTO precious VALUES ('another one')")
    caught_up(a, [b])
    for node in (a, b):
        assert run_sql(node.path(), "SELECT x FROM precious") == [("the only copy",), ("another one",)]
    assert not kept(b)
