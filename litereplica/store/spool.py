"""Bytes on their way between nodes that are no part of any log: gathered here, read once, then gone.

Knows when they take a file instead of memory, and that such a file never outlives the process for long. Does not know
what the bytes are.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from litereplica.store.disk import Disk

if TYPE_CHECKING:
    from litereplica.store.store import Store

log = structlog.get_logger()

MEMORY_BYTES: Final = 1024 * 1024
"""What is longer goes to a file: nearly every transaction is shorter, and dozens of these at once cost little."""

_NAME: Final = re.compile(r"[0-9a-f]{16}\.spool")


class Spool:
    """Some bytes, in memory up to ``memory_bytes``, else in a file of ``forwarded/``.

    ``length``: how many there are. Whoever made it calls ``close``, which removes the file.
    """

    __slots__ = ("_bytes", "_descriptor", "_memory_bytes", "_path", "_store", "length")

    def __init__(self, store: "Store", memory_bytes: int = MEMORY_BYTES) -> None:
        self._store = store
        self._memory_bytes = memory_bytes
        self._bytes = bytearray()
        self._descriptor = -1
        self._path: Path | None = None
        self.length = 0

    @property
    def path(self) -> Path | None:
        """The file that has all of the bytes; None while they are in memory."""
        return self._path

    def append(self, data: bytes | memoryview) -> None:
        """Add ``data`` behind the rest. On OSError (a full disk) the spool is closed: nothing of it is left."""
        end = self.length + len(data)
        if self._path is None and end <= self._memory_bytes:
            self._bytes += data
        else:
            try:
                self._to_file()
                self._store.disk.pwrite(self._descriptor, data, self.length)
            except OSError:
                self.close()
                raise
        self.length = end

    def whole(self, memory_bytes: int) -> bytes | Path:
        """All of it for another process: what is in memory, up to ``memory_bytes``, else the file that has it.

        Raises OSError as ``append`` does.
        """
        if self._path is None and self.length <= memory_bytes:
            return bytes(self._bytes)
        return self.to_file()

    def to_file(self) -> Path:
        """Let all of it be in a file, for another process to read. Raises OSError as ``append`` does."""
        try:
            return self._to_file()
        except OSError:
            self.close()
            raise

    def _to_file(self) -> Path:
        if self._path is None:
            disk = self._store.disk
            path = self._store.spool_path()
            self._descriptor = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._path = path
            if self._bytes:
                disk.pwrite(self._descriptor, bytes(self._bytes), 0)
                self._bytes = bytearray()
        return self._path

    def read(self, offset: int, size: int) -> bytes:
        """The bytes there, fewer only at the end. Raises OSError."""
        if self._path is None:
            return bytes(self._bytes[offset : offset + size])
        return self._store.disk.pread(self._descriptor, size, offset)

    def pieces(self, size: int) -> Iterator[bytes]:
        """All of it in order, in pieces of ``size`` bytes. Raises OSError."""
        for offset in range(0, self.length, size):
            yield self.read(offset, size)

    def close(self) -> None:
        """Let the bytes go; a second time does nothing."""
        self.length = 0
        self._bytes = bytearray()
        if self._descriptor >= 0:
            self._store.disk.close(self._descriptor)
            self._descriptor = -1
        if self._path is not None:
            path, self._path = self._path, None
            # What cannot be removed now is removed at the next start.
            with contextlib.suppress(OSError):
                self._store.disk.unlink(path)


def spool_name(number: int) -> str:
    """A file's name in ``forwarded/``."""
    return f"{number:016x}.spool"


def empty_folder(disk: Disk, folder: Path) -> None:
    """At start: what a process has left that is gone. A file that is not one of ours stays. Raises OSError."""
    for entry in sorted(folder.iterdir()):
        if _NAME.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink():
            disk.unlink(entry)
        else:
            log.warning("unknown_file_left_alone", path=str(entry))
