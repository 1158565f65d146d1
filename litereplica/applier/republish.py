"""A wal-index that a dead writer has left behind its WAL.

Knows what to do when an application died between the write that completed its commit, which is logged, and the
publication of that commit in the wal-index: the next writer would overwrite it, which the daemon must refuse. So the
wal-index is declared invalid under SQLite's WRITE lock, and whoever uses the database next rebuilds it from the WAL, as
after any crash (walIndexReadHdr, walIndexRecover in wal.c). Does not know how the daemon noticed.

Only on the primary, where this process has no SQLite connection whose locks a close here would drop.
"""

import os
import time
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

    Blocking, up to LIMIT_S. Nothing to do (False) when nobody has the database open: the next to open it starts anew.
    Raises OSError.
    """
    try:
        descriptor = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # As every user of the file: while it is held nobody cuts the file that is about to be mapped.
        if not _wait(descriptor, DEADMAN_LOCK, exclusive=False) or os.fstat(descriptor).st_size < BLOCK_BYTES:
            return False
        if not _wait(descriptor, WRITE_LOCK, exclusive=True):
            return False
        return _reset(descriptor, wanted)
    finally:
        locks.close(descriptor)


def _reset(descriptor: int, wanted: Republish) -> bool:
    memory = SharedMemory(descriptor)
    try:
        header = read_header(memory.blocks[0])
        if header is None:
            return False  # the next user rebuilds it anyhow
        if (header.salt1, header.salt2) == (wanted.salt1, wanted.salt2) and header.max_frame >= wanted.frames:
            return False
        # Also when the salts differ: after a restart of the WAL a rebuild only repeats what the header says.
        invalidate_header(memory.blocks[0])
        return True
    finally:
        memory.close()


def _wait(descriptor: int, offset: int, *, exclusive: bool) -> bool:
    take = locks.try_exclusive if exclusive else locks.try_shared
    end = time.monotonic() + LIMIT_S
    delay_s = _FIRST_DELAY_S
    while not take(descriptor, offset):
        if time.monotonic() > end:
            return False
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
    return True
