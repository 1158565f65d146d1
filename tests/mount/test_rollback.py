"""Rollback-journal modes on a real mount: every commit is one transaction, exactly what the database file holds."""

import functools
import operator
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from litereplica.ltx.checksum import page_checksum
from litereplica.sqlite.pages import lock_page, parse_database_header
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, integrity, run_sql, shell

MODES = ("DELETE", "TRUNCATE", "PERSIST")


def txid(node: Node, name: str) -> int:
    return int(node.position(name)[:16], 16)


def exact(node: Node, name: str) -> None:
    """The position's checksum is that of the backing file, which holds everything: no WAL, no live journal."""
    data = (node.data / "files" / name).read_bytes()
    header = parse_database_header(data[:100])
    size = header.page_size
    pages = [data[at : at + size] for at in range(0, header.page_count * size, size)]
    sums = [page_checksum(pgno, page) for pgno, page in enumerate(pages, 1) if pgno != lock_page(size)]
    assert node.position(name).strip()[17:] == f"{functools.reduce(operator.xor, sums):016x}"


def make(node: Node, name: str, mode: str, rows: int = 0) -> Path:
    path = node.path(name)
    run_sql(path, f"PRAGMA journal_mode={mode}; CREATE TABLE t (k INTEGER PRIMARY KEY, v);")
    if rows:
        with Session(path) as session:
            session.run(f"PRAGMA journal_mode={mode}")
            session.run(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
                "INSERT INTO t (v) SELECT randomblob(400) FROM n",
                rows,
            )
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL", "FULL", "EXTRA"])
def test_each_commit_is_one_transaction_and_a_rollback_is_none(node: Node, mode: str, synchronous: str) -> None:
    name = f"{mode}-{synchronous}.db"
    path = make(node, name, mode)
    assert txid(node, name) == 1
    exact(node, name)
    with Session(path) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run(f"PRAGMA synchronous={synchronous}")
        session.run("INSERT INTO t (v) VALUES ('a')", times=10)
        assert txid(node, name) == 11
        exact(node, name)
        session.run("BEGIN")
        session.run("INSERT INTO t (v) VALUES ('gone')")
        session.run("ROLLBACK")
        assert txid(node, name) == 11
        session.run("SELECT * FROM t")
        assert txid(node, name) == 11
        session.run("DELETE FROM t")
        assert txid(node, name) == 12
        exact(node, name)
    assert integrity(path) == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_a_spilled_transaction_is_one_and_rolled_back_it_is_none(node: Node, mode: str) -> None:
    name = f"spill-{mode}.db"
    path = make(node, name, mode, rows=3000)
    before = node.position(name)
    with Session(path) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("PRAGMA cache_size=10")
        session.run("BEGIN")
        session.run("UPDATE t SET v = randomblob(400)")
        session.run("SAVEPOINT s")
        session.run("DELETE FROM t WHERE k % 2 = 0")
        session.run("ROLLBACK")
        assert node.position(name) == before
        exact(node, name)
        session.run("BEGIN")
        session.run("UPDATE t SET v = randomblob(401) WHERE k > 1000")
        session.run("SAVEPOINT s")
        session.run("DELETE FROM t")
        session.run("ROLLBACK TO s")
        session.run("COMMIT")
        assert txid(node, name) == int(before[:16], 16) + 1
        exact(node, name)
        assert session.run("SELECT count(*) FROM t") == [(3000,)]
    assert integrity(path) == "ok"


@pytest.mark.parametrize("rows", [200, 20_000])
def test_pages_written_for_a_savepoint_that_was_rolled_back_are_left_out(node: Node, rows: int) -> None:
    name = f"beyond-{rows}.db"
    path = make(node, name, "DELETE")
    with Session(path) as session:
        session.run("PRAGMA cache_size=20")
        session.run("BEGIN")
        session.run("INSERT INTO t (v) VALUES ('stays')")
        session.run("SAVEPOINT s")
        session.run(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO t (v) SELECT randomblob(700) FROM n",
            rows,
        )
        session.run("ROLLBACK TO s")
        session.run("COMMIT")
        assert txid(node, name) == 2
        exact(node, name)
        assert session.run("SELECT count(*) FROM t") == [(1,)]
    assert integrity(path) == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_a_database_shrinks_and_grows(node: Node, mode: str) -> None:
    name = f"shape-{mode}.db"
    path = make(node, name, mode, rows=2000)
    with Session(path) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("DELETE FROM t WHERE k > 10")
        session.run("VACUUM")
        exact(node, name)
        assert (node.data / "files" / name).stat().st_size < 100_000
        session.run("PRAGMA auto_vacuum=INCREMENTAL")
        session.run("VACUUM")
        session.run("INSERT INTO t (v) VALUES (zeroblob(3000000))")
        exact(node, name)
        session.run("DELETE FROM t")
        session.run("PRAGMA incremental_vacuum(100)")
        exact(node, name)
        session.run("PRAGMA incremental_vacuum")
        exact(node, name)
    assert integrity(path) == "ok"


