"""A database that grows over 4 GiB, where offsets need more than 32 bits.

The short form begins just below: what is there was made by SQLite before the node started. The long form, which grows
by statements from nothing and shrinks again, is

    LITEREPLICA_LARGE_GIB=6 LITEREPLICA_CLUSTER_SECONDS=400 python -m pytest tests/cluster/test_large.py

and takes four minutes and three times as much room on the disk.
"""

import mmap
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.comparing import caught_up, rolling_checksum
from tests.cluster.conftest import MakeGroup
from tests.cluster.group import Group, kill
from tests.support.sql import Session, byte_equal, fold, integrity
from tests.support.waiting import wait_until

NAME: Final = "large.db"
PAGE_BYTES: Final = 65536
GIB: Final = 2**30
BORDER: Final = 4 * GIB
MB: Final = 10**6
# Of one row: SQLite's own limit is a billion bytes.
ROW_BYTES: Final = 858 * MB
LIMIT_S: Final = 100.0
LARGE_GIB: Final = int(os.environ.get("LITEREPLICA_LARGE_GIB", "0"))


def on_disk(group: Group) -> list[Path]:
    return [node.data / "files" / NAME for node in group.all]


def assert_equal(group: Group) -> None:
    """As comparing.assert_same, without reading the files into memory."""
    fold(group.path(NAME))
    caught_up(group.primary_node, group.replicas, LIMIT_S)
    expected, found = on_disk(group)
    wait_until(lambda: byte_equal(expected, found, LIMIT_S), "the replica has the same bytes", LIMIT_S)
    with expected.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) as database:
        checksum = f"{rolling_checksum(database):016x}"
    assert [node.position(NAME).partition("/")[2] for node in group.all] == [checksum] * 2
    assert integrity(group.replicas[0].path(NAME)) == "ok"


@pytest.mark.timeout(200)
def test_a_database_that_grows_over_four_gibibytes_is_the_same_everywhere(make_group: MakeGroup) -> None:
    group = make_group(replicas=1)
    primary = group.primary_node
    primary.start().stop()
    made = on_disk(group)[0]
    with closing(sqlite3.connect(made, isolation_level=None)) as connection:
        for setting in (f"page_size={PAGE_BYTES}", "journal_mode=OFF", "synchronous=OFF"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
        for _ in range(5):
            connection.execute("INSERT INTO t (v) VALUES (zeroblob(?))", (ROW_BYTES,))
    assert BORDER - 10 * MB < made.stat().st_size < BORDER
    group.start()
    with Session(group.path(NAME)) as session:
        assert session.run("PRAGMA journal_mode=WAL", limit_s=LIMIT_S) == [("wal",)]
        session.run("INSERT INTO t (v) VALUES (randomblob(?))", 20 * MB)
        session.run("UPDATE t SET v = randomblob(?) WHERE k = 6", 15 * MB)
        group.replicas[0].wait_for(NAME, primary.position(NAME), LIMIT_S)
        assert session.run("PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
        assert group.path(NAME).stat().st_size > BORDER + 5 * MB
        assert session.run("PRAGMA journal_mode=DELETE") == [("delete",)]
        session.run("UPDATE t SET v = randomblob(?) WHERE k = 6", 2 * MB)
        session.run("INSERT INTO t (v) VALUES ('behind')")
    assert_equal(group)


def grow_and_shrink(make_group: MakeGroup) -> None:
    group = make_group(replicas=1).start()
    path = group.path(NAME)
    session = Session(path)
    for setting in (f"page_size={PAGE_BYTES}", "auto_vacuum=FULL", "journal_mode=WAL"):
        session.run(f"PRAGMA {setting}")
    session.run("CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
    rows = LARGE_GIB * GIB // ROW_BYTES + 1
    for _ in range(rows):
        session.run("INSERT INTO t (v) VALUES (zeroblob(?))", ROW_BYTES, limit_s=LIMIT_S)
    session.run("INSERT INTO t (v) VALUES (randomblob(?))", 20 * MB)
    kill(group.primary_node)
    session.kill()
    group.primary_node.start()
    assert path.stat().st_size > LARGE_GIB * GIB > BORDER
    assert_equal(group)
    with Session(path) as session:
        assert session.run("SELECT count(*), sum(length(v)) FROM t") == [(rows + 1, rows * ROW_BYTES + 20 * MB)]
        session.run("DELETE FROM t WHERE k > 3", limit_s=LIMIT_S)
        session.run("INSERT INTO t (v) VALUES (randomblob(?))", 20 * MB)
    assert_equal(group)
    assert path.stat().st_size < BORDER


if LARGE_GIB:

    @pytest.mark.timeout(500)
    def test_a_database_grows_by_gigabytes_from_nothing_and_shrinks_again(make_group: MakeGroup) -> None:
        grow_and_shrink(make_group)
