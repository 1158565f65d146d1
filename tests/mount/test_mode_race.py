"""A journal mode is left while somebody else commits to the WAL.

SQLite deletes the WAL under its exclusive lock, gives that back, and takes it again for page 1 (sqlite3PagerCloseWal,
sqlite3BtreeSetVersion). Who opens the database in between is told by page 1 that it is in WAL mode, makes a new WAL,
commits to it and goes. What SQLite then writes to page 1 is from before that. Nothing comes of it without a node: the
next one finds the WAL, and page 1 in it.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.nodes import Node, Nodes
from tests.support.sql import make_database, run_sql

LEAVES = """
import sys
import apsw

class Waits(apsw.VFS):
    looks = 0
    def __init__(self):
        super().__init__("waits", "unix")
    def xAccess(self, name, flags):
        found = super().xAccess(name, flags)
        if name.endswith("-wal"):
            self.looks += 1
            if self.looks == 2:
                print("the WAL is gone", flush=True)
                sys.stdin.readline()
        return found

waits = Waits()
connection = apsw.Connection(sys.argv[1], vfs="waits")
try:
    print(connection.execute("PRAGMA journal_mode=" + sys.argv[2]).fetchall(), flush=True)
except apsw.Error as error:
    print(type(error).__name__, flush=True)
connection.close()
"""


@contextmanager
def leaving(path: Path, mode: str) -> Iterator["subprocess.Popen[str]"]:
    """Who has deleted the WAL, and has not said so in page 1 yet."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVES, str(path), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "the WAL is gone\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def goes_on(process: "subprocess.Popen[str]") -> str:
    """What it says."""
    said, _ = process.communicate("\n", timeout=30)
    return said.strip()


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
def test_what_is_committed_to_the_wal_meanwhile_stays(nodes: Nodes, mode: str) -> None:
    primary = nodes.primary()
    replica = nodes.replica(primary)
    path = primary.path()
    make_database(path, rows=5)
    with leaving(path, mode) as process:
        run_sql(path, "INSERT INTO t (v) VALUES (randomblob(20000))")
        before = primary.position()
        assert goes_on(process) == "IOError"
    assert primary.position() == before
    assert primary.log_lines("commit_refused")
    for _ in range(2):
        assert run_sql(path, "PRAGMA journal_mode") == [("wal",)]
        check(primary, replica, 6)
        primary.stop()
        primary.start()
    assert run_sql(path, f"PRAGMA journal_mode={mode}") == [(mode.lower(),)]
    run_sql(path, "INSERT INTO t (v) VALUES (1)")
    check(primary, replica, 7)


def check(primary: Node, replica: Node, rows: int) -> None:
    replica.wait_for("app.db", primary.position())
    for node in (primary, replica):
        assert run_sql(node.path(), "PRAGMA integrity_check") == [("ok",)]
        assert run_sql(node.path(), "SELECT count(*) FROM t") == [(rows,)]


def test_what_was_changed_by_nobody_meanwhile_is_left(nodes: Nodes) -> None:
    primary = nodes.primary()
    path = primary.path()
    make_database(path, rows=5)
    with leaving(path, "DELETE") as process:
        assert goes_on(process) == "[('delete',)]"
    assert run_sql(path, "PRAGMA journal_mode") == [("delete",)]