def test_a_vacuum_changes_the_page_size(node: Node) -> None:
    path = make(node, "size.db", "DELETE", rows=300)
    start = txid(node, "size.db")
    for number, size in enumerate((512, 65536, 1024), 1):
        with Session(path) as session:
            session.run(f"PRAGMA page_size={size}")
            session.run("VACUUM")
            assert session.run("PRAGMA page_size") == [(size,)]
            assert txid(node, "size.db") == start + 2 * number - 1
            exact(node, "size.db")
            session.run("INSERT INTO t (v) VALUES ('after')")
        exact(node, "size.db")
    assert integrity(path) == "ok"
    assert node.status()["databases"][0]["journal_mode"]


def test_the_journal_mode_goes_back_and_forth(node: Node) -> None:
    path = make(node, "switch.db", "DELETE", rows=100)
    with Session(path) as session:
        for number in range(3):
            assert session.run("PRAGMA journal_mode=WAL") == [("wal",)]
            session.run("INSERT INTO t (v) VALUES (?)", f"wal {number}")
            assert session.run("PRAGMA journal_mode=DELETE") == [("delete",)]
            exact(node, "switch.db")
            session.run("INSERT INTO t (v) VALUES (?)", f"delete {number}")
            exact(node, "switch.db")
        assert session.run("SELECT count(*) FROM t") == [(106,)]
    assert integrity(path) == "ok"
    modes = {each["name"]: each["journal_mode"] for each in node.status()["databases"]}
    assert modes["switch.db"] == "rollback"


@pytest.mark.parametrize("mode", ["MEMORY", "OFF"])
def test_a_database_without_a_journal_is_refused_and_nothing_changes(node: Node, mode: str) -> None:
    name = f"{mode}.db"
    fresh = node.path(f"fresh-{name}")
    with Session(fresh) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        with pytest.raises(SqlError):
            session.run("CREATE TABLE t (v)")
    assert "journal_mode is MEMORY or OFF" in node.log
    path = make(node, name, "DELETE", rows=10)
    before = node.position(name)
    with Session(path) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        with pytest.raises(SqlError):
            session.run("INSERT INTO t (v) VALUES (1)")
    assert node.position(name) == before
    exact(node, name)
    with Session(path) as session:
        session.run("INSERT INTO t (v) VALUES (1)")
        assert session.run("SELECT count(*) FROM t") == [(11,)]
    exact(node, name)


def test_exclusive_locking_mode_commits_without_removing_the_journal(node: Node) -> None:
    path = make(node, "exclusive.db", "DELETE")
    with Session(path) as session:
        session.run("PRAGMA locking_mode=EXCLUSIVE")
        session.run("INSERT INTO t (v) VALUES (1)", times=5)
        assert txid(node, "exclusive.db") == 6
        exact(node, "exclusive.db")
    with Session(path) as session:
        assert session.run("SELECT count(*) FROM t") == [(5,)]


@pytest.mark.parametrize("mode", MODES)
def test_a_transaction_over_two_databases_is_one_in_each(node: Node, mode: str) -> None:
    first = make(node, f"one-{mode}.db", mode, rows=10)
    second = make(node, f"two-{mode}.db", mode, rows=10)
    before = txid(node, first.name), txid(node, second.name)
    with Session(first) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("ATTACH ? AS other", str(second))
        session.run(f"PRAGMA other.journal_mode={mode}")
        for _ in range(3):
            session.run("BEGIN")
            session.run("INSERT INTO main.t (v) VALUES ('a')")
            session.run("INSERT INTO other.t (v) VALUES ('b')")
            session.run("COMMIT")
        session.run("BEGIN")
        session.run("INSERT INTO main.t (v) VALUES ('a')")
        session.run("INSERT INTO other.t (v) VALUES ('b')")
        session.run("ROLLBACK")
    assert (txid(node, first.name), txid(node, second.name)) == (before[0] + 3, before[1] + 3)
    exact(node, first.name)
    exact(node, second.name)
    assert not [each for each in (node.data / "files").iterdir() if "-mj" in each.name]
    assert not list((node.data / "groups").iterdir())


