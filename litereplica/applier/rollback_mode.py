"""A database in rollback mode, read through a WAL on this node.

Knows why such a database has a WAL here, how the first one is made while others may have the file open, and how a WAL
begins again without being cut. Does not know how transactions get into it.

SQLite opens a database in WAL mode whenever its -wal is there and not empty, whatever page 1 says (pager.c,
pagerOpenWalIfPresent, asked each time a connection begins to read without a WAL; os_unix.c, unixAccess: an empty file
does not exist). So readers here never wait for an apply and an apply never waits for readers, in every journal mode.
But the -wal must then never be empty while page 1 says "rollback": a reader that found it so would read the database
file alone, under locks that no checkpoint looks at.
"""

import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from litereplica.applier import holders, locks
from litereplica.applier.turns import Turns, Waits
from litereplica.applier.whole import read_all, write_all
from litereplica.sqlite.journal import is_live_journal
from litereplica.sqlite.shm import (
    CHECKPOINT_LOCK,
    READ_LOCKS,
    WRITE_LOCK,
    read_checkpoint_info,
    read_header,
    restart,
)
from litereplica.sqlite.wal import first_wal

if TYPE_CHECKING:
    from litereplica.applier.opened import OpenDatabase

PENDING_S: Final = 0.05
"""How long new readers are kept out so that the others come to an end: short beside anybody's busy timeout."""

_READERS_DELAY_S: Final = 0.001

# Who holds all of these bytes of the database file has what SQLite calls EXCLUSIVE (os_unix.c): RESERVED is the
# writer's, PENDING lets no new reader in, SHARED are the readers'.
_EXCLUSIVE: Final = (
    (locks.RESERVED_BYTE_OFFSET, 1),
    (locks.PENDING_BYTE_OFFSET, 1),
    (locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES),
)
# Every reader that uses frames of the WAL holds one of these; READ 0 is for those that use none.
_FRAME_READERS: Final = (READ_LOCKS[1], len(READ_LOCKS) - 1)


def make_first_wal(path: str, waits: Waits) -> Turns[None]:
    """Give the database at ``path``, in rollback mode and without frames, a WAL of one frame: page 1 as it is.

    The daemon does this before a file is shown; here it is done for a node that was the primary, whose applications
    have the file open, perhaps in a transaction: it takes all their locks, so it waits until none is in one. Before
    this process has a connection to it, whose locks the close here would drop.

    A journal whose writer is dead is rolled back first, by SQLite, as any application of the primary would have made it
    do: page 1 may be the dead writer's until then, and so may every page of a transaction that was written through
    (mount.database_file), and no reader can read before (with a read-only connection none could ever). What comes of
    it is the state at the last commit, which is where the records to come begin; SQLite alone knows whether a
    super-journal says that it was committed.

    Raises Unavailable when others use it for longer than ``waits`` allows, OSError, sqlite3.Error.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while not (yield from _exclude_all(path, descriptor)):
            yield waits.next_delay(
                lambda: f"{path} is in rollback mode, and {holders.user(descriptor)} uses it without a WAL"
            )
        wal = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not os.fstat(wal).st_size:
                size = os.fstat(descriptor).st_size
                data = first_wal(lambda offset, count: read_all(descriptor, count, offset), size, os.urandom(8))
                write_all(wal, data, 0)
        finally:
            locks.close(wal)
    finally:
        locks.close(descriptor)  # and with it its locks


def _exclude_all(path: str, descriptor: int) -> Turns[bool]:
    """Have what SQLite calls EXCLUSIVE, with no journal left to roll back; False, and nothing taken, if that failed.

    RESERVED first: a writer that has it is not kept from its end by our PENDING. And never over a journal that nobody
    has rolled back: readers would take the lock for its writer's and the pages for what they read before it.
    """
    if locks.holder(descriptor, locks.RESERVED_BYTE_OFFSET) is not None:
        return False
    if has_live_journal(path):
        roll_back(path)
        return False
    taken: list[tuple[int, int]] = []
    try:
        for offset, length in _EXCLUSIVE:
            end = time.monotonic() + PENDING_S
            while not locks.try_exclusive(descriptor, offset, length):
                if offset != locks.SHARED_BYTES_OFFSET or time.monotonic() > end:
                    return False
                yield _READERS_DELAY_S
            taken.append((offset, length))
            if offset == locks.RESERVED_BYTE_OFFSET and has_live_journal(path):
                return False
        taken.clear()
        return True
    finally:
        for offset, length in taken:
            locks.release(descriptor, offset, length)


def has_live_journal(path: str) -> bool:
    """Whether there is a journal to roll back, if its writer is dead; raises OSError."""
    try:
        with Path(f"{path}-journal").open("rb") as journal:
            return is_live_journal(journal.read(8))
    except FileNotFoundError:
        return False


def roll_back(path: str) -> None:
    """Let SQLite play a hot journal back, unless somebody else is about to; raises sqlite3.Error.

    While this process has no connection to the database.
    """
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("PRAGMA schema_version").fetchall()
    except sqlite3.OperationalError as error:
        if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY:
            raise
    finally:
        connection.close()


def begin_wal_again(opened: "OpenDatabase") -> bool:
    """Let the next transaction overwrite the WAL from its start; False while a reader or a frame is in the way.

    Under ``gate``. What SQLite's TRUNCATE does, with all of its locks, but for the cut. Raises OSError.
    """
    taken: list[tuple[int, int]] = []
    try:
        for offset, length in ((CHECKPOINT_LOCK, 1), (WRITE_LOCK, 1), _FRAME_READERS):
            if not locks.try_exclusive(opened.shm, offset, length):
                return False
            taken.append((offset, length))
        block = opened.memory.blocks[0]
        header = read_header(block)
        if header is None or read_checkpoint_info(block).backfilled != header.max_frame:
            return False
        if header.max_frame:
            restart(block, int.from_bytes(os.urandom(4)))
        return True
    finally:
        for offset, length in taken:
            locks.release(opened.shm, offset, length)
