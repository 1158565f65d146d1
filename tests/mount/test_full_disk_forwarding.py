"""The data directory of a replica whose applications write fills up: nothing is half committed, and it goes on."""

import contextlib
from pathlib import Path

import pytest

from tests.mount.test_full_disk import fill, small_disk  # noqa: F401  a fixture
from tests.support.nodes import Nodes
from tests.support.sql import Session, SqlError, integrity, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)
REFUSALS = 4


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_transactions_fail_while_the_disk_is_full_and_go_on_when_there_is_room(
    nodes: Nodes,
    small_disk: Path,  # noqa: F811
    mode: str,
) -> None:
    a = nodes.primary()
    b = nodes.replica(a, data=small_disk / "data", writes={"timeout": "2s"})
    run_sql(a.path(), f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    b.wait_for("app.db", a.position())
    committed: list[int] = []
    number = failed = 0

    def insert(session: Session) -> bool:
        nonlocal number
        number += 1
        try:
            session.run("INSERT INTO t VALUES (?, randomblob(30000))", number)
        except SqlError:
            return False
        committed.append(number)
        return True

    with Session(b.path()) as session, Session(b.path(), mode="ro") as reader:
        for _ in range(5):
            assert insert(session)
        ballast = fill(small_disk)
        while failed < REFUSALS:
            failed = 0 if insert(session) else failed + 1
            assert set(committed) <= {row[0] for row in reader.run("SELECT id FROM t")}
        assert b.get("/livez")[0] == 200
        ballast.unlink()
        wait_until(lambda: insert(session), "it goes on", 30)
        for _ in range(5):
            wait_until(lambda: insert(session), "and on")
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
    b.wait_for("app.db", a.position())
    found = [row[0] for row in run_sql(a.path(), "SELECT id FROM t ORDER BY id", mode="ro")]
    # One whose outcome could not be heard may be there, too.
    assert set(committed) <= set(found)
    assert found == [row[0] for row in run_sql(b.path(), "SELECT id FROM t ORDER BY id", mode="ro")]
    assert integrity(a.path()) == integrity(b.path()) == "ok"
