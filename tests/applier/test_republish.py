"""What is logged is never applied over, though a dead writer did not publish it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.applier.locks import holder
from litereplica.applier.protocol import (
    Applied,
    Apply,
    Failed,
    Invalidated,
    Lock,
    Locked,
    Release,
    Released,
    Republish,
    Unlock,
)
from litereplica.sqlite.shm import DEADMAN_LOCK
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, parse_wal_header
from tests.applier.applications import Application, application
from tests.applier.support import Child, Primary, assert_equal_files, rows, until

pytestmark = pytest.mark.timeout(60)


class Demoted:
    """A database of the mount with a transaction in its WAL that its wal-index does not show, and who has it open.

    ``primary`` has the same transactions; ``claim`` is what the daemon has logged of them.
    """

    def __init__(self, child: Child, app: Application, primary: Primary, claim: Republish) -> None:
        self.path = child.mount / "app.db"
        self.application = app
        self.primary = primary
        self.claim = claim

    def next(self) -> Apply:
        return self.primary.change("INSERT INTO t VALUES (3)")

    def seen(self) -> list[tuple[int]]:
        found: list[tuple[int]] = self.application.run("SELECT n FROM t")
        return found


@pytest.fixture
def demoted(tmp_path: Path, child: Child) -> Iterator[Demoted]:
    primary = Primary(tmp_path)
    path = child.mount / "app.db"
    primary.change("CREATE TABLE t (n)")
    primary.change("INSERT INTO t VALUES (1)")
    for suffix in ("", "-wal"):
        Path(f"{path}{suffix}").write_bytes(Path(f"{primary.path}{suffix}").read_bytes())
    with application(path) as app:
        assert app.run("SELECT n FROM t") == [(1,)]
        primary.change("INSERT INTO t VALUES (2)")
        wal = Path(f"{primary.path}-wal").read_bytes()
        # In place: the application has it open.
        with Path(f"{path}-wal").open("r+b") as here:
            here.write(wal)
        header = parse_wal_header(wal)
        frames = (len(wal) - WAL_HEADER_BYTES) // (FRAME_HEADER_BYTES + header.page_size)
        yield Demoted(child, app, primary, Republish("app.db", header.salt1, header.salt2, frames))


def test_a_transaction_that_nobody_published_is_there_before_the_next_one(demoted: Demoted, child: Child) -> None:
    assert demoted.seen() == [(1,)]
    child.send(demoted.claim, demoted.next())
    assert child.receive() == Invalidated("app.db")
    told = child.receive()
    assert isinstance(told, Applied)
    assert (told.database, told.txid) == ("app.db", 4)
    assert demoted.seen() == [(1,), (2,), (3,)]
    assert_equal_files(demoted.primary, demoted.path)


def test_the_next_user_finds_it_without_an_apply(demoted: Demoted, child: Child) -> None:
    child.send(demoted.claim)
    assert child.receive() == Invalidated("app.db")
    assert demoted.seen() == [(1,), (2,)]
    child.send(demoted.claim)  # it is shown: nothing to do
    child.apply(demoted.next())
    assert demoted.seen() == [(1,), (2,), (3,)]


def test_an_apply_waits_for_the_writer_that_kept_it_from_being_published(demoted: Demoted, child: Child) -> None:
    assert demoted.application.run("BEGIN IMMEDIATE") == []
    child.send(demoted.claim, demoted.next())
    other = Primary(child.mount.parent, "other.db")
    child.apply(other.change("CREATE TABLE t (n)"))  # it is not stalled
    assert demoted.application.run("ROLLBACK") == []
    assert child.expect(Invalidated) == Invalidated("app.db")
    child.expect_applied(4)
    assert demoted.seen() == [(1,), (2,), (3,)]
    assert_equal_files(demoted.primary, demoted.path)


def test_it_is_remembered_when_the_apply_gives_up_and_is_sent_again(demoted: Demoted, child: Child) -> None:
    span = demoted.next()
    assert demoted.application.run("BEGIN IMMEDIATE") == []
    child.send(demoted.claim, span)
    failure = child.expect(Failed)
    assert failure.retry
    assert demoted.application.described in failure.reason
    assert demoted.application.run("ROLLBACK") == []
    child.send(span)
    assert child.expect(Invalidated) == Invalidated("app.db")
    child.expect_applied(4)
    assert demoted.seen() == [(1,), (2,), (3,)]


def test_it_is_told_at_a_release(demoted: Demoted, child: Child) -> None:
    child.send(demoted.claim, Release("app.db"))
    assert child.receive() == Invalidated("app.db")
    assert child.receive() == Released(*demoted.claim)
    assert demoted.seen() == [(1,), (2,)]


def test_a_release_does_not_wait_for_a_writer_and_tells_what_is_published(demoted: Demoted, child: Child) -> None:
    """The mount knows the rest: it has followed what applications wrote, and refuses what they build on less."""
    assert demoted.application.run("BEGIN IMMEDIATE") == []
    child.send(demoted.claim, Release("app.db"))
    released = child.receive()
    assert isinstance(released, Released)
    assert released == Released(*demoted.claim._replace(frames=released.frames))
    assert 0 < released.frames < demoted.claim.frames
    assert demoted.application.run("ROLLBACK") == []
    assert demoted.seen() == [(1,)]


def test_it_is_done_after_a_lock_that_was_asked_for_behind_it(demoted: Demoted, child: Child) -> None:
    assert demoted.application.run("BEGIN IMMEDIATE") == []
    child.send(demoted.claim, Lock("app.db", 20_000))
    assert demoted.application.run("ROLLBACK") == []
    # Messages of one form are equal as tuples. A child that looks late finds no writer, and is done before the lock.
    answers = [type(child.receive())]
    if answers == [Invalidated]:
        answers.append(type(child.receive()))
        child.send(Unlock("app.db"))
    else:
        child.send(Unlock("app.db"))
        answers.append(type(child.receive()))
    assert set(answers) == {Locked, Invalidated}
    assert demoted.seen() == [(1,), (2,)]


def test_it_waits_for_the_end_of_a_lock_that_is_held(demoted: Demoted, child: Child) -> None:
    child.send(Lock("app.db", 1000))
    assert child.receive() == Locked("app.db")
    child.send(demoted.claim, demoted.next())
    assert demoted.application.run("BEGIN IMMEDIATE") == "SQLITE_BUSY"
    child.send(Unlock("app.db"))
    assert child.expect(Invalidated) == Invalidated("app.db")
    child.expect_applied(4)
    assert_equal_files(demoted.primary, demoted.path)


def test_frames_that_are_logged_but_not_in_the_wal_are_said_and_nothing_is_applied(
    demoted: Demoted, child: Child
) -> None:
    child.send(demoted.claim._replace(frames=demoted.claim.frames + 1), demoted.next())
    failure = child.expect(Failed)
    assert not failure.retry
    assert "in the log" in failure.reason
    assert demoted.seen() == [(1,), (2,)]


def test_what_was_said_of_a_wal_that_has_begun_again_since_is_of_no_matter(demoted: Demoted, child: Child) -> None:
    child.send(demoted.claim._replace(salt1=7, frames=100), demoted.next())
    child.expect(Applied)
    assert demoted.seen() == [(1,), (2,), (3,)]
    assert_equal_files(demoted.primary, demoted.path)


def test_the_locks_of_our_own_connection_survive_it(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    path = child.mount / "app.db"
    child.apply(primary.change("CREATE TABLE t (n)"))
    for claim in (Republish("app.db", 1, 2, 3), Republish("app.db", 3, 4, 5)):
        child.send(claim)
        child.send(primary.change("INSERT INTO t VALUES (1)"))
        assert child.expect(Applied).txid == primary.txid
        shm = os.open(f"{path}-shm", os.O_RDWR)
        with contextlib.closing(os.fdopen(shm)):
            assert holder(shm, DEADMAN_LOCK) == child.process.pid
    assert_equal_files(primary, path)


def test_without_anybody_who_has_it_open_there_is_nothing_to_do(demoted: Demoted, child: Child) -> None:
    demoted.application.close()
    Path(f"{demoted.path}-shm").unlink()
    child.send(demoted.claim)
    child.apply(demoted.next())
    until(lambda: rows(demoted.path, "SELECT n FROM t") == [(1,), (2,), (3,)])
    assert_equal_files(demoted.primary, demoted.path)
