"""SQLite's write lock of one database, held so that no application can write.

Knows how to ask for it without waiting, and to give it back without a trace. Does not know how long to ask (worker.py).

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

from litereplica.applier import locks
from litereplica.applier.opened import close_connection, has_bytes, is_busy
from litereplica.applier.rollback_mode import has_live_journal, roll_back
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, parse_database_header

ATTEMPTS: Final = 100
"""Calls of a few microseconds each, in one turn: a tenth of a writer's transaction, and no stall for others."""


class WriteLock:
    """The write lock of the database at ``path``; asked for with ``try_take``, given back with ``close``."""

    __slots__ = ("_connection", "_file", "_path")

    def __init__(self, path: str) -> None:
        """Raises OSError, also without such a file."""
        self._path = path
        self._connection: sqlite3.Connection | None = None
        # Opened before a connection and closed after it: its close would drop the connection's locks.
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def try_take(self) -> bool:
        """Take it; False when an application has it. Raises sqlite3.Error, OSError, Corrupt."""
        return self._begin() if self._is_wal() else self._reserve()

    def close(self) -> None:
        """Give it back, or stop asking. The files are left alone."""
        if self._connection is not None:
            # Closing rolls back; nothing was written.
            close_connection(self._path, self._connection)
        locks.close(self._file)

    def _is_wal(self) -> bool:
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

    def _reserve(self) -> bool:
        if locks.holder(self._file, locks.RESERVED_BYTE_OFFSET) is None and has_live_journal(self._path):
            roll_back(self._path)
            return False
        if not any(locks.try_exclusive(self._file, locks.RESERVED_BYTE_OFFSET) for _ in range(ATTEMPTS)):
            return False
        if (
            locks.try_shared(self._file, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
            and not has_live_journal(self._path)
            and not self._is_wal()
        ):
            return True
        locks.release(self._file, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
        locks.release(self._file, locks.RESERVED_BYTE_OFFSET)
        return False
