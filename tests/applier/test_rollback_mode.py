"""Databases that the primary has in rollback mode: read through a WAL here, exact once folded."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from litereplica.applier.protocol import Checkpointed, CheckpointFailed, Failed, Install
from litereplica.store.disk import Disk
from litereplica.store.replica_wal import make_wal
from tests.applier.modes import LIBRARIES, AnyPrimary, header_mode, reader
from tests.applier.support import Child, rows, together, until

TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, n, data)"


def insert(number: int, size: int = 100) -> str:
    return f"INSERT INTO t (n, data) VALUES ({number}, randomblob({size}))"


def wal_bytes(child: Child) -> int:
    return (child.mount / "app.db-wal").stat().st_size


def wait_folded(child: Child, txid: int) -> None:
    """Until everything up to ``txid`` is in the file and the WAL begins anew."""
    while True:
        message = child.receive()
        assert not isinstance(message, Failed | CheckpointFailed), message
        if isinstance(message, Checkpointed) and message.truncated and message.txid >= txid:
            return


def assert_exact(primary: AnyPrimary, child: Child) -> None:
    """The replica's file is byte for byte the primary's, folded, and sound for a new reader."""
    replica = child.mount / primary.name
    assert rows(replica, "PRAGMA integrity_check") == [("ok",)]
    until(lambda: replica.read_bytes() == primary.path.read_bytes())


def shown(child: Child, primary: AnyPrimary) -> Path:
    """The database as the daemon shows it first: its file, and the WAL that it needs."""
    replica = child.mount / primary.name
    replica.with_name("new").write_bytes(primary.path.read_bytes())
    make_wal(Disk(), replica.with_name("new"), Path(f"{replica}-wal"))
    return replica.with_name("new").rename(replica)


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
def test_transactions_of_a_rollback_mode_are_applied_and_folded(tmp_path: Path, child: Child, mode: str) -> None:
    primary = AnyPrimary(tmp_path, mode=mode)
    child.apply(primary.change(TABLE))
    for number in range(30):
        child.send(primary.change(insert(number, 5000)))
    child.send(primary.change("DELETE FROM t WHERE n % 3"), primary.change("VACUUM"))
    wait_folded(child, primary.txid)
    assert header_mode(child.mount / "app.db") == "rollback"
    assert_exact(primary, child)
    assert rows(child.mount / "app.db", "SELECT count(*) FROM t") == [(10,)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_first_reader_finds_the_wal_that_the_daemon_made(tmp_path: Path, child: Child, library: str) -> None:
    primary = AnyPrimary(tmp_path)
    primary.change(TABLE, insert(0))
    replica = shown(child, primary)
    before = replica.read_bytes()
    with reader(replica, library) as early, reader(replica, library) as late:
        early.run("BEGIN")
        assert early.run("SELECT n FROM t") == [(0,)]
        for number in range(1, 50):
            child.apply(primary.change(insert(number)))
        assert early.run("SELECT count(*) FROM t") == [(1,)]
        assert late.run("SELECT count(*) FROM t") == [(50,)]
        assert replica.read_bytes()[24:28] == before[24:28]  # nothing is folded under a reader of the file
        early.run("COMMIT")
        assert early.run("SELECT count(*) FROM t") == [(50,)]
        wait_folded(child, primary.txid)
    assert_exact(primary, child)


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_idle_reader_goes_on_through_every_switch_of_the_mode(tmp_path: Path, child: Child, library: str) -> None:
    primary = AnyPrimary(tmp_path, mode="WAL")
    replica = child.mount / "app.db"
    child.apply(primary.change(TABLE))
    with reader(replica, library) as idle:
        assert idle.run("SELECT count(*) FROM t") == [(0,)]
        number = 0
        for mode in ("DELETE", "WAL", "PERSIST", "TRUNCATE", "WAL"):
            primary.set_mode(mode)
            for _ in range(3):
                number += 1
                child.apply(primary.change(insert(number)))
            assert idle.run("SELECT count(*) FROM t") == [(number,)]
            with reader(replica, library) as new:
                assert new.run("SELECT count(*), max(n) FROM t") == [(number, number)]
            wait_folded(child, primary.txid)
            assert header_mode(replica) == ("wal" if mode == "WAL" else "rollback")
            assert (wal_bytes(child) == 0) == (mode == "WAL")
            number += 1
            child.apply(primary.change(insert(number)))
            assert idle.run("SELECT count(*) FROM t") == [(number,)]
            assert idle.run("PRAGMA integrity_check") == [("ok",)]
    wait_folded(child, primary.txid)
    assert_exact(primary, child)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_long_read_transaction_keeps_its_snapshot_across_switches(tmp_path: Path, child: Child, library: str) -> None:
    primary = AnyPrimary(tmp_path, mode="WAL")
    replica = child.mount / "app.db"
    child.apply(primary.change(TABLE), primary.change(insert(0)))
    with reader(replica, library) as old, reader(replica, library) as new:
        old.run("BEGIN")
        assert old.run("SELECT count(*), max(n) FROM t") == [(1, 0)]
        number = 0
        for mode in ("DELETE", "WAL", "PERSIST", "WAL", "TRUNCATE"):
            primary.set_mode(mode)
            for _ in range(400):
                number += 1
                child.send(primary.change(insert(number)))
                if not number % 50:
                    child.expect_applied(primary.txid)
            assert old.run("SELECT count(*), max(n) FROM t") == [(1, 0)]
            assert new.run("SELECT count(*), max(n) FROM t") == [(number + 1, number)]
        assert old.run("PRAGMA integrity_check") == [("ok",)]
        old.run("COMMIT")
        assert old.run("SELECT count(*), max(n) FROM t") == [(number + 1, number)]
        child.apply(primary.change(insert(number + 1)))
        wait_folded(child, primary.txid)
    assert_exact(primary, child)


def test_the_wal_begins_again_and_is_never_empty(tmp_path: Path, child: Child) -> None:
    primary = AnyPrimary(tmp_path, page_size=512)
    primary.change(TABLE)
    replica = shown(child, primary)
    with reader(replica) as watcher:
        largest = 0
        for number in range(3500):
            child.send(primary.change(insert(number, 600)))
            if number % 50 == 49:
                child.expect_applied(primary.txid - 20)
                size = wal_bytes(child)
                assert size > 0
                largest = max(largest, size)
                assert watcher.run("SELECT count(*) > 0 FROM t") == [(1,)]
        wait_folded(child, primary.txid)
        # The last of them came after the last look.
        assert wal_bytes(child) > 0
        assert max(largest, wal_bytes(child)) < 20_000 * 536
    assert_exact(primary, child)


def test_a_wal_that_began_again_goes_on_after_every_process_has_died(tmp_path: Path) -> None:
    """What is left in it is older than the file, or the same: a rebuilt wal-index shows nothing else."""
    primary = AnyPrimary(tmp_path)
    replica = tmp_path / "mount/app.db"
    with Child(tmp_path / "mount") as first:
        first.apply(primary.change(TABLE), *(primary.change(insert(number)) for number in range(20)))
        wait_folded(first, primary.txid)
        assert wal_bytes(first) > 0
    Path(f"{replica}-shm").unlink()
    with reader(replica) as survivor:
        assert survivor.run("SELECT count(*), max(n) FROM t") == [(20, 19)]
        with Child(tmp_path / "mount") as second:
            second.apply(primary.change(insert(20)))
            assert survivor.run("SELECT count(*), max(n) FROM t") == [(21, 20)]
            wait_folded(second, primary.txid)
            assert_exact(primary, second)


def test_readers_without_a_wal_are_waited_for_before_the_first_frame(tmp_path: Path, child: Child) -> None:
    """Whoever found the file without a WAL reads the file alone: it gets one when they have gone."""
    primary = AnyPrimary(tmp_path)
    primary.change(TABLE, insert(0))
    replica = child.mount / "app.db"
    replica.write_bytes(primary.path.read_bytes())
    with reader(replica) as early:
        early.run("BEGIN")
        assert early.run("SELECT n FROM t") == [(0,)]
        assert not Path(f"{replica}-wal").exists()
        span = primary.change(insert(1))
        child.send(span)
        failure = child.expect(Failed)
        assert failure.retry
        assert "without a WAL" in failure.reason
        assert early.run("SELECT n FROM t") == [(0,)]
        early.run("COMMIT")
        child.apply(span)
        assert early.run("SELECT count(*) FROM t") == [(2,)]


@pytest.mark.parametrize("modes", [("DELETE", "WAL"), ("WAL", "DELETE")])
def test_install_replaces_a_database_of_another_mode(tmp_path: Path, child: Child, modes: tuple[str, str]) -> None:
    old, new = (AnyPrimary(tmp_path / mode, mode=mode) for mode in modes)
    child.apply(old.change(TABLE), old.change(insert(1)))
    new.change(TABLE, *(insert(number) for number in range(50)))
    replica = child.mount / "app.db"
    with reader(replica) as held, reader(replica) as idle:
        held.run("BEGIN")
        assert held.run("SELECT count(*) FROM t") == [(1,)]
        assert idle.run("SELECT count(*) FROM t") == [(1,)]
        child.send(Install("app.db", str(new.path), 4096, new.path.stat().st_size // 4096, new.txid))
        child.expect_applied(new.txid)
        assert held.run("SELECT count(*) FROM t") == [(1,)]
        assert idle.run("SELECT count(*) FROM t") == [(50,)]
        held.run("COMMIT")
        child.apply(new.change(insert(99)))
        assert held.run("SELECT count(*) FROM t") == [(51,)]
        wait_folded(child, new.txid)
    assert_exact(new, child)


def test_records_of_an_unknown_format_are_refused(tmp_path: Path, child: Child) -> None:
    primary = AnyPrimary(tmp_path)
    child.apply(primary.change(TABLE))
    data = bytearray(primary.path.read_bytes())
    data[18:20] = b"\x03\x03"
    child.send(primary._log({1: bytes(data[:4096])}, len(data) // 4096))
    failure = child.expect(Failed)
    assert not failure.retry
    assert "format versions 3 and 3" in failure.reason


# ------------------------------------------------------------------------------------------------ another page size
@pytest.mark.parametrize("library", LIBRARIES)
def test_readers_follow_a_change_of_the_page_size(tmp_path: Path, child: Child, library: str) -> None:
    primary = AnyPrimary(tmp_path)
    replica = child.mount / "app.db"
    child.apply(primary.change(TABLE, *(insert(number, 3000) for number in range(100))))
    with reader(replica, library) as idle:
        assert idle.run("SELECT count(*) FROM t") == [(100,)]
        number = 99
        for page_size in (512, 65536, 1024, 4096):
            child.apply(primary.resize(page_size))
            assert idle.run("SELECT count(*), max(n) FROM t") == [(number + 1, number)]
            assert idle.run("PRAGMA page_size") == [(page_size,)]
            for _ in range(3):
                number += 1
                child.apply(primary.change(insert(number)))
            assert idle.run("SELECT count(*), max(n) FROM t") == [(number + 1, number)]
            with reader(replica, library) as new:
                assert new.run("SELECT count(*), max(n) FROM t") == [(number + 1, number)]
                assert new.run("PRAGMA integrity_check") == [("ok",)]
            wait_folded(child, primary.txid)
            assert_exact(primary, child)
            assert idle.run("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_read_transaction_is_waited_for_before_the_page_size_changes(
    tmp_path: Path, child: Child, library: str
) -> None:
    primary, other = AnyPrimary(tmp_path), AnyPrimary(tmp_path, "other.db")
    replica = child.mount / "app.db"
    child.apply(primary.change(TABLE, *(insert(number, 3000) for number in range(50))))
    child.apply(other.change(TABLE))
    with reader(replica, library) as old, reader(replica, library) as new:
        old.run("BEGIN")
        assert old.run("SELECT count(*) FROM t") == [(50,)]
        child.send(primary.change("DELETE FROM t WHERE n > 9"), primary.resize(512))
        for number in range(50):  # other databases do not wait
            child.apply(other.change(insert(number)))
            assert old.run("SELECT count(*), sum(length(data)) FROM t") == [(50, 150_000)]
        until(lambda: new.run("SELECT count(*) FROM t") in ([(10,)], [(50,)]))
        old.run("COMMIT")
        child.expect_applied(primary.txid)
        for each in (old, new):
            assert each.run("SELECT count(*), sum(length(data)) FROM t") == [(10, 30_000)]
            assert each.run("PRAGMA page_size") == [(512,)]
    wait_folded(child, primary.txid)
    assert_exact(primary, child)


def test_busy_readers_do_not_keep_the_page_size_from_changing(tmp_path: Path, child: Child) -> None:
    primary = AnyPrimary(tmp_path)
    replica = child.mount / "app.db"
    child.apply(primary.change(TABLE, *(insert(number, 3000) for number in range(50))))
    with contextlib.ExitStack() as readers:
        busy = [readers.enter_context(reader(replica)) for _ in range(3)]
        for turn, page_size in enumerate((1024, 8192, 512) * 3):
            child.send(primary.resize(page_size))
            number = 0
            # Always one of them is inside a transaction.
            while busy[0].run("PRAGMA page_size") != [(page_size,)]:
                held, next_one = busy[number % 3], busy[(number + 1) % 3]
                next_one.run("BEGIN")
                assert next_one.run("SELECT count(*) FROM t") == [(50 + turn,)]
                held.run("ROLLBACK")
                number += 1
                assert number < 20_000
            for each in busy:
                each.run("ROLLBACK")
            child.apply(primary.change(insert(100 + turn)))
    wait_folded(child, primary.txid)
    assert_exact(primary, child)


def test_a_change_of_the_page_size_in_the_middle_of_a_batch(tmp_path: Path, child: Child) -> None:
    primary = AnyPrimary(tmp_path)
    child.apply(primary.change(TABLE))
    spans = []
    for page_size in (512, 8192, 4096):
        spans += [primary.change(insert(number, 3_000_00)) for number in range(10)]
        spans.append(primary.resize(page_size))
        spans.append(primary.change(insert(99)))
    child.apply(together(spans))
    assert rows(child.mount / "app.db", "SELECT count(*) FROM t") == [(33,)]
    wait_folded(child, primary.txid)
    assert_exact(primary, child)


def test_a_redo_over_a_published_change_of_the_page_size(tmp_path: Path) -> None:
    """The dead applier had shown the new size, and its records of the old size are sent again with the change."""
    primary = AnyPrimary(tmp_path)
    replica = tmp_path / "mount/app.db"
    first = primary.change(TABLE)
    spans = [primary.change(insert(number, 600_000)) for number in range(4)]
    spans += [primary.resize(512), primary.change(insert(4))]
    with Child(tmp_path / "mount") as dead:
        dead.apply(first, *spans)
    with reader(replica) as watcher:
        assert watcher.run("SELECT count(*) FROM t") == [(5,)]
        with Child(tmp_path / "mount") as second:
            for span in spans:
                second.send(span._replace(redo_until=primary.txid))
                assert watcher.run("SELECT count(*) FROM t") == [(5,)]
            second.expect_applied(primary.txid)
            assert watcher.run("SELECT count(*), max(n) FROM t") == [(5, 4)]
            wait_folded(second, primary.txid)
            assert_exact(primary, second)


@pytest.mark.parametrize("sizes", [(4096, 512), (512, 65536)])
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_install_over_another_page_size_reaches_readers_that_are_open(
    tmp_path: Path, child: Child, mode: str, sizes: tuple[int, int]
) -> None:
    old, new = (AnyPrimary(tmp_path / str(size), mode=mode, page_size=size) for size in sizes)
    child.apply(old.change(TABLE), old.change(insert(1)))
    new.change(TABLE, *(insert(number, 2000) for number in range(50)))
    replica = child.mount / "app.db"
    with reader(replica) as held, reader(replica) as idle:
        assert idle.run("SELECT count(*) FROM t") == [(1,)]
        held.run("BEGIN")
        assert held.run("SELECT count(*) FROM t") == [(1,)]
        child.send(Install("app.db", str(new.path), sizes[1], new.path.stat().st_size // sizes[1], new.txid))
        assert idle.run("SELECT count(*) FROM t") == [(1,)]
        held.run("COMMIT")
        child.expect_applied(new.txid)
        assert held.run("SELECT count(*) FROM t") == [(50,)]
        child.apply(new.change(insert(99)))
        assert idle.run("SELECT count(*) FROM t") == [(51,)]
        wait_folded(child, new.txid)
    assert_exact(new, child)


def test_another_page_size_without_all_pages_is_refused(tmp_path: Path, child: Child) -> None:
    primary = AnyPrimary(tmp_path)
    child.apply(primary.change(TABLE, insert(1)))
    primary.resize(512)
    data = primary.path.read_bytes()
    primary.txid = 1
    child.send(primary._log({1: data[:512]}, len(data) // 512))
    failure = child.expect(Failed)
    assert not failure.retry
    assert "512" in failure.reason
    assert rows(child.mount / "app.db", "SELECT count(*) FROM t") == [(1,)]


def test_a_file_in_rollback_mode_takes_records_through_a_wal(tmp_path: Path, child: Child) -> None:
    """What a restart of the daemon leaves: the folded file, and no WAL at all."""
    primary = AnyPrimary(tmp_path)
    spans = [primary.change(TABLE), primary.change(insert(0))]
    (child.mount / "app.db").write_bytes(primary.path.read_bytes())
    child.apply(*spans, primary.change(insert(1)))
    assert rows(child.mount / "app.db", "SELECT n FROM t") == [(0,), (1,)]
    wait_folded(child, primary.txid)
    assert_exact(primary, child)
    with contextlib.closing(sqlite3.connect(primary.path)) as check:
        assert check.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
    assert wal_bytes(child) > 0
