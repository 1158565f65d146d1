"""A wal-index that a dead writer has left behind its WAL.

Knows what to do when an application died between the write that completed its commit, which is logged, and the
publication of that commit in the wal-index: the next writer would overwrite it, which the daemon must refuse. So a
wal-index that does not show it is declared invalid under SQLite's WRITE lock, and whoever uses the database next
rebuilds it from the WAL, as after any crash (walIndexReadHdr, walIndexRecover in wal.c). Does not know how the daemon
noticed.

Only on the primary, where this process has no SQLite connection whose locks a close here would drop.
"""

import os
import time
from collections.abc import Iterator
from typing import Final

from litereplica.applier import locks
from litereplica.applier.protocol import Republish
from litereplica.applier.shared_memory import SharedMemory
from litereplica.sqlite.shm import BLOCK_BYTES, DEADMAN_LOCK, WRITE_LOCK, invalidate_header, read_header

# A writer that has the lock gets its turn first; what it does on the old wal-index is refused and starts this anew.
LIMIT_S: Final = 30.0
_FIRST_DELAY_S: Final = 0.0005
_LONGEST_DELAY_S: Final = 0.05


def republish(path: str, wanted: Republish) -> bool:
    """Make sure that the wal-index of the database at ``path`` shows all that is committed; True if it had to be reset.

    Blocking, up to twice LIMIT_S. Nothing to do (False) when nobody has the database open: the next to open it starts
    anew. Raises OSError.
    """
    try:
        descriptor = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # As every user of the file: while it is held nobody cuts the file that is about to be mapped.
        held = any(locks.try_shared(descriptor, DEADMAN_LOCK) for _ in _tries())
        if not held or os.fstat(descriptor).st_size < BLOCK_BYTES:
            return False
        memory = SharedMemory(descriptor)
        try:
            return _reset(descriptor, memory.blocks[0], wanted)
        finally:
            memory.close()
    finally:
        locks.close(descriptor)


def _reset(descriptor: int, block: memoryview, wanted: Republish) -> bool:
    for _ in _tries():
        # Nearly always: writers seldom die within a commit. A look needs no lock, and a connection that does not wait
        # (busy timeout 0) would fail if it met one.
        if _shows(block, wanted):
            return False
        if locks.try_exclusive(descriptor, WRITE_LOCK):
            # Again: who had the lock may have published meanwhile. No header at all: the next user rebuilds it anyhow.
            if _shows(block, wanted) or read_header(block) is None:
                return False
            invalidate_header(block)
            return True
    return False


def _shows(block: memoryview, wanted: Republish) -> bool:
    """Other salts show nothing of it, though a rebuild after a restart of the WAL only repeats what the header says."""
    header = read_header(block)
    return (
        header is not None
        and (header.salt1, header.salt2) == (wanted.salt1, wanted.salt2)
        and header.max_frame >= wanted.frames
    )


def _tries() -> Iterator[None]:
    """Of something that needs no more than patience: until LIMIT_S is over, with longer and longer pauses between."""
    end = time.monotonic() + LIMIT_S
    delay_s = _FIRST_DELAY_S
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
