"""A look at a wal-index without a connection.

Knows how to read what others have published, and what such a look must not do. Does not know what it is for
(appender.py).

A promotion asks for it. Opening the database as SQLite does may wait until the promotion is over: as root it changes
the owner of the -wal that it opens, which takes the kernel's lock on that file, and a commit that is held there has it
(and waits for the promotion). For the same reason nothing here opens the -wal: its close would wait as well.

Whoever waits for a transaction on the node that has committed it asks too: the daemon has it in its log before its
writer has shown it to others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from litereplica.applier import locks
from litereplica.applier.protocol import Look
from litereplica.applier.republish import shows
from litereplica.applier.shared_memory import SharedMemory
from litereplica.sqlite.shm import BLOCK_BYTES, DEADMAN_LOCK, WRITE_LOCK, WalIndexHeader, read_header


def published(path: str) -> WalIndexHeader | None:
    """What the wal-index of the database at ``path`` shows; None when nobody has it open or it is being changed.

    While this process has no connection to it: a descriptor of the -shm is closed here (fcntl(2)). Raises OSError.
    """
    with _mapped(path) as index:
        return None if index is None else read_header(index[1])


def look(path: str, wanted: Look) -> tuple[bool, bool]:
    """``shown`` and ``writes`` of Looked; as ``published``. Who opens a database that nobody has open reads the WAL."""
    with _mapped(path) as index:
        return (True, False) if index is None else judge(*index, wanted)


def judge(shm: int, block: memoryview, wanted: Look) -> tuple[bool, bool]:
    """The same of a wal-index that somebody has open: its descriptor and its first block.

    Without a header, or with half of one, nobody begins to read: a reader waits for who writes it, or rebuilds it from
    the WAL (walIndexReadHdr in wal.c).
    """
    header = read_header(block)
    if header is None or shows(header, wanted):
        return True, False
    return False, locks.holder(shm, WRITE_LOCK) is not None


@contextmanager
def _mapped(path: str) -> Iterator[tuple[int, memoryview] | None]:
    """The -shm, open, and its first block; None when nobody has it open."""
    try:
        descriptor = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        # Every user of the file holds it; without one the next cuts the file, and makes it anew from the WAL.
        if locks.holder(descriptor, DEADMAN_LOCK) is None or os.fstat(descriptor).st_size < BLOCK_BYTES:
            yield None
            return
        memory = SharedMemory(descriptor)
        try:
            yield descriptor, memory.blocks[0]
        finally:
            memory.close()
    finally:
        locks.close(descriptor)
