"""The applier lets go of a database, says what its WAL holds, and leaves no trace."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.applier.locks import holder
from litereplica.applier.protocol import (
    Applied,
    CheckpointFailed,
    Failed,
    Message,
    Release,
    Released,
    ReleaseFailed,
)
from litereplica.sqlite.shm import DEADMAN_LOCK
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, parse_wal_header
from tests.applier.applications import application, open_files
from tests.applier.modes import AnyPrimary
from tests.applier.support import Child, Primary, rows
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


def release(child: Child) -> tuple[Released, list[Message]]:
    """The answer, and what came before it."""
    child.send(Release("app.db"))
    before: list[Message] = []
    while not isinstance(answer := child.receive(), Released):
        assert not isinstance(answer, ReleaseFailed | Failed | CheckpointFailed), answer
        before.append(answer)
    return answer, before


def held_files(child: Child) -> list[str]:
    return [each for each in open_files(child.process.pid) if each.startswith(str(child.mount))]


def shown_by_recovery(database: Path) -> Released:
    """What the WAL's file says, all of whose frames are committed."""
    data = Path(f"{database}-wal").read_bytes()
    header = parse_wal_header(data)
    frames = 0
    while data[WAL_HEADER_BYTES + frames * (FRAME_HEADER_BYTES + header.page_size) :][8:16] == data[16:24]:
        frames += 1
    return Released(database.name, header.salt1, header.salt2, frames)


def test_what_is_queued_is_applied_first_and_then_no_file_is_open(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    spans = [primary.change("CREATE TABLE t (n)")]
    spans += [primary.change("INSERT INTO t VALUES (?)", number) for number in range(200)]
    child.send(*spans)
    answer, before = release(child)
    assert max(each.txid for each in before if isinstance(each, Applied)) == 201
    wait_until(lambda: held_files(child) == [], "no file is open")
    # Nothing was folded in between: the frames of the WAL are what was told, whatever checkpoints there were before.
    assert answer == shown_by_recovery(child.mount / "app.db")
    assert rows(child.mount / "app.db", "SELECT count(*) FROM t") == [(200,)]


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_readers_go_on_and_the_application_may_write_at_once(tmp_path: Path, child: Child, mode: str) -> None:
    primary = AnyPrimary(tmp_path, mode=mode)
    path = child.mount / "app.db"
    child.apply(primary.change("CREATE TABLE t (n)"), primary.change("INSERT INTO t VALUES (1)"))
    with application(path) as old, application(path) as writer:
        old.run("BEGIN")
        assert old.run("SELECT n FROM t") == [(1,)]
        wal = Path(f"{path}-wal").read_bytes()
        release(child)
        assert Path(f"{path}-wal").read_bytes() == wal
        assert writer.run("INSERT INTO t VALUES (2)") == []
        assert old.run("SELECT n FROM t") == [(1,)]
        assert old.run("COMMIT") == []
        assert old.run("SELECT n FROM t") == [(1,), (2,)]
    wait_until(lambda: held_files(child) == [], "no file is open")
    with closing(sqlite3.connect(path)) as last:
        assert last.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
    assert not Path(f"{path}-wal").exists()  # the last to leave is an application again
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_database_that_was_not_open_is_opened_only_if_its_wal_holds_something(child: Child) -> None:
    path = child.mount / "app.db"
    assert release(child)[0] == Released("app.db", 0, 0, 0)
    assert not path.exists()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (n)")
    assert release(child)[0] == Released("app.db", 0, 0, 0)
    assert not Path(f"{path}-shm").exists()
    with application(path) as killed:
        killed.run("INSERT INTO t VALUES (1)")
    Path(f"{path}-shm").unlink()  # as a restart of the daemon leaves it
    wal = Path(f"{path}-wal").read_bytes()
    assert release(child)[0] == shown_by_recovery(path)
    assert Path(f"{path}-wal").read_bytes() == wal
    wait_until(lambda: held_files(child) == [], "no file is open")
    assert rows(path, "SELECT n FROM t") == [(1,)]


def test_an_empty_wal_is_told_as_nothing(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    while Path(f"{child.mount}/app.db-wal").stat().st_size:
        child.receive()
    assert release(child)[0] == Released("app.db", 0, 0, 0)


def test_a_checkpoint_under_way_is_broken_off_without_a_word(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path, page_size=512)
    child.apply(primary.change("CREATE TABLE t (data)"))
    path = child.mount / "app.db"
    for turn in range(8):
        for _ in range(10):
            child.send(primary.change("INSERT INTO t VALUES (randomblob(60000))"))
        child.expect_applied(primary.txid)
        time.sleep(turn * 0.003)  # somewhere in the checkpoint that this made due
        answer, _ = release(child)
        if answer.frames:
            # At least: what lies behind them in the file is not visible. A WAL that was cut would have none.
            assert answer.frames <= shown_by_recovery(path).frames
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    child.apply(primary.change("INSERT INTO t VALUES (1)"))
    assert rows(path, "SELECT count(*) FROM t") == [(81,)]


def test_a_torn_wal_index_is_recovered_before_it_is_told(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    path = child.mount / "app.db"
    child.apply(primary.change("CREATE TABLE t (n)"), primary.change("INSERT INTO t VALUES (1)"))
    shm = os.open(f"{path}-shm", os.O_RDWR)
    os.pwrite(shm, bytes(48), 0)
    os.close(shm)
    assert release(child)[0] == shown_by_recovery(path)
    assert rows(path, "SELECT n FROM t") == [(1,)]


def test_what_cannot_be_learned_is_said_and_can_be_asked_again(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    path = child.mount / "app.db"
    child.apply(primary.change("CREATE TABLE t (n)"))
    with application(path) as writer:
        assert writer.run("BEGIN IMMEDIATE") == []
        shm = os.open(f"{path}-shm", os.O_RDWR)
        os.pwrite(shm, bytes(48), 0)
        child.send(Release("app.db"))
        failure = child.expect(ReleaseFailed)
        assert writer.described in failure.reason
        os.close(shm)
    assert release(child)[0] == shown_by_recovery(path)


def test_another_era_may_have_other_transactions(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    release(child)
    path = child.mount / "app.db"
    # As a primary meanwhile: transactions 2 and 3 are made here.
    with application(path) as writer:
        for number in (2, 3):
            assert writer.run(f"INSERT INTO t VALUES ({number})") == []
            primary.change("INSERT INTO t VALUES (?)", number)
        child.apply(primary.change("INSERT INTO t VALUES (4)"))
        assert writer.run("SELECT n FROM t") == [(2,), (3,), (4,)]
        shm = os.open(f"{path}-shm", os.O_RDWR)
        assert holder(shm, DEADMAN_LOCK) is not None
        os.close(shm)


def test_a_redo_that_is_not_whole_is_not_applied_and_said_to_be_so(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    span = primary.change("INSERT INTO t VALUES (1)")
    child.send(span._replace(redo_until=5), Release("app.db"))
    failure = child.expect(Failed)
    assert (failure.txid, failure.retry) == (2, True)
    child.expect(Released)
    assert rows(child.mount / "app.db", "SELECT n FROM t") == []
