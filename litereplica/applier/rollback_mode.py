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
from typing import TYPE_CHECKING, Final

from litereplica.applier import locks
from litereplica.errors import Unavailable
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

# Who holds all of these bytes of the database file has what SQLite calls EXCLUSIVE (os_unix.c): PENDING lets no new
# reader in, RESERVED is the writer's, SHARED are the readers'.
_EXCLUSIVE: Final = (
    (locks.PENDING_BYTE_OFFSET, 1),
    (locks.RESERVED_BYTE_OFFSET, 1),
    (locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES),
)
# Every reader that uses frames of the WAL holds one of these; READ 0 is for those that use none.
_FRAME_READERS: Final = (READ_LOCKS[1], len(READ_LOCKS) - 1)


def make_first_wal(path: str) -> None:
    """Give the database at ``path``, in rollback mode and without frames, a WAL of one frame: page 1 as it is.

    Only a safety net: the daemon does this before the file is shown. Before this process has a connection to it, whose
    locks the close here would drop. Raises Unavailable while anybody reads it, OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset, length in _EXCLUSIVE:
            if not locks.try_exclusive(descriptor, offset, length):
                raise Unavailable(f"{path} is in rollback mode, and somebody reads it without a WAL")
        wal = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not os.fstat(wal).st_size:
                size = os.fstat(descriptor).st_size
                data = first_wal(lambda offset, count: os.pread(descriptor, count, offset), size, os.urandom(8))
                os.pwrite(wal, data, 0)
        finally:
            locks.close(wal)
    finally:
        locks.close(descriptor)  # and with it its locks


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