@pytest.mark.parametrize(
    ("failing", "is_committed"),
    [
        ("fsync_directory:/groups", False),
        ("fsync_directory:/groups unlink:/groups", False),
        # The removal of the super-journal, then that of a record.
        ("unlink:/files truncate:/db/one.db", False),
        ("unlink:/groups", True),
    ],
)
@pytest.mark.parametrize("clean", [True, False])
def test_nothing_follows_a_transaction_over_two_databases_that_could_not_be_settled(
    nodes: Nodes, failing: str, is_committed: bool, clean: bool
) -> None:
    fails = nodes.folder / "fails"
    node = nodes.standalone()
    node.stop()
    node.start(prefix=[sys.executable, "-m", "tests.mount.failing_disk", str(fails)])
    paths = [make(node, name, "PERSIST", rows=3) for name in ("one.db", "two.db")]
    sessions = [Session(path, busy_s=0) for path in paths]
    for session in sessions:
        session.run("PRAGMA journal_mode=PERSIST")
    first, second = sessions
    first.run("ATTACH ? AS other", str(paths[1]))
    first.run("PRAGMA other.journal_mode=PERSIST")
    (node.data / "groups").mkdir()
    fails.write_text(failing, encoding="utf-8")
    first.run("BEGIN")
    first.run("INSERT INTO main.t (v) VALUES ('a')")
    first.run("INSERT INTO other.t (v) VALUES ('b')")
    if is_committed:
        first.run("COMMIT")
    else:
        with pytest.raises(SqlError, match="SQLITE_IOERR"):
            first.run("COMMIT")
    fails.unlink()
    acknowledged = 0
    for _ in range(3):
        try:
            second.run("INSERT INTO t (v) VALUES ('c')")
        except SqlError:
            continue
        acknowledged += 1
    if clean:
        node.terminate()
    else:
        node.kill()
    for session in sessions:
        session.kill()
    node.start()
    rows = 4 if is_committed else 3
    for path, more in zip(paths, (0, acknowledged), strict=True):
        assert run_sql(path, "SELECT count(*) FROM t") == [(rows + more,)]
        assert integrity(path) == "ok"
        exact(node, path.name)
        run_sql(path, "INSERT INTO t (v) VALUES ('d')")
    assert acknowledged == 0
    assert not list((node.data / "groups").iterdir())


def test_a_transaction_makes_two_databases(node: Node) -> None:
    with Session(node.path("made-one.db")) as session:
        session.run("ATTACH ? AS other", str(node.path("made-two.db")))
        session.run("BEGIN")
        session.run("CREATE TABLE main.t (v)")
        session.run("CREATE TABLE other.t (v)")
        session.run("COMMIT")
        session.run("INSERT INTO other.t VALUES (1)")
    assert (txid(node, "made-one.db"), txid(node, "made-two.db")) == (1, 2)
    exact(node, "made-one.db")
    exact(node, "made-two.db")


@pytest.mark.parametrize("mode", MODES)
def test_a_transaction_whose_main_database_is_outside_the_mount_is_refused_while_sqlite_listens(
    node: Node, mode: str, tmp_path: Path
) -> None:
    inside = make(node, f"inside-{mode}.db", mode, rows=3)
    outside = tmp_path / "outside.db"
    run_sql(outside, "CREATE TABLE t (k INTEGER PRIMARY KEY, v);")
    before = node.position(inside.name)
    with Session(outside) as session:
        session.run("ATTACH ? AS other", str(inside))
        session.run(f"PRAGMA other.journal_mode={mode}")
        for _ in range(2):
            session.run("BEGIN")
            session.run("INSERT INTO main.t (v) VALUES ('a')")
            session.run("INSERT INTO other.t (v) VALUES ('b')")
            with pytest.raises(SqlError) as failure:
                session.run("COMMIT")
            assert failure.value.code == "SQLITE_IOERR_WRITE"
            assert session.run("SELECT (SELECT count(*) FROM main.t), (SELECT count(*) FROM other.t)") == [(0, 3)]
        assert node.position(inside.name) == before
        assert "is outside the mount" in node.log_lines("commit_refused")[-1]
        # Each by itself is as ever, and so are both once one of them is in WAL mode.
        session.run("INSERT INTO main.t (v) VALUES ('a')")
        session.run("INSERT INTO other.t (v) VALUES ('b')")
        session.run("PRAGMA other.journal_mode=WAL")
        session.run("BEGIN")
        session.run("INSERT INTO main.t (v) VALUES ('a')")
        session.run("INSERT INTO other.t (v) VALUES ('b')")
        session.run("COMMIT")
        assert session.run("SELECT (SELECT count(*) FROM main.t), (SELECT count(*) FROM other.t)") == [(2, 5)]
    assert integrity(inside) == "ok"


