"""Unmodified SQLite on a real mount: the module, the shell and apsw."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, byte_equal, fold, integrity, make_database, run_sql, shell
from tests.support.waiting import wait_until


def side(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def txid(node: Node, path: Path) -> int:
    return int(node.position(path.name)[:16], 16)


def test_wal_and_shm_come_with_the_first_user_and_go_with_the_last(node: Node) -> None:
    path = node.path("cycle.db")
    make_database(path)
    for number in range(3):
        with Session(path) as first, Session(path) as second:
            first.run("INSERT INTO t (v) VALUES (?)", number)
            assert second.run("SELECT count(*) FROM t") == [(number + 1,)]
            assert side(path, "-wal").exists()
            assert side(path, "-shm").exists()
            assert {"cycle.db-wal", "cycle.db-shm"} <= {entry.name for entry in node.mount.iterdir()}
        assert not side(path, "-wal").exists()
        assert not side(path, "-shm").exists()
        assert not (node.data / "files" / "cycle.db-wal").exists()
    assert txid(node, path) == 5
    assert not list((node.data / "files").glob("*-shm")), "the wal-index never reaches the disk"


def test_each_commit_is_one_transaction_and_nothing_else_is(node: Node) -> None:
    path = node.path("count.db")
    make_database(path)
    with Session(path) as session:
        start = txid(node, path)
        session.run("BEGIN")
        session.run("INSERT INTO t (v) VALUES ('gone')")
        session.run("ROLLBACK")
        session.run("SELECT * FROM t")
        assert txid(node, path) == start
        session.run("BEGIN")
        session.run("SAVEPOINT s")
        session.run("INSERT INTO t (v) VALUES ('gone too')")
        session.run("ROLLBACK TO s")
        session.run("INSERT INTO t (v) VALUES ('kept')")
        session.run("COMMIT")
        assert txid(node, path) == start + 1
        session.run("INSERT INTO t (v) VALUES ('next')", times=10)
        assert txid(node, path) == start + 11
        session.run("PRAGMA wal_checkpoint(TRUNCATE)")
        assert txid(node, path) == start + 11
        assert session.run("SELECT v FROM t WHERE v LIKE 'gone%'") == []


def test_a_transaction_that_spills_and_rolls_back_savepoints_is_logged_as_it_ends(node: Node) -> None:
    path = node.path("spilled.db")
    make_database(path)
    with Session(path) as session:
        session.run("PRAGMA cache_size=10")
        session.run("BEGIN")
        for number in range(20):
            session.run("SAVEPOINT s")
            session.run(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)"
                " INSERT INTO t (v) SELECT randomblob(1000) FROM n"
            )
            session.run("UPDATE t SET v = randomblob(900) WHERE id % 7 = ?", number % 7)
            session.run("ROLLBACK TO s" if number % 2 else "RELEASE s")
        session.run("COMMIT")
        assert session.run("SELECT count(*) FROM t") == [(2000,)]
    assert integrity(path) == "ok"


def test_the_shell_works_with_dump_backup_and_vacuum_into(node: Node, tmp_path: Path) -> None:
    path = node.path("shell.db")
    done = shell(
        path,
        "PRAGMA journal_mode=WAL;",
        "CREATE TABLE s (a, b UNIQUE);",
        "INSERT INTO s VALUES (1, 'x'), (2, 'y');",
        f".backup {tmp_path / 'backup.db'}",
        f"VACUUM INTO '{tmp_path / 'into.db'}';",
        "VACUUM;",
        ".dump",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "INSERT INTO s VALUES(2,'y');" in done.stdout
    for copy in ("backup.db", "into.db"):
        assert run_sql(tmp_path / copy, "SELECT count(*) FROM s") == [(2,)]
    assert integrity(path) == "ok"


def test_vacuum_into_and_backup_write_databases_in_the_mount(node: Node) -> None:
    path = node.path("source.db")
    make_database(path, rows=500)
    into, copy = node.path("vacuumed.db"), node.path("restored.db")
    done = shell(path, f"VACUUM INTO '{into}';", f".backup {copy}")
    assert done.returncode == 0, done.stderr
    for each in (into, copy):
        run_sql(each, "PRAGMA journal_mode=WAL")
        assert run_sql(each, "SELECT count(*) FROM t") == [(500,)]
        assert txid(node, each) >= 1


def test_apsw_with_its_own_copy_of_sqlite_writes_and_reads(node: Node) -> None:
    program = """
