"""The disk's twin that refuses what a test names."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from litereplica.store.disk import Disk


class NamedCalls(Disk):
    """Refuses the calls for which ``refuses(call, path)``, with ``code``; of a rename ``path`` is the new name."""

    __slots__ = ("code", "refuses")

    def __init__(self) -> None:
        self.refuses: Callable[[str, Path], bool] = lambda _call, _path: False
        self.code = errno.EIO

    def _check(self, call: str, file: int | Path) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else file
        if self.refuses(call, path):
            raise OSError(self.code, os.strerror(self.code))

    def well_again(self) -> None:
        """Refuse nothing any more."""
        self.refuses = lambda _call, _path: False

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        self._check("pread", descriptor)
        return super().pread(descriptor, size, offset)

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        self._check("pwrite", descriptor)
        return super().pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._check("truncate", descriptor)
        super().truncate(descriptor, size)

    def fdatasync(self, descriptor: int) -> None:
        self._check("fdatasync", descriptor)
        super().fdatasync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._check("rename", target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._check("unlink", path)
        super().unlink(path)

    def fsync_directory(self, path: Path) -> None:
        self._check("fsync_directory", path)
        super().fsync_directory(path)
