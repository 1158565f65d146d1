"""The replica's WAL is folded in time, without ever waiting for a reader, and without polling."""

import time
from pathlib import Path

import pytest

from litereplica.applier import checkpoint
from litereplica.applier.opened import open_wal
from litereplica.applier.protocol import Applied, Checkpointed, Failed, Stop, Warm
from tests.applier.applications import open_files
from tests.applier.support import Child, Primary, assert_equal_files, client, until


def wal_bytes(child: Child) -> int:
    return (child.mount / "app.db-wal").stat().st_size


def switches(child: Child) -> int:
    """Times that any thread of the child was put to sleep or interrupted: it rises with each wake-up."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{child.process.pid}/task").glob("*/status")
        for line in status.read_text(encoding="ascii").splitlines()
        if "ctxt_switches" in line
    )


def test_what_was_applied_is_folded_soon_and_then_nothing_wakes_up(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    for number in range(20):
        child.send(primary.change("INSERT INTO t VALUES (?)", number))
    child.expect_applied(primary.txid)
    while not (folded := child.expect(Checkpointed)).truncated:
        pass
    assert folded.txid == primary.txid
    assert wal_bytes(child) == 0
    primary.fold()
    assert primary.path.read_bytes() == (child.mount / "app.db").read_bytes()
    time.sleep(0.2)  # the last message is sent before the thread goes to sleep
    before = switches(child)
    time.sleep(2.5)
    assert switches(child) - before <= 1
    child.apply(primary.change("INSERT INTO t VALUES (99)"))  # the first of a new generation of the WAL
    assert_equal_files(primary, child.mount / "app.db")


def test_a_reader_never_delays_an_apply_and_is_never_delayed_by_a_checkpoint(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (data)"))
    with client(child.mount / "app.db") as reader:
        reader.run("BEGIN")
        reader.run("SELECT count(*) FROM t")
        slowest = 0.0
        for _ in range(2500):  # far beyond the size at which a checkpoint starts
            span = primary.change("INSERT INTO t VALUES (randomblob(3000))")
            started = time.monotonic()
            child.send(span)
            child.expect_applied(span.last_txid)
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 10
        assert wal_bytes(child) > 5000 * 4096
        started = time.monotonic()
        assert reader.run("SELECT count(*) FROM t") == [(0,)]
        assert time.monotonic() - started < 10
        reader.run("COMMIT")
        # Now nobody is in the way: the next look folds everything.
        child.apply(primary.change("INSERT INTO t VALUES (1)"))
        until(lambda: wal_bytes(child) == 0)
    assert_equal_files(primary, child.mount / "app.db")


def test_a_long_burst_does_not_let_the_wal_grow_for_ever(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path, page_size=512)
    child.apply(primary.change("CREATE TABLE t (data)"))
    largest = 0
    for sent in range(12_000):
        child.send(primary.change("INSERT INTO t VALUES (randomblob(1500))"))
        if sent % 100 == 0:
            child.expect_applied(max(1, primary.txid - 50))
            largest = max(largest, wal_bytes(child))
    child.expect_applied(primary.txid)
    assert largest < 30_000 * 536
    assert_equal_files(primary, child.mount / "app.db")


def test_a_checkpoint_never_claims_more_than_the_file_has(tmp_path: Path, child: Child) -> None:
    """At each Checkpointed every page of the database file is as that transaction left it, or newer."""
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (txid INTEGER, data)"))
    checked = 0
    for _ in range(3000):
        child.send(primary.change("INSERT INTO t VALUES (?, randomblob(1000))", primary.txid + 1))
        if primary.txid % 4:
            continue
        while True:
            message = child.receive()
            assert not isinstance(message, Failed)
            if isinstance(message, Checkpointed):
                data = (child.mount / "app.db").read_bytes()
                for pgno, writes in primary.history.items():
                    needed = max((txid for txid, _ in writes if txid <= message.txid), default=0)
                    allowed = {written for txid, written in writes if txid >= needed}
                    if needed:
                        assert hash(data[(pgno - 1) * 4096 : pgno * 4096]) in allowed, (pgno, message)
                checked += 1
            elif isinstance(message, Applied) and message.txid == primary.txid:
                break
    assert checked >= 3


def test_stop_finishes_what_is_queued_and_folds_it(tmp_path: Path, child: Child) -> None:
    primary, other = Primary(tmp_path), Primary(tmp_path, "dir/other.db")
    for source in (primary, other):
        child.send(source.change("CREATE TABLE t (n)"))
        child.send(*(source.change("INSERT INTO t VALUES (?)", number) for number in range(200)))
    child.send(Stop())
    truncated: set[str] = set()
    while len(truncated) < 2:
        message = child.expect(Checkpointed)
        if message.truncated and message.txid == 201:
            truncated.add(message.database)
    assert child.process.wait(30) == 0
    for source in (primary, other):
        assert Path(f"{child.mount / source.name}-wal").stat().st_size == 0
        source.fold()
        assert source.path.read_bytes() == (child.mount / source.name).read_bytes()


def test_stop_does_not_wait_for_a_reader(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    with client(child.mount / "app.db") as reader:
        reader.run("BEGIN")
        reader.run("SELECT * FROM t")
        child.apply(primary.change("INSERT INTO t VALUES (1)"))
        child.send(Stop())
        assert child.process.wait(5) == 0
        assert reader.run("SELECT * FROM t") == []


def test_warming_touches_nothing_and_needs_no_file(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    child.send(Warm("none.db", 4096), Warm("app.db", 1 << 30))
    child.apply(primary.change("INSERT INTO t VALUES (1)"))
    assert not (child.mount / "none.db-wal").exists()
    assert_equal_files(primary, child.mount / "app.db")


def test_files_of_databases_that_are_folded_are_closed_when_others_need_the_descriptors(tmp_path: Path) -> None:
    """64 descriptors are kept for other uses, so 88 leave four databases open."""
    primaries = [Primary(tmp_path, f"{number}.db") for number in range(12)]
    with Child(tmp_path / "mount", descriptors=88) as child:
        for number in range(3):
            child.send(*(primary.change(f"CREATE TABLE t{number} (n)") for primary in primaries))
            folded: set[str] = set()
            while len(folded) < len(primaries):
                message = child.receive()
                assert not isinstance(message, Failed), message
                if isinstance(message, Checkpointed) and message.truncated:
                    folded.add(message.database)
        child.apply(Primary(tmp_path, "last.db").change("CREATE TABLE t (n)"))
        # One of the connection, one of the applier's own.
        indexes = [each for each in open_files(child.process.pid) if each.endswith("-shm")]
        assert len(indexes) <= 2 * 4
        for primary in primaries:
            assert_equal_files(primary, child.mount / primary.name)


def test_a_database_is_not_taken_for_deleted_while_nobody_can_tell(tmp_path: Path) -> None:
    """The thread that folds went down with the error of a mount that was away."""
    folder, away = tmp_path / "mount", tmp_path / "away"
    folder.mkdir()
    path = folder / "app.db"
    with client(path) as app:
        app.run("PRAGMA journal_mode=WAL")
        app.run("CREATE TABLE t (n)")
        opened = open_wal(str(path))
        assert opened is not None
        try:
            assert not checkpoint._is_deleted(opened)
            folder.rename(away)
            folder.touch()
            with pytest.raises(NotADirectoryError):
                assert opened.is_replaced
            assert not checkpoint._is_deleted(opened)
            folder.unlink()
            away.rename(folder)
            path.unlink()
            assert checkpoint._is_deleted(opened)
        finally:
            opened.close()
