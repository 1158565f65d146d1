"""The one door to the disk.

Knows the system calls that change or make durable what is in the data directory; nothing else in the program calls
fsync, rename, unlink or truncate there, so a twin of this class sees (and can refuse) every step that a crash could
fall between. Does not know what the bytes mean.
"""

import contextlib
import mmap
import os
from pathlib import Path
from typing import Final

OPEN_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Disk:
    """Real system calls. Errors are the kernel's ``OSError``."""

    __slots__ = ()

    def open(self, path: Path, flags: int = OPEN_FLAGS, mode: int = 0o644) -> int:
        """Return a new descriptor, closed on exec."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, descriptor: int) -> None:
        """Give a descriptor back."""
        os.close(descriptor)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """Read up to ``size`` bytes; fewer only at the end of the file."""
        data = os.pread(descriptor, size, offset)
        if data and len(data) < size:
            # One read(2) moves at most 2 GiB and may be short (a signal, a bad page): only nothing at all is the end.
            parts = [data]
            done = len(data)
            while done < size and (more := os.pread(descriptor, size - done, offset + done)):
                parts.append(more)
                done += len(more)
            data = b"".join(parts)
        return data

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

    def map(self, descriptor: int, size: int) -> mmap.mmap:
        """Share the first ``size`` bytes of a file; the mapping outlives the descriptor."""
        return mmap.mmap(descriptor, size)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut or grow a file to ``size`` bytes."""
        os.ftruncate(descriptor, size)

    def fdatasync(self, descriptor: int) -> None:
        """Make a file's bytes (and length) durable, also those that were stored through a mapping."""
        os.fdatasync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Move a file, over what has its new name."""
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def fsync_directory(self, path: Path) -> None:
        """Make the names in a directory durable (open(2), NOTES: fsync of the directory is needed)."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def boot_id(self) -> bytes:
        """Which start of the machine this is, 16 bytes: the kernel's cache survives a process, but not the next one."""
        return bytes.fromhex(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))

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

    def sync_file(self, path: Path) -> None:
        """Make a file durable by name; blocking."""
        descriptor = self.open(path)
        try:
            self.fdatasync(descriptor)
        finally:
            self.close(descriptor)

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
