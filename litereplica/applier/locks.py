"""SQLite's lock bytes, taken as open-file-description (OFD) locks.

Knows the fcntl calls. Does not know what a byte means: that is sqlite/shm.py's.

Why OFD locks: a POSIX lock belongs to the process, so one that we took could not exclude the SQLite connection in this
same process, and closing any descriptor of the file would drop both. An OFD lock belongs to the descriptor. The two
kinds conflict with each other, also within one process, which is exactly what is wanted (fcntl(2), "Open file
description locks").
"""

import contextlib
import fcntl
import os
from struct import Struct
from typing import Final

# struct flock on 64-bit Linux: l_type, l_whence, padding, l_start, l_len, l_pid (0 for OFD locks), padding.
_FLOCK = Struct("=hh4xqqi4x")
_SEEK_SET = 0

# Of the database file (os_unix.c): who has PENDING lets no new reader in, RESERVED is the writer's; of the SHARED bytes
# every reader holds one or all, and the last closer wants all.
PENDING_BYTE_OFFSET: Final = 0x40000000
RESERVED_BYTE_OFFSET: Final = 0x40000001
SHARED_BYTES_OFFSET: Final = 0x40000002
SHARED_BYTES: Final = 510


def try_exclusive(descriptor: int, offset: int, length: int = 1) -> bool:
    """Take the bytes for this descriptor alone, without waiting; False when somebody else holds one of them."""
    return _try(descriptor, fcntl.F_WRLCK, offset, length)


def try_shared(descriptor: int, offset: int, length: int = 1) -> bool:
    """Take the bytes together with other readers, without waiting; False when somebody holds one of them alone."""
    return _try(descriptor, fcntl.F_RDLCK, offset, length)


def holder(descriptor: int, offset: int, length: int = 1, *, shared: bool = False) -> int | None:
    """Return the process that keeps this descriptor from taking the bytes (``shared``: with other readers).

    None when nobody does; 0 when the kernel does not tell: an OFD lock, or a process of another PID namespace.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, flock(kind, offset, length))
    found, _, _, _, pid = _FLOCK.unpack(answer)
    return None if found == fcntl.F_UNLCK else max(pid, 0)


def release(descriptor: int, offset: int, length: int = 1) -> None:
    """Give the bytes back."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock(fcntl.F_UNLCK, offset, length))


def flock(kind: int, offset: int, length: int = 1) -> bytes:
    """What fcntl(2) takes for a lock of these bytes; ``kind``: F_WRLCK, F_RDLCK or F_UNLCK."""
    return _FLOCK.pack(kind, _SEEK_SET, offset, length, 0)


def _try(descriptor: int, kind: int, offset: int, length: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock(kind, offset, length))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: fcntl(2) names both
        return False
    return True


def close(descriptor: int) -> None:
    """Give a descriptor back, and its locks with it; also of a mount that is dead by now, whose close is an error."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
