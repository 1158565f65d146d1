"""A database that is deleted, with or without what SQLite has left beside it, and made again under its name."""

from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, run_sql

pytestmark = pytest.mark.timeout(150)

ROUNDS: Final = 4
BESIDE: Final = ("-wal", "-shm")


def delete(node: Node, *, with_side_files: bool) -> None:
    path = node.path()
    for suffix in ("", *(BESIDE if with_side_files else ())):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def make(node: Node, number: int) -> None:
    run_sql(node.path(), "PRAGMA journal_mode=WAL; CREATE TABLE t (n)")
    for value in range(number, number + 5):
        run_sql(node.path(), "INSERT INTO t VALUES (?)", value)


def numbers(node: Node) -> list[int]:
    return [n for (n,) in run_sql(node.path(), "SELECT n FROM t ORDER BY rowid", mode="ro")]


@pytest.mark.parametrize("with_side_files", [False, True])
@pytest.mark.parametrize("on_replica", ["refuse", "forward"])
def test_what_is_made_again_is_new_on_every_node(nodes: Nodes, on_replica: str, with_side_files: bool) -> None:
    primary = nodes.primary("p", writes={"on_replica": on_replica})
    replica = nodes.replica(primary, "r", writes={"on_replica": on_replica})
    for number in range(0, 10 * ROUNDS, 10):
        make(primary, number)
        replica.wait_for("app.db", primary.position())
        expected = [*range(number, number + 5)]
        if on_replica == "forward":
            # The primary's applier has the database open from now on, too.
            run_sql(replica.path(), "INSERT INTO t VALUES (?)", number + 5, mode="rw")
            expected.append(number + 5)
        assert numbers(primary) == numbers(replica) == expected
        if number < 10 * (ROUNDS - 1):
            delete(primary, with_side_files=with_side_files)
    assert_same([primary, replica], "app.db")


def test_whoever_still_has_the_old_one_open_changes_nothing_of_the_new(nodes: Nodes) -> None:
    primary = nodes.primary("p")
    replica = nodes.replica(primary, "r")
    make(primary, 0)
    with Session(primary.path()) as old:
        assert old.run("SELECT count(*) FROM t") == [(5,)]
        delete(primary, with_side_files=False)
        make(primary, 10)
        with pytest.raises(SqlError):
            old.run("INSERT INTO t VALUES (99)")
        for value in range(15, 20):
            run_sql(primary.path(), "INSERT INTO t VALUES (?)", value)
    replica.wait_for("app.db", primary.position())
    assert numbers(primary) == numbers(replica) == [*range(10, 20)]
    assert_same([primary, replica], "app.db")
