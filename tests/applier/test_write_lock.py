"""While the write lock is held no application writes; who would not yield is named; nothing is left behind."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.applier.protocol import Apply, Lock, Locked, LockRefused, Release, Released, Unlock
from tests.applier.applications import application, busy_writer, open_files
from tests.applier.support import Child, Primary, rows, until

pytestmark = pytest.mark.timeout(60)

MODES = ("WAL", "DELETE", "TRUNCATE", "PERSIST")
LIMIT_MS = 300


def made(child: Child, mode: str, name: str = "app.db") -> Path:
    """A database of the mount, of which nobody has it open."""
    path = child.mount / name
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchall() == [(mode.lower(),)]
        connection.execute("CREATE TABLE t (n)")
    return path


def lock(child: Child, name: str = "app.db", limit_ms: int = LIMIT_MS) -> Locked | LockRefused:
    child.send(Lock(name, limit_ms))
    answer = child.receive()
    assert isinstance(answer, Locked | LockRefused), answer
    return answer


def unlock(child: Child, path: Path) -> None:
    """Give it back, and wait until nothing of the database is open in the child."""
    child.send(Unlock(path.name))
    until(lambda: not [each for each in open_files(child.process.pid) if each.startswith(str(path))])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "opened later"])
def test_a_writer_waits_in_its_busy_timeout_until_the_lock_is_given_back(
    child: Child, mode: str, is_open: bool
) -> None:
    path = made(child, mode)
    if not is_open:
        assert lock(child) == Locked("app.db")
    with application(path, 5) as patient, application(path) as hasty, application(path) as reader:
        if is_open:
            for each in (patient, hasty, reader):
                assert each.run("INSERT INTO t VALUES (1)") == []
            assert lock(child) == Locked("app.db")
        count = reader.run("SELECT count(*) FROM t")
        assert hasty.run("INSERT INTO t VALUES (2)") == "SQLITE_BUSY"
        assert hasty.run("BEGIN IMMEDIATE") == "SQLITE_BUSY"
        patient.begin("INSERT INTO t VALUES (3)")
        assert reader.run("SELECT count(*) FROM t") == count
        time.sleep(0.3)
        assert reader.run("SELECT count(*) FROM t") == count
        unlock(child, path)
        assert patient.end() == []
        assert hasty.run("INSERT INTO t VALUES (4)") == []
        assert reader.run("SELECT count(*) FROM t") == [(count[0][0] + 2,)]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert not path.with_name("app.db-journal").exists() or not any(path.with_name("app.db-journal").read_bytes()[:8])


@pytest.mark.parametrize("mode", MODES)
def test_a_writer_idle_in_its_transaction_is_named_and_does_not_stall_others(child: Child, mode: str) -> None:
    path, other = made(child, mode), made(child, mode, "other.db")
    with application(path, 5) as idle:
        assert idle.run("BEGIN IMMEDIATE") == []
        child.send(Lock("app.db", 3000), Lock("other.db", 100))
        assert child.receive() == Locked("other.db")
        assert child.receive() == LockRefused("app.db", idle.described)
        assert idle.run("INSERT INTO t VALUES (1)") == []
        assert idle.run("COMMIT") == []
        assert lock(child) == Locked("app.db")
    unlock(child, path)
    unlock(child, other)
    assert rows(path, "SELECT n FROM t") == [(1,)]


@pytest.mark.parametrize("mode", MODES)
def test_an_application_that_is_alone_with_its_database_is_named(child: Child, mode: str) -> None:
    path = made(child, mode)
    with application(path) as alone:
        alone.run("PRAGMA locking_mode=EXCLUSIVE")
        assert alone.run("INSERT INTO t VALUES (1)") == []
        assert lock(child) == LockRefused("app.db", alone.described)
        assert alone.run("INSERT INTO t VALUES (2)") == []
    assert lock(child) == Locked("app.db")


def test_a_writer_in_the_middle_of_a_spilled_transaction_is_named(child: Child) -> None:
    path = made(child, "DELETE")
    with application(path) as writer:
        writer.run("PRAGMA cache_size=5")
        writer.run("BEGIN")
        writer.run("INSERT INTO t SELECT randomblob(500) FROM generate_series(1, 1)")
        writer.run(
            "WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 500) "
            "INSERT INTO t SELECT randomblob(900) FROM i"
        )
        assert lock(child) == LockRefused("app.db", writer.described)
        assert writer.run("COMMIT") == []
    assert rows(path, "SELECT count(*) FROM t") == [(500,)]


@pytest.mark.parametrize("mode", MODES)
def test_the_lock_is_got_from_an_application_that_writes_without_a_pause(child: Child, mode: str) -> None:
    path = made(child, mode)
    with busy_writer(path), busy_writer(path):
        for _ in range(5):
            assert lock(child, limit_ms=2000) == Locked("app.db")
            count = rows(path, "SELECT count(*) FROM t")
            time.sleep(0.1)
            assert rows(path, "SELECT count(*) FROM t") == count
            unlock(child, path)
            until(lambda count=count: rows(path, "SELECT count(*) FROM t") > count)  # type: ignore[misc]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("mode", MODES)
def test_a_dead_writers_journal_is_rolled_back_before_the_lock_is_had(child: Child, mode: str) -> None:
    path = made(child, mode)
    with application(path) as dying:
        dying.run("PRAGMA cache_size=5")
        dying.run("INSERT INTO t VALUES (0)")
        dying.run("BEGIN")
        dying.run(
            "WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 500) "
            "INSERT INTO t SELECT randomblob(900) FROM i"
        )
    assert lock(child) == Locked("app.db")
    assert rows(path, "SELECT n FROM t") == [(0,)]
    unlock(child, path)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_the_last_application_to_leave_cleans_up_after_the_lock_as_before_it(child: Child) -> None:
    path = made(child, "WAL")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
        wal = Path(f"{path}-wal").read_bytes()
        assert lock(child) == Locked("app.db")
        unlock(child, path)
        assert Path(f"{path}-wal").read_bytes() == wal
    assert not Path(f"{path}-wal").exists()
    assert not Path(f"{path}-shm").exists()


def test_giving_the_lock_back_leaves_the_wal_of_a_database_that_nobody_has_open(child: Child) -> None:
    path = made(child, "WAL")
    with application(path) as killed:
        killed.run("INSERT INTO t VALUES (1)")
    size = Path(f"{path}-wal").stat().st_size
    assert size
    assert lock(child) == Locked("app.db")
    unlock(child, path)
    assert Path(f"{path}-wal").stat().st_size == size


def test_the_lock_ends_with_the_child(child: Child) -> None:
    path = made(child, "WAL")
    with application(path) as writer:
        assert lock(child) == Locked("app.db")
        assert writer.run("INSERT INTO t VALUES (1)") == "SQLITE_BUSY"
        child.process.kill()
        child.process.wait()
        assert writer.run("INSERT INTO t VALUES (1)") == []


def test_a_database_that_is_not_there_is_refused_and_not_made(child: Child) -> None:
    answer = lock(child)
    assert isinstance(answer, LockRefused)
    assert "No such file" in answer.holder
    assert not (child.mount / "app.db").exists()


def test_asked_twice_it_is_held_once_and_nobody_waits_after_an_unlock(child: Child) -> None:
    path = made(child, "WAL")
    assert lock(child) == Locked("app.db")
    assert lock(child) == Locked("app.db")
    unlock(child, path)
    with application(path) as writer:
        assert writer.run("BEGIN IMMEDIATE") == []
        child.send(Lock("app.db", 60_000), Unlock("app.db"), Lock("app.db", 60_000))
        time.sleep(0.2)
        unlock(child, path)
        assert writer.run("INSERT INTO t VALUES (1)") == []
        assert writer.run("COMMIT") == []
        assert lock(child) == Locked("app.db")


def test_what_comes_while_the_lock_is_held_is_applied_after_it(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    assert lock(child) == Locked("app.db")
    spans: list[Apply] = [primary.change("INSERT INTO t VALUES (?)", number) for number in range(5)]
    child.send(*spans)
    with application(child.mount / "app.db") as writer:
        assert writer.run("BEGIN IMMEDIATE") == "SQLITE_BUSY"
        assert writer.run("SELECT count(*) FROM t") == [(0,)]
        child.send(Unlock("app.db"))
        child.expect_applied(6)
        assert writer.run("SELECT count(*) FROM t") == [(5,)]


def test_a_release_gives_the_lock_back(child: Child) -> None:
    path = made(child, "WAL")
    assert lock(child) == Locked("app.db")
    child.send(Release("app.db"))
    assert child.expect(Released).frames == 0
    with application(path) as writer:
        assert writer.run("INSERT INTO t VALUES (1)") == []
