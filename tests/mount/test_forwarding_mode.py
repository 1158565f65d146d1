"""A database in rollback mode: what page 1 says of the mode in a replica's WAL is not passed on."""

from pathlib import Path

import pytest

from tests.mount.twin_node import TwinNode
from tests.support.sql import Session, SqlError, integrity, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)


@pytest.fixture
def node(twin_node: TwinNode) -> TwinNode:
    """A replica with a database in rollback mode, made there, with a table t."""
    node = twin_node
    run_sql(node.path(), "PRAGMA journal_mode=DELETE; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    # The first transaction that the applier brings in makes the WAL.
    node.arrive()
    node.wait_applied()
    assert run_sql(node.path(), "PRAGMA journal_mode", mode="ro") == [("wal",)]
    return node


def mode(node: TwinNode) -> str:
    """Of the newest transaction in the log."""
    (found,) = (each["journal_mode"] for each in node.status()["databases"] if each["name"] == node.database)
    return str(found)


def versions(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(20)[18:]


def assert_rolls_back(node: TwinNode) -> None:
    """The log and the file are those of a database in rollback mode, and equal."""
    assert mode(node) == "rollback"
    node.wait_applied()
    assert integrity(node.path()) == "ok"
    wait_until(lambda: versions(node.data / "files" / node.database) == b"\1\1", "page 1 is laid over")
    verified = node.verify()
    assert verified["sound"], verified


@pytest.mark.parametrize("how", ["commit", "bump"])
def test_what_is_made_anew_stays_in_rollback_mode_whether_the_primary_counts_it_or_takes_it_as_it_is(
    node: TwinNode, how: str
) -> None:
    node.answer(how)
    with Session(node.path(), mode="rw") as session:
        for number in range(3):
            session.run("INSERT INTO t (v) VALUES (randomblob(9000))")
            session.run("VACUUM")
            assert mode(node) == "rollback"
            session.run("INSERT INTO t (v) VALUES (?)", number)
            # What does not hold page 1 waits for the applier, which lays page 1 over.
            node.wait_applied()
        assert session.run("SELECT count(*) FROM t") == [(6,)]
    assert_rolls_back(node)


@pytest.mark.parametrize("length", [7, 20_000])
def test_a_commit_is_asked_to_be_durable_at_once_as_nothing_asks_afterwards(node: TwinNode, length: int) -> None:
    perhaps = "perhaps".ljust(length)
    with Session(node.path(), mode="rw") as session:
        session.run("PRAGMA synchronous=NORMAL")
        node.seen()
        session.run("INSERT INTO t (v) VALUES ('first')")
        assert [each[3] for each in node.seen() if each[0] == "commit"] == [True]
        before = int(node.position().split("/")[0], 16)
        node.answer("undurable")
        with pytest.raises(SqlError) as error:
            session.run("INSERT INTO t (v) VALUES (?)", perhaps)
        assert error.value.code.startswith("SQLITE_IOERR"), error.value
        assert len(node.log_lines("commit_unknown")) == 1
        assert int(node.position().split("/")[0], 16) == before + 1
        node.answer("commit")
        wait_until(lambda: session.run("SELECT v FROM t") == [("first",), (perhaps,)], "it is seen")
        session.run("INSERT INTO t (v) VALUES ('after')")
        assert session.run("SELECT v FROM t") == [("first",), (perhaps,), ("after",)]
    assert_rolls_back(node)


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_a_new_primary_that_still_reads_it_through_a_wal_makes_each_commit_durable(
    node: TwinNode, synchronous: str
) -> None:
    with Session(node.path(), mode="rw") as session:
        session.run(f"PRAGMA synchronous={synchronous}")
        session.run("SELECT * FROM t")
        node.lead()
        for _ in range(3):
            session.run("INSERT INTO t (v) VALUES (1)")
            assert session.run("PRAGMA journal_mode") == [("wal",)]
            assert node.is_durable(node.database)
        session.run("INSERT INTO t (v) VALUES (randomblob(2000000))")
        assert node.is_durable(node.database)
    assert_rolls_back(node)


def test_a_new_primary_that_still_reads_it_through_a_wal_refuses_to_change_its_mode(node: TwinNode) -> None:
    with Session(node.path(), mode="rw") as session:
        session.run("INSERT INTO t (v) VALUES ('a replica')")
        node.lead()
        session.run("INSERT INTO t (v) VALUES ('a primary')")
        with pytest.raises(SqlError) as error:
            session.run("VACUUM")
        assert error.value.code.startswith("SQLITE_IOERR"), error.value
        assert "in rollback mode" in node.log
        session.run("INSERT INTO t (v) VALUES ('goes on')")
    assert mode(node) == "rollback"
    # With the last connection from before the promotion the WAL goes.
    wait_until(lambda: run_sql(node.path(), "PRAGMA journal_mode", mode="rw") == [("delete",)], "the WAL is gone", 10)
    run_sql(node.path(), "VACUUM")
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(3,)]
    assert_rolls_back(node)
