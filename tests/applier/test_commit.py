"""A transaction of another node, committed here as one of this node's applications would commit it."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.applier.protocol import (
    Close,
    Closed,
    CommitRefused,
    Committed,
    Lock,
    Locked,
    Release,
    Released,
    Report,
    Reported,
    Unlock,
)
from litereplica.sqlite.pages import parse_database_header
from tests.applier.applications import application, busy_writer, open_files
from tests.applier.forwarding import answer, answer_to, commit, forwarded
from tests.applier.support import Child, rows, until

pytestmark = pytest.mark.timeout(60)

MODES = ("WAL", "DELETE", "TRUNCATE", "PERSIST")
SIZES = (512, 4096, 65536)
# How the journal ends, and how long a page is, meet nowhere: each mode at one size, each size with and without a WAL.
MODES_AND_SIZES = [*((mode, 4096) for mode in MODES), *((mode, size) for size in (512, 65536) for mode in MODES[:2])]
MANY = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
    "INSERT INTO t (v) SELECT randomblob(900) FROM n"
)


def made(child: Child, mode: str, page_size: int = 4096, name: str = "app.db") -> Path:
    """A database of the mount, of which nobody has it open."""
    path = child.mount / name
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchall() == [(mode.lower(),)]
        connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
        connection.execute(MANY.format(50))
    return path


def is_sound(path: Path) -> bool:
    return rows(path, "PRAGMA integrity_check") == [("ok",)]


def change_counter(path: Path) -> int:
    return parse_database_header(path.read_bytes()[:100]).change_counter


@pytest.mark.parametrize(("mode", "page_size"), MODES_AND_SIZES)
def test_it_is_seen_at_once_by_applications_that_have_read_before(child: Child, mode: str, page_size: int) -> None:
    path = made(child, mode, page_size)
    with application(path) as reader, application(path, 5) as writer:
        for number in range(1, 6):
            assert reader.run("SELECT count(*), total(length(v)) FROM t")[0][0] == 48 + 2 * number
            commit(child, path, "INSERT INTO t (v) VALUES (randomblob(3000))")
            assert reader.run("SELECT max(k) FROM t") == [(49 + 2 * number,)]
            assert writer.run("INSERT INTO t (v) VALUES (zeroblob(3000))") == []
        assert reader.run("PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT count(*) FROM t") == [(60,)]


@pytest.mark.parametrize(("mode", "page_size"), MODES_AND_SIZES)
def test_it_may_make_the_database_longer_and_shorter(child: Child, mode: str, page_size: int) -> None:
    path = made(child, mode, page_size)
    # 6 MiB: more than is held in memory at once.
    commit(child, path, MANY.format(7000))
    assert rows(path, "SELECT count(*) FROM t") == [(7050,)]
    assert is_sound(path)
    commit(child, path, "DELETE FROM t WHERE k > 5")
    wanted = forwarded(path, "VACUUM")
    assert answer_to(child, wanted) == Committed("app.db", wanted.number)
    assert rows(path, "SELECT count(*) FROM t") == [(5,)]
    assert is_sound(path)
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
        until(lambda: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0] == 0)
        assert path.stat().st_size == connection.execute("PRAGMA page_count").fetchall()[0][0] * page_size


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("page_size", SIZES)
@pytest.mark.parametrize("empty", [False, True])
def test_it_may_make_a_new_database(child: Child, mode: str, page_size: int, empty: bool) -> None:
    path = child.mount / "folder" / "new.db"
    if empty:
        path.parent.mkdir()
        path.touch()
    wanted = forwarded(
        child.mount / "none.db",
        f"PRAGMA page_size={page_size}",
        f"PRAGMA journal_mode={mode}",
        "CREATE TABLE t (k INTEGER PRIMARY KEY, v)",
        name="folder/new.db",
    )
    assert answer_to(child, wanted) == Committed("folder/new.db", wanted.number)
    assert not Path(f"{path}-journal").exists()
    assert rows(path, "PRAGMA journal_mode") == [(mode.lower(),)]
    with application(path) as app:
        assert app.run("INSERT INTO t (v) VALUES (1)") == []
        wanted = forwarded(path, "INSERT INTO t (v) VALUES (2)", name="folder/new.db")
        assert answer_to(child, wanted) == Committed("folder/new.db", wanted.number)
        assert app.run("SELECT v FROM t") == [(1,), (2,)]


def test_a_change_of_a_database_that_is_not_there_is_refused(child: Child) -> None:
    path = made(child, "WAL")
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)", name="other.db")
    refusal = answer_to(child, wanted)
    assert isinstance(refusal, CommitRefused)
    assert not refusal.busy
    assert "not there" in refusal.reason


def test_the_change_counter_rises_by_one_although_the_record_lacks_page_one(child: Child) -> None:
    path = made(child, "DELETE")
    before = change_counter(path)
    # As a replica writes it, through its WAL: its page 1 does not change.
    wanted = forwarded(path, "UPDATE t SET v = zeroblob(900) WHERE k = 30", with_page_one=False)
    with application(path) as reader:
        assert reader.run("SELECT v FROM t WHERE k = 30")[0][0] != bytes(900)
        assert answer_to(child, wanted) == Committed("app.db", wanted.number)
        assert reader.run("SELECT v FROM t WHERE k = 30") == [(bytes(900),)]
    assert change_counter(path) == before + 1
    header = parse_database_header(path.read_bytes()[:100])
    assert header.version_valid_for == header.change_counter


@pytest.mark.parametrize("mode", MODES)
def test_an_open_write_transaction_is_waited_for_and_then_named(child: Child, mode: str) -> None:
    path = made(child, mode)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)", limit_ms=300)
    patient = wanted._replace(number=999, limit_ms=10_000)
    with application(path, 5) as app:
        assert app.run("BEGIN IMMEDIATE") == []
        refusal = answer_to(child, wanted)
        assert isinstance(refusal, CommitRefused)
        assert refusal.busy
        assert app.described in refusal.reason
        child.send(patient)
        time.sleep(0.3)
        assert app.run("ROLLBACK") == []
        assert answer(child) == Committed("app.db", 999)
        assert app.run("INSERT INTO t (v) VALUES (2)") == []
    assert rows(path, "SELECT count(*) FROM t") == [(52,)]


@pytest.mark.parametrize("mode", ["DELETE", "PERSIST"])
def test_readers_in_rollback_mode_are_waited_for_and_new_ones_are_not_shut_out(child: Child, mode: str) -> None:
    path = made(child, mode)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)", limit_ms=1500)
    with application(path, 5) as long, application(path, 2) as other:
        assert long.run("BEGIN") == []
        assert long.run("SELECT count(*) FROM t") == [(50,)]
        child.send(wanted)
        started = time.monotonic()
        looks = 0
        while time.monotonic() - started < 1.2:
            assert other.run("SELECT count(*) FROM t") == [(50,)]
            looks += 1
        assert looks > 5
        refusal = answer(child)
        assert isinstance(refusal, CommitRefused)
        assert refusal.busy
        assert long.described in refusal.reason
        assert not Path(f"{path}-journal").exists()
        assert other.run("INSERT INTO t (v) VALUES (1)") == "SQLITE_BUSY"
        child.send(wanted._replace(number=5))
        time.sleep(0.2)
        assert long.run("COMMIT") == []
        assert answer(child) == Committed("app.db", 5)
    assert rows(path, "SELECT count(*) FROM t") == [(51,)]


@pytest.mark.parametrize("mode", MODES)
def test_an_application_that_is_alone_with_its_database_keeps_it(child: Child, mode: str) -> None:
    path = made(child, mode)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)", limit_ms=200)
    with application(path) as alone:
        alone.run("PRAGMA locking_mode=EXCLUSIVE")
        assert alone.run("INSERT INTO t (v) VALUES (1)") == []
        refusal = answer_to(child, wanted)
        assert isinstance(refusal, CommitRefused)
        assert refusal.busy
        assert alone.described in refusal.reason


@pytest.mark.parametrize("mode", MODES)
def test_it_gets_its_turn_beside_applications_that_write_without_a_pause(child: Child, mode: str) -> None:
    path = made(child, mode)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE t ADD COLUMN n")
    wanted = forwarded(path, "CREATE TABLE other (n)")
    with busy_writer(path), busy_writer(path):
        # What it overwrites is of no interest here: only that it comes through.
        child.send(wanted._replace(limit_ms=20_000))
        assert answer(child) == Committed("app.db", wanted.number)


def test_a_journal_of_a_dead_writer_is_rolled_back_first(child: Child) -> None:
    path = made(child, "DELETE")
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)")
    with application(path) as dying:
        dying.run("PRAGMA cache_size=5")
        dying.run("BEGIN")
        dying.run("UPDATE t SET v = zeroblob(900)")
        dying.run(MANY.format(500))
    assert Path(f"{path}-journal").stat().st_size
    assert answer_to(child, wanted) == Committed("app.db", wanted.number)
    assert rows(path, "SELECT count(*) FROM t WHERE v = zeroblob(900)") == [(0,)]
    assert rows(path, "SELECT count(*) FROM t") == [(51,)]


def test_a_wal_that_applications_begin_again_or_empty_in_between_is_no_obstacle(child: Child) -> None:
    path = made(child, "WAL")
    with application(path, 5) as app:
        for number in range(12):
            commit(child, path, f"UPDATE t SET v = {number} WHERE k = 1")
            assert app.run("SELECT v FROM t WHERE k = 1") == [(number,)]
            assert app.run(f"UPDATE t SET v = {number} WHERE k = 2") == []
            mode = ("PASSIVE", "RESTART", "TRUNCATE")[number % 3]
            app.run(f"PRAGMA wal_checkpoint({mode})")
            assert app.run(f"UPDATE t SET v = {number} WHERE k = 3") == []
    assert rows(path, "SELECT v FROM t WHERE k < 4") == [(11,)] * 3
    assert is_sound(path)


def test_a_database_that_was_dropped_and_made_again_is_not_taken_for_the_old_one(child: Child) -> None:
    path = made(child, "WAL")
    commit(child, path, "INSERT INTO t (v) VALUES (1)")
    for each in child.mount.iterdir():
        each.unlink()
    made(child, "WAL")
    commit(child, path, "INSERT INTO t (v) VALUES ('new')")
    assert rows(path, "SELECT count(*) FROM t WHERE v = 'new'") == [(1,)]
    for each in child.mount.iterdir():
        each.unlink()
    made(child, "DELETE")
    commit(child, path, "INSERT INTO t (v) VALUES ('third')")
    assert rows(path, "SELECT count(*) FROM t WHERE v IN ('third', 'new')") == [(1,)]


def test_the_files_are_folded_and_closed_when_no_more_comes(child: Child) -> None:
    path = made(child, "WAL")
    commit(child, path, "INSERT INTO t (v) VALUES (1)")
    assert open_files(child.process.pid).count(str(path))
    until(lambda: Path(f"{path}-wal").stat().st_size == 0)
    until(lambda: str(path) not in open_files(child.process.pid))
    with application(path, 5) as app:
        assert app.run("PRAGMA journal_mode=DELETE") == [("delete",)]
    commit(child, path, "INSERT INTO t (v) VALUES (1)")
    assert rows(path, "SELECT count(*) FROM t") == [(52,)]


@pytest.mark.parametrize("mode", MODES)
def test_a_release_gives_up_what_waits(child: Child, mode: str) -> None:
    path = made(child, mode)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)")
    with application(path) as app:
        assert app.run("BEGIN IMMEDIATE") == []
        child.send(wanted, wanted._replace(number=500), Release("app.db"))
        for number in (wanted.number, 500):
            refusal = answer(child)
            assert isinstance(refusal, CommitRefused)
            assert (refusal.number, refusal.busy) == (number, True)
        assert isinstance(child.receive(), Released)
        assert app.run("COMMIT") == []
    assert rows(path, "SELECT count(*) FROM t") == [(50,)]


def test_what_is_dropped_is_not_committed(child: Child) -> None:
    path = made(child, "WAL")
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)")
    with application(path) as app:
        assert app.run("BEGIN IMMEDIATE") == []
        child.send(wanted, Close("app.db"))
        assert isinstance(answer(child), CommitRefused)
        assert isinstance(child.receive(), Closed)


@pytest.mark.parametrize("mode", MODES)
def test_a_handoff_goes_first_and_what_waits_behind_it_ends_in_time(child: Child, mode: str) -> None:
    path = made(child, mode)
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)")
    with application(path) as app:
        assert app.run("BEGIN IMMEDIATE") == []
        child.send(wanted._replace(limit_ms=1200), wanted._replace(number=500, limit_ms=60_000), Lock("app.db", 3000))
        time.sleep(0.2)
        assert app.run("ROLLBACK") == []
        assert child.receive() == Locked("app.db")
        refusal = answer(child)
        assert isinstance(refusal, CommitRefused)
        assert (refusal.number, refusal.busy) == (wanted.number, True)
        assert app.run("BEGIN IMMEDIATE") == "SQLITE_BUSY"
        child.send(Unlock("app.db"))
        assert answer(child) == Committed("app.db", 500)
    assert rows(path, "SELECT count(*) FROM t") == [(51,)]


def test_a_report_is_answered_at_once_and_after_what_was_published(child: Child) -> None:
    path = made(child, "WAL")
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)")
    with application(path) as app:
        assert app.run("BEGIN IMMEDIATE") == []
        child.send(wanted, Report("app.db", 7), Report("unknown.db", 8))
        assert child.receive() == Reported("app.db", 7)
        assert child.receive() == Reported("unknown.db", 8)
        assert app.run("COMMIT") == []
        assert answer(child) == Committed("app.db", wanted.number)


def test_a_damaged_record_is_refused_and_changes_nothing(child: Child) -> None:
    for mode, name in (("WAL", "wal.db"), ("DELETE", "app.db")):
        path = made(child, mode, name=name)
        before = rows(path, "SELECT * FROM t")
        wanted = forwarded(path, MANY.format(3000))
        data = bytearray(Path(wanted.path).read_bytes())
        data[-5000] ^= 1
        Path(wanted.path).write_bytes(data)
        refusal = answer_to(child, wanted)
        assert isinstance(refusal, CommitRefused)
        assert not refusal.busy
        assert rows(path, "SELECT * FROM t") == before
        assert not Path(f"{path}-journal").exists()
        commit(child, path, "INSERT INTO t (v) VALUES (1)")
