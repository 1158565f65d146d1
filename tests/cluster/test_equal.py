"""After whatever applications do, every node holds the same databases, byte for byte."""

import random
from typing import Final

import pytest

from tests.cluster.comparing import assert_same
from tests.cluster.conftest import MakeGroup
from tests.cluster.group import Group, prepare, writers
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until

FILLING: Final = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"


def forget(group: Group, *names: str) -> None:
    """Drop databases as an application does: with rm."""
    for name in names:
        for each in (name, f"{name}-wal", f"{name}-shm"):
            group.path(each).unlink(missing_ok=True)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_files_are_equal_for_page_size(group: Group, page_size: int) -> None:
    path = group.path(f"pages{page_size}.db")
    with Session(path) as session:
        session.run(f"PRAGMA page_size={page_size}")
        session.run("PRAGMA journal_mode=WAL")
        session.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        session.run("CREATE INDEX t_v ON t (substr(v, 1, 8))")
        for size in (10, 500, 5000, 70_000):
            session.run("INSERT INTO t (v) VALUES (randomblob(?))", size, times=40)
        session.run("DELETE FROM t WHERE id % 3 = 0")
        session.run("UPDATE t SET v = randomblob(length(v) + 100) WHERE id % 5 = 0")
        assert session.run("PRAGMA page_size") == [(page_size,)]
    assert_same(group.all, f"pages{page_size}.db")


def test_several_databases_in_directories_too_are_equal(group: Group) -> None:
    names = ["one.db", "sub/two.db", "sub/deep er/thrée.sqlite", "sub/four"]
    for name in names:
        prepare(group.path(name))
    with writers(group.path(names[0]), 1, count=400) as first, writers(group.path(names[1]), 1, count=400) as second:
        for name in names[2:]:
            run_sql(group.path(name), f"{FILLING} INSERT INTO entry SELECT 'x', i, randomblob(300) FROM n;", 500)
        for each in (*first, *second):
            assert each.finish() == 400
    assert_same(group.all, *names)


def test_three_writer_processes_with_readers_on_both_sides(group: Group) -> None:
    path = group.path("busy.db")
    prepare(path)
    replica = group.replicas[0].path("busy.db")
    group.replicas[0].wait_for("busy.db", group.primary_node.position("busy.db"))
    with writers(path, 3, count=500) as made, Session(path) as here, Session(replica) as there:
        seen = 0
        while any(each.acknowledged < 500 for each in made):
            for each in (here, there):
                counter, rows = each.run("SELECT value, (SELECT count(*) FROM entry) FROM counter")[0]
                assert counter == rows, "a reader saw part of a transaction"
            seen += 1
        for writer in made:
            assert writer.finish() == 500
    assert seen > 10
    assert_same(group.all, "busy.db")


def test_schema_changes_are_seen_by_open_readers(group: Group) -> None:
    path = group.path("schema.db")
    prepare(path)
    group.replicas[0].wait_for("schema.db", group.primary_node.position("schema.db"))
    with Session(path) as writer, Session(group.replicas[0].path("schema.db")) as reader:
        for number in range(20):
            writer.run(f"CREATE TABLE t{number} (a, b)")
            writer.run(f"INSERT INTO t{number} VALUES (1, 2)")
            writer.run(f"ALTER TABLE t{number} ADD COLUMN c DEFAULT {number}")
            writer.run(f"CREATE INDEX i{number} ON t{number} (b)")
            writer.run(f"CREATE VIEW v{number} AS SELECT c FROM t{number}")
            if number >= 10:
                writer.run(f"DROP TABLE t{number - 10}")
            group.replicas[0].wait_for("schema.db", group.primary_node.position("schema.db"))
            assert reader.run(f"SELECT c FROM v{number}") == [(number,)]
            assert (number >= 10) == (reader.run("SELECT 1 FROM sqlite_schema WHERE name = 't0'") == [])
    assert_same(group.all, "schema.db")


def test_blobs_of_20_megabytes(group: Group) -> None:
    path = group.path("blobs.db")
    prepare(path)
    with Session(path) as writer:
        writer.run("INSERT INTO entry VALUES ('blob', 1, randomblob(20000000))")
        writer.run("INSERT INTO entry VALUES ('blob', 2, randomblob(20000000))")
        writer.run("UPDATE entry SET payload = randomblob(20000000) WHERE number = 1")
        found = writer.run("SELECT number, length(payload), hex(substr(payload, 9999990, 30)) FROM entry")
    for replica in group.replicas:
        replica.wait_for("blobs.db", group.primary_node.position("blobs.db"))
        question = "SELECT number, length(payload), hex(substr(payload, 9999990, 30)) FROM entry"
        assert run_sql(replica.path("blobs.db"), question) == found
    assert_same(group.all, "blobs.db")
    forget(group, "blobs.db")


def test_long_transactions_that_spill(group: Group) -> None:
    path = group.path("spill.db")
    prepare(path)
    with Session(path) as writer:
        writer.run("PRAGMA cache_size=10")
        for number, end in enumerate(("COMMIT", "ROLLBACK", "COMMIT")):
            writer.run("BEGIN IMMEDIATE")
            writer.run(f"{FILLING} INSERT INTO entry SELECT ?, i, randomblob(900) FROM n", 3000, number)
            writer.run("UPDATE entry SET payload = randomblob(1200) WHERE number % 2")
            writer.run("DELETE FROM entry WHERE number % 7 = 0")
            writer.run("UPDATE counter SET value = value + 1")
            writer.run(end)
            writer.run("INSERT OR REPLACE INTO entry VALUES ('small', ?, 'after')", 1)
    assert_same(group.all, "spill.db")


