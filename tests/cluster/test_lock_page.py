"""A database that grows over 1 GiB, where the page with SQLite's lock bytes is never used."""

import sqlite3
from contextlib import closing

import pytest

from tests.cluster.comparing import assert_same
from tests.cluster.conftest import MakeGroup
from tests.support.sql import Session

MIB = 2**20


@pytest.mark.timeout(400)
def test_a_database_that_grows_over_the_lock_page_is_the_same_everywhere(make_group: MakeGroup) -> None:
    group = make_group(replicas=1)
    primary = group.primary_node
    primary.start().stop()
    made = primary.data / "files" / "large.db"
    with closing(sqlite3.connect(made, isolation_level=None)) as connection:
        # A quarter of the usual number of pages to send and to look at.
        for setting in ("page_size=16384", "journal_mode=OFF", "synchronous=OFF"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
        for _ in range(31):
            connection.execute("INSERT INTO t (v) VALUES (zeroblob(?))", (33 * MIB - 64 * 1024,))
    assert 1020 * MIB < made.stat().st_size < 1024 * MIB
    group.start()
    path = group.path("large.db")
    with Session(path) as session:
        session.run("INSERT INTO t (v) VALUES (randomblob(?))", 8 * MIB, limit_s=120)
        assert path.stat().st_size > 1024 * MIB + 2 * MIB
        assert session.run("PRAGMA journal_mode=WAL") == [("wal",)]
        session.run("INSERT INTO t (v) VALUES (randomblob(?))", 2 * MIB, limit_s=120)
        session.run("DELETE FROM t WHERE k = 32")
        session.run("INSERT INTO t (v) VALUES (randomblob(?))", 4 * MIB, limit_s=120)
        assert session.run("PRAGMA journal_mode=DELETE") == [("delete",)]
        session.run("UPDATE t SET v = randomblob(?) WHERE k > 31", 3 * MIB, limit_s=120)
    assert_same(group.all, "large.db", limit_s=200)
