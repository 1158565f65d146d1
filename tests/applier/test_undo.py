"""A commit of the primary's applier that is refused while its disk fails: nobody goes on upon what is left of it."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.applier import committer as committer_module
from litereplica.applier import journal_writer, locks, rollback_mode, whole
from litereplica.applier.appender import Appender
from litereplica.applier.committer import Committer
from litereplica.applier.in_line import Line
from litereplica.applier.journal_writer import JournalWriter
from litereplica.applier.pieces import RecordPieces
from litereplica.applier.protocol import Apply, Commit
from litereplica.applier.turns import Turns, Waits
from litereplica.applier.wal_lock import WalLock
from litereplica.errors import Refused
from litereplica.sqlite.journal import is_live_journal
from tests.applier.forwarding import forwarded

pytestmark = pytest.mark.timeout(60)
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mount" / "app.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        connection.executemany("INSERT INTO t VALUES (?, randomblob(3000))", [(number,) for number in range(40)])
    return path


def source(wanted: Commit) -> RecordPieces:
    return RecordPieces("app.db", [Apply("app.db", wanted.path, 0, wanted.length, 0, 0)])


def run(turns: Turns[None]) -> None:
    for _ in turns:
        pass


class Disk:
    """What the mount answers: the end of a journal is refused once, and then its last records cannot be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._refuses = True
        self.fails = True
        self._reads = 0
        self._unlink = os.unlink
        self._read = whole.read_exactly
        self._has_live_journal = rollback_mode.has_live_journal
        monkeypatch.setattr(os, "unlink", self.unlink)
        monkeypatch.setattr(journal_writer, "read_exactly", self.read)
        monkeypatch.setattr(committer_module, "has_live_journal", self.has_live_journal)

    def unlink(self, path: str) -> None:
        if self._refuses:
            self._refuses = False
            raise BROKEN
        self._unlink(path)

    def read(self, descriptor: int, size: int, offset: int) -> bytes:
        self._reads += size > 512
        if self.fails and self._reads > 9:
            raise BROKEN
        return self._read(descriptor, size, offset)

    def has_live_journal(self, path: str) -> bool:
        if self.fails:
            raise BROKEN
        return self._has_live_journal(path)


@pytest.fixture
def committer(path: Path) -> Iterator[Committer]:
    lock = WalLock("app.db", str(path), Line(), lambda: None)
    made = Committer(str(path), Appender("app.db", str(path), lock, lambda: None, lambda: None), lambda: None)
    yield made
    made.release()


def test_a_lock_is_not_kept_over_a_journal_that_could_not_be_played_back(
    path: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = path.read_bytes()
    first = forwarded(path, "UPDATE t SET v = randomblob(3000) WHERE id % 2")
    second = forwarded(path, "UPDATE t SET v = 'x' WHERE id = 0")
    run(committer.hold(Waits(1)))
    disk = Disk(monkeypatch)
    with pytest.raises(OSError, match="Input/output"):
        run(committer.commit(source(first), Waits(1)))
    assert committer.is_lost
    assert not committer.is_holding
    disk.fails = False
    journal = Path(f"{path}-journal").read_bytes()
    assert is_live_journal(journal)
    with pytest.raises(Refused, match="is lost"):
        run(committer.commit(source(second), Waits(1)))
    assert Path(f"{path}-journal").read_bytes() == journal
    assert path.read_bytes() != original
    # Whoever is next puts it back.
    committer.release()
    run(committer.commit(source(second), Waits(1)))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM t WHERE v = 'x'").fetchall() == [(1,)]
    assert (
        sum(path.read_bytes()[at : at + 4096] != original[at : at + 4096] for at in range(0, len(original), 4096)) <= 4
    )


def reserved(path: Path) -> int:
    file = os.open(path, os.O_RDWR)
    assert locks.try_exclusive(file, locks.RESERVED_BYTE_OFFSET)
    assert locks.try_shared(file, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
    return file


def test_a_live_journal_is_neither_emptied_nor_ended(path: Path) -> None:
    wanted = forwarded(path, "UPDATE t SET v = 'x' WHERE id = 0")
    journal = Path(f"{path}-journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA cache_size = 1")
        other.execute("BEGIN")
        other.execute("UPDATE t SET v = randomblob(3000)")
        content = journal.read_bytes()
        assert is_live_journal(content)
    journal.write_bytes(content)
    before = path.read_bytes()
    file = reserved(path)
    with pytest.raises(Refused, match="rolled back first"):
        run(JournalWriter(str(path), file).commit(source(wanted), Waits(1)))
    locks.close(file)
    assert journal.read_bytes() == content
    assert path.read_bytes() == before


def test_the_journal_of_a_database_that_was_made_again_is_not_removed(path: Path) -> None:
    wanted = forwarded(path, "UPDATE t SET v = 'x' WHERE id = 0")
    file, reader = reserved(path), os.open(path, os.O_RDWR)
    journal = Path(f"{path}-journal")
    assert locks.try_shared(reader, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
    turns = JournalWriter(str(path), file).commit(source(wanted), Waits(5))
    while not journal.exists():
        next(turns)
    for _ in range(3):
        next(turns)
    path.unlink()
    journal.unlink()
    journal.write_bytes(b"of another file")
    locks.close(reader)
    with pytest.raises(OSError, match="was dropped"):
        run(turns)
    locks.close(file)
    assert journal.read_bytes() == b"of another file"