def test_savepoints_rolled_back(group: Group) -> None:
    path = group.path("savepoint.db")
    prepare(path)
    numbers = random.Random(1)
    with Session(path) as writer:
        writer.run("PRAGMA cache_size=5")
        for outer in range(25):
            writer.run("BEGIN IMMEDIATE")
            for inner in range(6):
                writer.run("SAVEPOINT s")
                writer.run(f"{FILLING} INSERT INTO entry SELECT ?, i, randomblob(700) FROM n", 60, f"{outer} {inner}")
                if numbers.random() < 0.5:
                    writer.run("ROLLBACK TO s")
                writer.run("RELEASE s")
            writer.run("COMMIT" if numbers.random() < 0.8 else "ROLLBACK")
    assert_same(group.all, "savepoint.db")


def test_a_commit_after_a_spilled_savepoint_was_rolled_back_is_captured_or_refused(make_group: MakeGroup) -> None:
    """Old SQLite (3.40.1 does, 3.54.1 does not) keeps ``iReCksum`` over ROLLBACK TO, and then writes frames with zero
    salts and checksums that it never completes. Its readers see the transaction, its recovery does not."""
    group = make_group(1).start()
    path = group.path("spilled.db")
    prepare(path)
    with Session(path) as writer:
        writer.run(f"{FILLING} INSERT INTO entry SELECT 'x', i, randomblob(900) FROM n", 400)
        writer.run("PRAGMA cache_size=5")
        writer.run("BEGIN IMMEDIATE")
        writer.run("SAVEPOINT a")
        writer.run("UPDATE entry SET payload = randomblob(900)")
        writer.run("UPDATE entry SET payload = randomblob(900) WHERE number > 380")
        writer.run("ROLLBACK TO a")
        before = group.primary_node.position("spilled.db")
        try:
            writer.run("UPDATE entry SET payload = 'new' WHERE number BETWEEN 100 AND 250")
            writer.run("COMMIT")
        except SqlError:
            wanted = 0
        else:
            wanted = 151
            assert group.primary_node.position("spilled.db") != before
    assert run_sql(path, "SELECT count(*) FROM entry WHERE payload = 'new'") == [(wanted,)]
    with Session(path) as writer:
        writer.run("INSERT INTO entry VALUES ('y', 1, 'after')")
    assert run_sql(path, "SELECT number FROM entry WHERE writer = 'y'") == [(1,)]
    assert_same(group.all)


def test_vacuum_that_shrinks(group: Group) -> None:
    path = group.path("vacuum.db")
    prepare(path)
    with Session(path) as writer:
        writer.run(f"{FILLING} INSERT INTO entry SELECT 'x', i, randomblob(3000) FROM n", 3000)
        before = writer.run("PRAGMA page_count")[0][0]
        writer.run("DELETE FROM entry WHERE number > 50")
        with Session(group.replicas[0].path("vacuum.db")) as reader:
            group.replicas[0].wait_for("vacuum.db", group.primary_node.position("vacuum.db"))
            reader.run("BEGIN")
            assert reader.run("SELECT count(*) FROM entry") == [(50,)]
            writer.run("VACUUM")
            after = writer.run("PRAGMA page_count")[0][0]
            assert after < before / 10
            writer.run("INSERT INTO entry VALUES ('y', 1, 'after')")
            group.replicas[0].wait_for("vacuum.db", group.primary_node.position("vacuum.db"))
            assert reader.run("SELECT count(*) FROM entry") == [(50,)]
            reader.run("COMMIT")
            assert reader.run("SELECT count(*) FROM entry") == [(51,)]
    assert_same(group.all, "vacuum.db")
    for node in group.all:
        assert node.path("vacuum.db").stat().st_size == after * 4096


def test_incremental_vacuum(group: Group) -> None:
    path = group.path("incremental.db")
    with Session(path) as writer:
        writer.run("PRAGMA auto_vacuum=INCREMENTAL")
        writer.run("PRAGMA journal_mode=WAL")
        writer.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        writer.run(f"{FILLING} INSERT INTO t SELECT i, randomblob(3000) FROM n", 1000)
        writer.run("DELETE FROM t WHERE id % 10")
        for _ in range(10):
            writer.run("PRAGMA incremental_vacuum(50)")
            writer.run("INSERT INTO t (v) VALUES (randomblob(100))")
    assert_same(group.all, "incremental.db")


def test_a_database_is_dropped_and_made_again_with_the_same_name(group: Group) -> None:
    path = group.path("again.db")
    for page_size in (4096, 4096, 512, 65536, 1024):
        prepare(path, page_size)
        with writers(path, 1, count=100) as made:
            assert made[0].finish() == 100
        assert_same(group.all, "again.db")
        forget(group, "again.db")
        for replica in group.replicas:
            replica.path("again.db").exists()
    prepare(path)
    forget(group, "again.db")
    prepare(path)
    run_sql(path, "INSERT INTO entry VALUES ('last', 1, 'x');")
    assert_same(group.all, "again.db")
    for replica in group.replicas:
        assert run_sql(replica.path("again.db"), "SELECT writer, number FROM entry") == [("last", 1)]


def test_a_dropped_database_is_gone_on_the_replicas(group: Group) -> None:
    path = group.path("gone.db")
    prepare(path)
    for replica in group.replicas:
        replica.wait_for("gone.db", group.primary_node.position("gone.db"))
        assert replica.path("gone.db").exists()
    forget(group, "gone.db")
    for replica in group.replicas:
        wait_until(lambda replica=replica: not replica.path("gone.db").exists(), "the file is gone")  # type: ignore[misc]
        assert replica.get("/wait?db=gone.db&txid=1&timeout=0s")[0] == 404
        assert "gone.db" not in {each["name"] for each in replica.status()["databases"]}


def test_in_the_end_all_databases_are_equal(group: Group) -> None:
    assert_same(group.all)