import apsw, sys
connection = apsw.Connection(sys.argv[1])
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE a (id INTEGER PRIMARY KEY, v BLOB)")
for number in range(200):
    connection.execute("INSERT INTO a (v) VALUES (randomblob(?))", (number * 50,))
with connection:
    connection.execute("UPDATE a SET v = zeroblob(10000) WHERE id % 2")
    blob = connection.blob_open("main", "a", "v", 1, True)
    blob.write(b"in place")
    blob.close()
assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
print(connection.execute("SELECT count(*), substr(v, 1, 8) FROM a WHERE id = 1").fetchall())
"""
    path = node.path("apsw.db")
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "[(1, b'in place')]", done.stderr
    assert txid(node, path) == 203
    assert run_sql(path, "SELECT count(*) FROM a") == [(200,)]


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_every_page_size_is_logged_and_folded(node: Node, page_size: int) -> None:
    path = node.path(f"pages-{page_size}.db")
    make_database(path, page_size=page_size, rows=2000)
    run_sql(path, "UPDATE t SET v = v || 'x'; DELETE FROM t WHERE id % 3 = 0; VACUUM")
    assert integrity(path) == "ok"


def test_vacuum_that_shrinks_a_database_by_many_pages_is_one_transaction(node: Node) -> None:
    path = node.path("shrunk.db")
    make_database(path)
    with Session(path) as session:
        session.run(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
            " INSERT INTO t (v) SELECT randomblob(3000) FROM n"
        )
        session.run("DELETE FROM t WHERE id > 10")
        before = txid(node, path)
        session.run("VACUUM")
        assert txid(node, path) == before + 1
        session.run("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < 100_000


def test_a_database_is_replicated_from_its_first_transaction_on_in_any_mode(node: Node) -> None:
    path = node.path("late.db")
    with Session(path) as session:
        session.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        session.run("INSERT INTO t (v) VALUES (randomblob(5000))", times=50)
        assert txid(node, path) == 51
        assert session.run("PRAGMA journal_mode=WAL") == [("wal",)]
        session.run("INSERT INTO t (v) VALUES ('in the WAL')")
    assert txid(node, path) == 53
    assert any("late.db" in line for line in node.log_lines("database_adopted"))
    assert run_sql(path, "SELECT count(*) FROM t") == [(51,)]
    (found,) = [each for each in node.status()["databases"] if each["name"] == "late.db"]
    assert (found["pages"], found["journal_mode"]) == (path.stat().st_size // 4096, "wal")


def test_two_processes_see_each_others_commits_at_once(node: Node) -> None:
    path = node.path("coherent.db")
    make_database(path)
    with Session(path) as one, Session(path) as other:
        for number in range(100):
            writer, reader = (one, other) if number % 2 else (other, one)
            writer.run("INSERT INTO t (v) VALUES (?)", "x" * (number * 30))
            assert reader.run("SELECT count(*), sum(length(v)) FROM t")[0][0] == number + 1
            if number % 25 == 0:
                writer.run("PRAGMA wal_checkpoint(RESTART)")
    assert run_sql(path, "SELECT sum(length(v)) FROM t") == [(30 * sum(range(100)),)]


def test_three_writer_processes_lose_nothing(node: Node) -> None:
    path = node.path("writers.db")
    make_database(path)
    sessions = [Session(path, busy_s=60) for _ in range(3)]
    for number, session in enumerate(sessions):
        session.send("INSERT INTO t (v) VALUES (?)", number, times=300)
    for session in sessions:
        session.receive()
        session.close()
    assert run_sql(path, "SELECT v, count(*) FROM t GROUP BY v") == [(0, 300), (1, 300), (2, 300)]
    assert txid(node, path) == 902
    assert integrity(path) == "ok"


def test_the_file_behind_the_mount_is_the_file_in_the_mount(node: Node) -> None:
    path = node.path("same.db")
    make_database(path, rows=3000)
    fold(path)
    assert byte_equal(path, node.data / "files" / "same.db")


def test_a_wal_with_transactions_that_are_nowhere_else_cannot_be_removed(node: Node) -> None:
    path = node.path("unfolded.db")
    make_database(path)
    with Session(path) as session:
        session.run("INSERT INTO t (v) VALUES ('only in the WAL')")
        done = subprocess.run(["rm", str(side(path, "-wal"))], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1
        assert "Permission denied" in done.stderr
        with pytest.raises(OSError, match=r".") as failure:
            os.truncate(side(path, "-wal"), 40)
        assert failure.value.errno == errno.EACCES
        assert session.run("SELECT count(*) FROM t") == [(1,)]
    assert any("unfolded.db-wal" in line for line in node.log_lines("unlink_refused"))
    assert run_sql(path, "SELECT v FROM t") == [("only in the WAL",)]


def test_a_replicated_database_cannot_be_overwritten_or_cut_by_hand(node: Node, tmp_path: Path) -> None:
    path = node.path("guarded.db")
    make_database(path, rows=100)
    other = tmp_path / "other.db"
    make_database(other, rows=1)
    assert subprocess.run(["cp", str(other), str(path)], capture_output=True, timeout=20, check=False).returncode
    with pytest.raises(OSError, match=r".") as failure:
        os.truncate(path, 4096)
    assert failure.value.errno == errno.EACCES
    assert run_sql(path, "SELECT count(*) FROM t") == [(100,)]
    assert integrity(path) == "ok"


def test_a_deleted_database_is_dropped_in_the_log_and_its_numbers_go_on(node: Node) -> None:
    path = node.path("again.db")
    make_database(path, rows=3)
    at = txid(node, path)
    with Session(path) as old:
        old.run("SELECT count(*) FROM t")
        for suffix in ("", "-wal", "-shm"):
            side(path, suffix).unlink(missing_ok=True)
    assert "again.db" not in {each["name"] for each in node.status()["databases"]}
    assert not side(path, "-pos").exists()
    make_database(path, rows=7)
    assert txid(node, path) > at + 1
    assert run_sql(path, "SELECT count(*) FROM t") == [(7,)]


def test_a_writer_that_kept_a_deleted_database_open_cannot_commit_any_more(node: Node) -> None:
    path = node.path("unlinked.db")
    make_database(path, rows=3)
    with Session(path) as old:
        old.run("INSERT INTO t (v) VALUES ('before')")
        path.unlink()
        with pytest.raises(SqlError):
            old.run("INSERT INTO t (v) VALUES ('after')")
    make_database(path, rows=1)
    assert run_sql(path, "SELECT count(*) FROM t") == [(1,)]


def test_mode_ro_and_immutable_open_on_the_primary(node: Node) -> None:
    path = node.path("readonly.db")
    make_database(path, rows=4)
    assert run_sql(path, "SELECT count(*) FROM t", mode="ro") == [(4,)]
    with Session(path) as writer, Session(path, mode="ro") as reader:
        writer.run("INSERT INTO t (v) VALUES (1)")
        assert reader.run("SELECT count(*) FROM t") == [(5,)]
        with pytest.raises(SqlError, match="readonly"):
            reader.run("DELETE FROM t")


def test_after_a_restart_everything_that_this_module_wrote_is_as_it_was(node: Node) -> None:
    names = {each["name"]: (each["txid"], each["checksum"]) for each in node.status()["databases"]}
    assert len(names) > 15
    for name in names:
        fold(node.path(name))
    behind = node.data / "files"
    before = {name: (behind / name).read_bytes() for name in names}
    node.stop()
    node.start()
    assert {each["name"]: (each["txid"], each["checksum"]) for each in node.status()["databases"]} == names
    for name, data in before.items():
        assert (behind / name).read_bytes() == data, name
        assert node.path(name).read_bytes() == data, name
        assert integrity(node.path(name)) == "ok"


def test_a_replica_answers_readers_and_refuses_writers_as_sqlite_does(nodes: Nodes) -> None:
    primary = nodes.primary()
    replica = nodes.replica(primary, writes={"on_replica": "refuse"})
    make_database(primary.path(), rows=20)
    replica.wait_for("app.db", primary.position())
    for number, mode in enumerate(("rw", "ro", "rwc"), 20):
        with Session(replica.path(), mode=mode) as session:
            assert session.run("SELECT count(*) FROM t") == [(number,)]
            with pytest.raises(SqlError) as failure:
                session.run("INSERT INTO t (v) VALUES (1)")
            assert failure.value.code == "SQLITE_READONLY"
            assert failure.value.text == "attempt to write a readonly database"
            run_sql(primary.path(), "INSERT INTO t (v) VALUES (1)")
            replica.wait_for("app.db", primary.position())
            assert session.run("SELECT count(*) FROM t") == [(number + 1,)]
    with pytest.raises(SqlError):
        make_database(replica.path("new.db"))
    calls: list[Callable[[], object]] = [
        replica.path("x.db").touch,
        replica.path("folder").mkdir,
        replica.path().unlink,
    ]
    for call in calls:
        with pytest.raises(OSError, match=r".") as refused:
            call()
        assert refused.value.errno == errno.EROFS
    fold(primary.path())
    wait_until(lambda: byte_equal(primary.path(), replica.path()), "equal files")
