"""A file's bytes as its disk has them.

Knows how to read past the kernel's page cache (open(2), O_DIRECT), so that damage on the disk is seen and nothing that
applications use is pushed out. Does not know what the bytes mean.
"""

import errno
import mmap
import os
from pathlib import Path
from typing import Final

from litereplica.store.disk import Disk

# Every page size divides it, and so does every block size that a disk asks offsets of O_DIRECT to be multiples of.
CHUNK_BYTES: Final = 1024 * 1024
_ALIGNMENT: Final = 4096


class DirectFile:
    """A file that is read a chunk at a time. Not for two threads at once."""

    __slots__ = ("_buffer", "_descriptor", "_disk", "_path", "is_direct")

    def __init__(self, disk: Disk, path: Path) -> None:
        """Raises OSError (FileNotFoundError). ``is_direct``: whether the file system lets the page cache be passed."""
        self._disk = disk
        self._path = path
        self._buffer = mmap.mmap(-1, CHUNK_BYTES)  # begins at a memory page, as O_DIRECT wants it
        self.is_direct = True
        try:
            self._descriptor = disk.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._descriptor = self._open_cached()

    def _open_cached(self) -> int:
        self.is_direct = False
        return self._disk.open(self._path, os.O_RDONLY)

    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int) -> memoryview:
        """The chunk at ``offset``, a multiple of CHUNK_BYTES; shorter at the end of the file.

        The view is good until the next call. Blocking: for a worker thread. Raises OSError.
        """
        try:
            done = self._fill(offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.is_direct:
                raise
            # The file system takes the flag and then refuses such a read.
            cached = self._open_cached()
            self._disk.close(self._descriptor)
            self._descriptor = cached
            done = self._fill(offset)
        if not self.is_direct:
            os.posix_fadvise(self._descriptor, offset, CHUNK_BYTES, os.POSIX_FADV_DONTNEED)
        return memoryview(self._buffer)[:done]

    def _fill(self, offset: int) -> int:
        done = 0
        with memoryview(self._buffer) as whole:
            while done < CHUNK_BYTES:
                count = os.preadv(self._descriptor, [whole[done:]], offset + done)
                done += count
                # Only the end of the file is not at such a multiple.
                if not count or done % _ALIGNMENT:
                    break
        return done

    def close(self) -> None:
        """Give the descriptor back; no view is in use."""
        if self._descriptor >= 0:
            self._disk.close(self._descriptor)
            self._descriptor = -1
            self._buffer.close()
