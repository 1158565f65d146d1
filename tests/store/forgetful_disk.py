"""The disk's twin whose kernel forgets: what a failed fdatasync was to write is lost, and the next one succeeds."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from litereplica.store.disk import Disk


class ForgetfulDisk(Disk):
    """``refuses(path)``: an fdatasync of that file fails. What it was to write has to be written again (fsync(2))."""

    __slots__ = ("_dirty", "_lost", "refuses")

    def __init__(self) -> None:
        self.refuses: Callable[[Path], bool] = lambda _path: False
        # By inode number: offsets of bytes.
        self._dirty: dict[int, set[int]] = {}
        self._lost: dict[int, set[int]] = {}

    def well_again(self) -> None:
        self.refuses = lambda _path: False

    def lost_bytes(self, path: Path) -> int:
        """How many bytes of a file are not on the disk although the kernel holds them for written."""
        status = path.stat()
        return sum(offset < status.st_size for offset in self._lost.get(status.st_ino, ()))

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        number, written = os.fstat(descriptor).st_ino, range(offset, offset + len(data))
        self._lost.get(number, set()).difference_update(written)
        self._dirty.setdefault(number, set()).update(written)
        return super().pwrite(descriptor, data, offset)

    def fdatasync(self, descriptor: int) -> None:
        path, status = Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor)
        dirty = self._dirty.pop(status.st_ino, set())
        if self.refuses(path):
            # Stores through a mapping are not seen here: they may have been to any byte.
            is_mapped = path.name == "checksums"
            self._lost.setdefault(status.st_ino, set()).update(range(status.st_size) if is_mapped else dirty)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(descriptor)
