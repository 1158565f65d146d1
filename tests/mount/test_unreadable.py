"""A disk of the primary that answers one read in three with an error: nothing is committed by half."""

import sys
from pathlib import Path

import pytest

from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, integrity, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)
TRIES = 80
# Each row has pages of its own, which are free when it is replaced by a short one.
CHANGE = "INSERT OR REPLACE INTO t VALUES (?, ?, randomblob(?))"


class Writer:
    """An application of a node, which opens the database anew after each error. ``committed``: row and last number."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._session: Session | None = None
        self.committed: dict[int, int] = {}
        self.refused = 0

    def write(self, row: int, number: int) -> bool:
        try:
            if self._session is None:
                self._session = Session(self._node.path())
            self._session.run(CHANGE, row, number, 20_000 if number % 3 else 10)
        except SqlError:
            self.refused += 1
            self.close()
            return False
        self.committed[row] = number
        return True

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


@pytest.mark.parametrize("both", [False, True], ids=["one writer", "two writers"])
@pytest.mark.parametrize("mode", ["DELETE", "PERSIST", "WAL"])
def test_a_transaction_of_a_replica_is_committed_as_a_whole_or_not_at_all(
    nodes: Nodes, tmp_path: Path, mode: str, both: bool
) -> None:
    """Two: whose transaction is stale gets the right to write alone for a while, with SQLite's lock on the primary."""
    fails = tmp_path / "fails"
    a = nodes.make_primary().start(prefix=[sys.executable, "-m", "tests.mount.failing_disk", str(fails)])
    b = nodes.replica(a, writes={"on_replica": "forward", "timeout": "2s"})
    run_sql(a.path(), f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, number, v);")
    b.wait_for("app.db", a.position())
    writers = [Writer(b), *([Writer(a)] if both else [])]
    fails.write_text("pread:app.db\npread:app.db-journal\npread:app.db-wal\n", encoding="utf-8")
    for number in range(TRIES):
        for offset, writer in enumerate(writers):
            writer.write(number % 7 + 10 * offset, number)
    assert writers[0].refused
    fails.unlink()
    for offset, writer in enumerate([*writers, Writer(a)]):
        wait_until(lambda writer=writer, row=10 * offset: writer.write(row, TRIES), "it goes on", 30)  # type: ignore[misc]
        writer.close()
    assert integrity(a.path()) == "ok"
    b.wait_for("app.db", a.position())
    found = dict(run_sql(a.path(), "SELECT id, number FROM t WHERE id < 100", mode="ro"))
    # One whose outcome was not heard may be there, too.
    assert all(found[row] >= number for each in writers for row, number in each.committed.items()), found
    assert integrity(b.path()) == "ok"
