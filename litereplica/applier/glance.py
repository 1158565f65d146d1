"""A look at a wal-index without a connection.

Knows how to read what others have published, and what such a look must not do. Does not know what it is for
(appender.py).

A promotion asks for it. Opening the database as SQLite does may wait until the promotion is over: as root it changes
the owner of the -wal that it opens, which takes the kernel's lock on that file, and a commit that is held there has it
(and waits for the promotion). For the same reason nothing here opens the -wal: its close would wait as well.
"""

import os

from litereplica.applier import locks
from litereplica.applier.shared_memory import SharedMemory
from litereplica.sqlite.shm import BLOCK_BYTES, DEADMAN_LOCK, WalIndexHeader, read_header


def published(path: str) -> WalIndexHeader | None:
    """What the wal-index of the database at ``path`` shows; None when nobody has it open or it is being changed.

    While this process has no connection to it: a descriptor of the -shm is closed here (fcntl(2)). Raises OSError.
    """
    try:
        descriptor = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Every user of the file holds it; without one the next cuts the file, and makes it anew from the WAL.
        if locks.holder(descriptor, DEADMAN_LOCK) is None or os.fstat(descriptor).st_size < BLOCK_BYTES:
            return None
        memory = SharedMemory(descriptor)
        try:
            return read_header(memory.blocks[0])
        finally:
            memory.close()
    finally:
        locks.close(descriptor)