def test_a_dead_writers_journal_is_rolled_back_by_the_next_user(node: Node) -> None:
    path = make(node, "dead.db", "DELETE", rows=2000)
    before = node.position("dead.db")
    session = Session(path)
    session.run("PRAGMA cache_size=10")
    session.run("BEGIN")
    session.run("UPDATE t SET v = randomblob(500)")
    session.kill()
    assert (node.data / "files" / "dead.db-journal").exists()
    with Session(path) as reader:
        assert reader.run("SELECT count(*) FROM t") == [(2000,)]
    assert node.position("dead.db") == before
    exact(node, "dead.db")
    assert integrity(path) == "ok"


def test_a_database_file_copied_into_the_mount_is_a_transaction(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    with sqlite3.connect(source) as connection:
        connection.execute("CREATE TABLE t (v)")
        connection.executemany("INSERT INTO t VALUES (?)", [(os.urandom(3000),) for _ in range(2000)])
    connection.close()
    path = node.path("copied.db")
    subprocess.run(["cp", source, path], check=True, timeout=60)
    assert txid(node, "copied.db") == 1
    exact(node, "copied.db")
    run_sql(path, "INSERT INTO t VALUES ('more');")
    assert txid(node, "copied.db") == 2
    exact(node, "copied.db")


def test_a_copy_over_a_replicated_database_is_refused_and_a_restore_is_one_transaction(
    node: Node, tmp_path: Path
) -> None:
    source = tmp_path / "source.db"
    with sqlite3.connect(source) as connection:
        connection.execute("CREATE TABLE other (v)")
    connection.close()
    path = make(node, "restored.db", "DELETE", rows=100)
    before = node.position("restored.db")
    done = subprocess.run(["cp", source, path], check=False, timeout=60, capture_output=True)
    assert done.returncode != 0
    assert node.position("restored.db") == before
    exact(node, "restored.db")
    with Session(path) as reader:
        assert reader.run("SELECT count(*) FROM t") == [(100,)]
        shell(path, f".restore {source}")
        assert reader.run("SELECT count(*) FROM other") == [(0,)]
    exact(node, "restored.db")


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_vacuum_into_makes_a_replicated_database(node: Node, mode: str) -> None:
    path = make(node, f"source-{mode}.db", mode, rows=5000)
    target = node.path(f"into-{mode}.db")
    with Session(path) as session:
        session.run("VACUUM INTO ?", str(target))
    assert txid(node, target.name) == 1
    exact(node, target.name)
    assert integrity(target) == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_after_a_kill_the_journal_is_rolled_back_and_the_log_redone(nodes: Nodes, mode: str) -> None:
    node = nodes.standalone()
    path = make(node, "killed.db", mode, rows=2000)
    with Session(path) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("INSERT INTO t (v) VALUES ('kept')", times=20)
    before = node.position("killed.db")
    session = Session(path)
    session.run(f"PRAGMA journal_mode={mode}")
    session.run("PRAGMA cache_size=10")
    session.run("BEGIN")
    session.run("UPDATE t SET v = randomblob(500)")
    node.kill()
    session.kill()
    node.start()
    assert node.position("killed.db") == before
    exact(node, "killed.db")
    assert integrity(path) == "ok"
    with Session(path) as again:
        assert again.run("SELECT count(*) FROM t") == [(2020,)]
        again.run("INSERT INTO t (v) VALUES ('next')")
    exact(node, "killed.db")


def test_a_hot_journal_is_rolled_back_by_a_clean_stop(nodes: Nodes) -> None:
    node = nodes.standalone()
    path = make(node, "stopped.db", "DELETE", rows=2000)
    before = node.position("stopped.db")
    session = Session(path)
    session.run("PRAGMA cache_size=10")
    session.run("BEGIN")
    session.run("UPDATE t SET v = randomblob(500)")
    session.kill()
    node.stop()
    assert not (node.data / "files" / "stopped.db-journal").exists()
    node.start()
    assert node.position("stopped.db") == before
    exact(node, "stopped.db")
    assert integrity(path) == "ok"
