"""The one door to the disk.

Knows the system calls that change or make durable what is in the data directory; nothing else in the program calls
fsync, rename, unlink or truncate there, so a twin of this class sees (and can refuse) every step that a crash could
fall between. Does not know what the bytes mean.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

OPEN_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC


class Disk:
    """Real system calls. Errors are the kernel's ``OSError``."""

    __slots__ = ()

    def open(self, path: Path, flags: int = OPEN_FLAGS, mode: int = 0o644) -> int:
        """A new descriptor, closed on exec."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        return os.pread(descriptor, size, offset)

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        """Write all of ``data``; a short write goes on until the kernel says why (POSIX write(2))."""
        written = os.pwrite(descriptor, data, offset)
        size = len(data)
        if written != size:
            view = memoryview(data)
            while written < size:
                written += os.pwrite(descriptor, view[written:], offset + written)
        return size

    def allocate(self, descriptor: int, offset: int, size: int) -> None:
        """Reserve the blocks of a range, so that a store through a mapping cannot meet a full disk (SIGBUS)."""
        os.posix_fallocate(descriptor, offset, size)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def fsync_directory(self, path: Path) -> None:
        """Make the names in a directory durable (open(2), NOTES: fsync of the directory is needed)."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write_file(self, path: Path, data: bytes) -> None:
        """Replace a small file as a whole: a reader after a crash finds the old bytes or the new ones."""
        temporary = path.with_name(path.name + ".new")
        descriptor = self.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self.pwrite(descriptor, data, 0)
            self.fdatasync(descriptor)
        finally:
            self.close(descriptor)
        self.rename(temporary, path)
        self.fsync_directory(path.parent)

    def make_directories(self, path: Path) -> None:
        """Make a directory and its missing parents, durably."""
        missing: list[Path] = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                self.mkdir(each)
            self.fsync_directory(each.parent)
