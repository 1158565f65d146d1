"""SQLite's write lock of one database, held so that no application can write.

Knows how to ask for it in turns, and to give it back without a trace. Does not know who wants it (worker.py,
committer.py).

In WAL mode it is taken as every writer takes it: BEGIN IMMEDIATE on an ordinary connection. That makes -wal and -shm
where nobody has the database open, so that whoever opens it next meets the lock. It writes nothing, so nothing is
captured, and its end is a ROLLBACK that has nothing to undo. Its locks are POSIX locks, which a close of any descriptor
of the same files in this process would drop (fcntl(2)): while it exists nothing else of this process opens the
database; the worker has closed it, and begins no other work on it.

In the rollback modes it is RESERVED and SHARED on the database file, as OFD locks: one call decides, where a connection
has to look for a journal first, and a writer without a pause leaves the lock free for a few microseconds only. RESERVED
over the journal of a dead writer would tell readers that its writer lives, and show them what it never committed: such
a journal is rolled back first, by SQLite, as every reader of a primary does it. The mode cannot change while both are
held.
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

from litereplica.applier import holders, locks
from litereplica.applier.opened import close_connection, has_bytes, is_busy
from litereplica.applier.rollback_mode import has_live_journal, roll_back
from litereplica.applier.turns import TimedOut, Turns, Waits
from litereplica.errors import Corrupt
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, parse_database_header

ATTEMPTS: Final = 100
"""Calls of a few microseconds each, in one turn: a tenth of a writer's transaction, and no stall for others."""


class WriteLock:
    """The write lock of the database at ``path``; asked for with ``try_take``, given back with ``close``."""

    __slots__ = ("_connection", "_file", "_path")

    def __init__(self, path: str, *, create: bool = False) -> None:
        """Raises OSError, also without such a file unless it may ``create`` an empty one."""
        self._path = path
        self._connection: sqlite3.Connection | None = None
        # Opened before a connection and closed after it: its close would drop the connection's locks.
        flags = os.O_RDWR | os.O_CLOEXEC
        self._file = os.open(path, flags | os.O_CREAT if create else flags, 0o644)

    @property
    def file(self) -> int:
        """The descriptor of the database file, which has the locks in the rollback modes."""
        return self._file

    def try_take(self) -> bool:
        """Take it; False when an application has it. Raises sqlite3.Error, OSError, Corrupt."""
        return self._begin() if self.is_wal() else self.try_reserve()

    def close(self) -> None:
        """Give it back, or stop asking. The files are left alone."""
        if self._connection is not None:
            # Closing rolls back; nothing was written.
            close_connection(self._path, self._connection)
        locks.close(self._file)

    def is_wal(self) -> bool:
        """Whether SQLite writes to it through a WAL (rollback_mode.py has the rule)."""
        if has_bytes(f"{self._path}-wal"):
            return True
        header = os.pread(self._file, DATABASE_HEADER_BYTES, 0)
        return len(header) == DATABASE_HEADER_BYTES and parse_database_header(header).wal

    def _begin(self) -> bool:
        if self._connection is None:
            uri = f"{Path(self._path).as_uri()}?mode=rw"
            self._connection = sqlite3.connect(uri, timeout=0, isolation_level=None, uri=True, cached_statements=4)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if is_busy(error):
                return False
            raise
        return True

    def try_reserve(self) -> bool:
        """Take it as in the rollback modes; False when an application has it, or uses a WAL (``is_wal``)."""
        if locks.holder(self._file, locks.RESERVED_BYTE_OFFSET) is None and has_live_journal(self._path):
            roll_back(self._path)
            return False
        if not any(locks.try_exclusive(self._file, locks.RESERVED_BYTE_OFFSET) for _ in range(ATTEMPTS)):
            return False
        if (
            locks.try_shared(self._file, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
            and not has_live_journal(self._path)
            and not self.is_wal()
        ):
            return True
        locks.release(self._file, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
        locks.release(self._file, locks.RESERVED_BYTE_OFFSET)
        return False


def take_lock(path: str, waits: Waits) -> Turns[tuple[WriteLock | None, str]]:
    """Ask for the write lock of the database at ``path``: the lock, or why it is not to be had, for people."""
    lock: WriteLock | None = None
    has_lock = False
    try:
        lock = WriteLock(path)
        while not (has_lock := lock.try_take()):
            yield waits.next_delay("an application writes")
    except TimedOut:
        pass  # who it is can be asked once our connection is closed
    except (OSError, sqlite3.Error, Corrupt) as error:
        return None, f"SQLite cannot use it: {error}"
    else:
        return lock, ""
    finally:
        if lock is not None and not has_lock:
            lock.close()
    return None, holders.writer(path)
