"""Reads and writes of files of the mount that are whole, or an error.

The kernel answers a read that it cannot finish with what it has before the page that failed, and says why only to
whoever asks for the rest (read(2), mm/filemap.c): fewer bytes are the end of the file only when nothing at all comes
next. Taken for that end, a disk error becomes a page of zeros, or a journal without its last pages.
"""

import errno
import os
from typing import Final

from litereplica.store.disk import Disk

# What one system call writes: the daemon answers other databases between two of them.
WRITE_BYTES: Final = 1 << 20
_DISK: Final = Disk()


def read_all(descriptor: int, size: int, offset: int) -> bytes:
    """``size`` bytes, fewer only at the end of the file. Raises OSError."""
    return _DISK.pread(descriptor, size, offset)


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """``size`` bytes, which the file has. Raises OSError: EIO when it ends before."""
    data = read_all(descriptor, size, offset)
    if len(data) != size:
        raise OSError(errno.EIO, f"the file ends {size - len(data)} bytes before byte {offset + size}")
    return data


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write everything, in calls of WRITE_BYTES at most. Raises OSError."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done : done + WRITE_BYTES], offset + done)
