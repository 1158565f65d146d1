"""A wal-index that shows less than what is committed.

Knows what to do when the daemon has logged more frames than the wal-index shows: an application died between the write
that completed its commit and the publication of it. The next writer would overwrite that transaction (which a primary
must refuse, and the applier of a demoted node must never do). So the wal-index is declared invalid under SQLite's WRITE
lock, and whoever uses the database next rebuilds it from the WAL, as after any crash (walIndexReadHdr, walIndexRecover
in wal.c). Does not know how the daemon noticed.

Interleavings, and why each is harmless:

- With this process's own connection. ``republish`` closes a descriptor of the -shm, which drops every POSIX lock that
  this process has on it (fcntl(2)): it is called only while the process has no connection to the database. The worker
  sees to that: it has at most one of three things, its open database (then ``shows`` and the open mapping are used
  instead), a WriteLock, or this; and it begins none before the other is over. No thread but the worker's opens files.
- With a writer that has the WRITE lock: it goes first. What it does on the old wal-index is refused: on a primary it
  would overwrite what is logged, and that starts this anew; on a replica it builds on what is not the newest.
- With work that comes for the database meanwhile: this is given up, and the worker itself compares, under the WRITE
  lock, before it appends a frame. It does so for the first transaction after each Republish.
- With a writer that restarts the WAL in the wal-index only (walRestartHdr before its header is written): the salts
  differ, so it is rebuilt; the file still has the old salts, and says how many frames there are. Differ the file's
  salts too, the WAL was begun again after the daemon spoke, and all that it spoke of is in the database file.
- With the last closer of the database: it removes the -shm by name. What was mapped is nobody's any more, and the next
  to open the database begins with the WAL.
- With a checkpoint: it reads the header once under CHECKPOINT, and copies at most what that shows. It cannot start the
  WAL anew without the WRITE lock. The applier's own begin only after a transaction, which comes after the comparison.
"""

import os
from typing import Final

from litereplica.applier import locks
from litereplica.applier.protocol import Look, Republish
from litereplica.applier.shared_memory import SharedMemory
from litereplica.applier.turns import Turns, Waits
from litereplica.sqlite.shm import (
    BLOCK_BYTES,
    DEADMAN_LOCK,
    WRITE_LOCK,
    WalIndexHeader,
    invalidate_header,
    read_header,
)

# A writer that has the lock gets its turn first; what it does on the old wal-index is refused and starts this anew.
LIMIT_S: Final = 30.0
_LONGEST_DELAY_S: Final = 0.05


def shows(header: WalIndexHeader, wanted: Republish | Look) -> bool:
    """Whether the wal-index shows what the daemon knows to be committed."""
    return (header.salt1, header.salt2) == (wanted.salt1, wanted.salt2) and header.max_frame >= wanted.frames


def republish(path: str, wanted: Republish) -> Turns[bool]:
    """Make sure that the wal-index of the database at ``path`` shows all that is committed; True if it had to be reset.

    While this process has no connection to it. Nothing to do (False) when nobody has the database open: the next to
    open it starts anew. Raises OSError, and Unavailable when a writer had the lock all the while.
    """
    try:
        descriptor = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        waits = Waits(LIMIT_S, _LONGEST_DELAY_S)
        # As every user of the file: while it is held nobody cuts the file that is about to be mapped.
        while not locks.try_shared(descriptor, DEADMAN_LOCK):
            yield waits.next_delay(f"{path}-shm is being made")
        if os.fstat(descriptor).st_size < BLOCK_BYTES:
            return False
        memory = SharedMemory(descriptor)
        try:
            return (yield from _reset(descriptor, memory.blocks[0], path, wanted, waits))
        finally:
            memory.close()
    finally:
        locks.close(descriptor)


def _reset(descriptor: int, block: memoryview, path: str, wanted: Republish, waits: Waits) -> Turns[bool]:
    while True:
        # Nearly always: writers seldom die within a commit. A look needs no lock, and a connection that does not wait
        # (busy timeout 0) would fail if it met one.
        header = read_header(block)
        if header is not None and shows(header, wanted):
            return False
        if locks.try_exclusive(descriptor, WRITE_LOCK):
            # Again: who had the lock may have published meanwhile. No header at all: the next user rebuilds it anyhow.
            header = read_header(block)
            if header is None or shows(header, wanted):
                return False
            invalidate_header(block)
            return True
        yield waits.next_delay(f"a writer keeps the write lock of {path}")
