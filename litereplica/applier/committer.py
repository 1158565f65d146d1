"""Transactions of other nodes, committed on the primary as one of its applications would.

Knows which way a database is written now (through its WAL, or under a rollback journal), and how SQLite's write lock is
kept for another node between two of its transactions. Does not know the queue (worker.py), nor whether the mount wants
the transaction: that it says at the commit point, as to any application, and then nothing is left of it here.

At any time the lock is kept in one of two ways, or not at all: by the appender (``lock.keeps``, the WRITE lock of the
wal-index), or as RESERVED and SHARED on the database file (``_reserved``), which no other file of this process may be
open beside: closing that would be harmless (they are OFD locks), but a connection could not begin.

It may have to be given up (SQLite met an error, the files are others by now, a transaction has made another journal
mode). Then ``lost`` is called, and nothing is committed until the daemon has heard it: what it has sent before was made
by a node that believed to be alone.
"""

from collections.abc import Callable
from pathlib import Path

from litereplica.applier import holders, locks
from litereplica.applier.appender import Appender
from litereplica.applier.journal_writer import JournalWriter
from litereplica.applier.pieces import RecordPieces
from litereplica.applier.rollback_mode import has_live_journal
from litereplica.applier.turns import Turns, Waits
from litereplica.applier.write_lock import WriteLock
from litereplica.errors import Corrupt, Refused


class Committer:
    """The database at ``path``, whose files ``appender`` has when it is written through a WAL."""

    __slots__ = ("_appender", "_lost", "_path", "_reserved", "is_holding", "is_lost")

    def __init__(self, path: str, appender: Appender, lost: Callable[[], None]) -> None:
        # Whether the lock is kept; whether it could not be, and the daemon may not have heard it.
        self.is_holding = self.is_lost = False
        self._path = path
        self._appender = appender
        self._lost = lost
        self._reserved: WriteLock | None = None
        appender.lock.lost = self._lose

    def commit(self, source: RecordPieces, waits: Waits) -> Turns[None]:
        """Make the record of ``source`` the next transaction.

        Raises LitereplicaError (TimedOut: others had the locks), OSError, sqlite3.Error; then it is not.
        """
        while True:
            uses_wal = self._reserved is None and self._appender.uses_wal
            if self.is_lost:
                raise Refused(f"the lock that {self._path} was kept under is lost")
            if uses_wal:
                self._appender.lock.keeps = self.is_holding
                if (yield from self._appender.commit(source, waits)):
                    return
            elif (yield from self._commit_with_journal(source, waits)):
                return
            yield waits.next_delay(self._changes)

    def hold(self, waits: Waits) -> Turns[None]:
        """Take the write lock and keep it until ``release``; raises as ``commit``, and Refused without a file."""
        self.is_holding = True
        try:
            yield from self._take(waits)
        except BaseException:
            self.release()
            raise
        # Also if the one before it was lost meanwhile.
        self.is_holding, self.is_lost = True, False

    def release(self) -> None:
        """Keep the lock no longer; while nothing is under way."""
        self.give_up_after()
        self._appender.give_lock_back()
        self._drop_reserved()

    def give_up_after(self) -> None:
        """Keep the lock no longer than the commit that is under way."""
        self.is_holding = self.is_lost = self._appender.lock.keeps = False

    def _lose(self) -> None:
        if self.is_holding:
            self.is_holding, self.is_lost = False, True
            self._lost()

    def _take(self, waits: Waits) -> Turns[None]:
        while True:
            if self._reserved is None and not Path(self._path).exists():
                raise Refused("there is no such database")
            if self._reserved is None and self._appender.uses_wal:
                if (yield from self._appender.take_lock(waits)):
                    return
            elif (yield from self._reserve(waits, create=False)) is not None:
                return
            yield waits.next_delay(self._changes)

    def _changes(self) -> str:
        return f"the journal mode of {self._path} is being changed"

    def _commit_with_journal(self, source: RecordPieces, waits: Waits) -> Turns[bool]:
        """False: it is written through a WAL by now."""
        try:
            lock = yield from self._reserve(waits, create=True)
            if lock is None:
                return False
            yield from JournalWriter(self._path, lock.file).commit(source, waits)
        finally:
            self._end_exclusive()
        return True

    def _reserve(self, waits: Waits, *, create: bool) -> Turns[WriteLock | None]:
        """Have RESERVED and SHARED; None when it is written through a WAL by now."""
        if self._reserved is None:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            lock = WriteLock(self._path, create=create)
            has_lock = False
            try:
                while not (is_wal := lock.is_wal()) and not (has_lock := lock.try_reserve()):
                    yield waits.next_delay(lambda: f"{holders.user(lock.file)} writes to {self._path}")
                if is_wal:
                    return None
            finally:
                if not has_lock:
                    lock.close()
            self._reserved = lock
        return self._reserved

    def _end_exclusive(self) -> None:
        """After a transaction: nothing is held any more, or what has to be kept."""
        lock = self._reserved
        if lock is None:
            return
        if not (self.is_holding and self._may_keep(lock)):
            self._drop_reserved()
            self._lose()

    def _may_keep(self, lock: WriteLock) -> bool:
        """Keep RESERVED and SHARED alone, and others may read again; False where nothing may be kept.

        So it is if the database is in WAL mode now, whose lock is another one; if the way back is left to others, who
        take a lock over a journal for its writer's; and if that cannot be told.
        """
        try:
            if lock.is_wal() or has_live_journal(self._path):
                return False
            # From the writer of all SHARED bytes to a reader of them, in one step (fcntl(2)).
            locks.try_shared(lock.file, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
            locks.release(lock.file, locks.PENDING_BYTE_OFFSET)
        except (OSError, Corrupt):
            return False
        return True

    def _drop_reserved(self) -> None:
        lock, self._reserved = self._reserved, None
        if lock is not None:
            lock.close()
