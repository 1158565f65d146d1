"""The checksum of every page of one database, kept in a mapped file.

Knows the array (8 bytes a page, native order, index pgno - 1) and its XOR. Does not know positions or records.
The array's bytes survive a killed process in the kernel's cache; after a crash entries may be newer or older than the
log's end, which redo repairs (it sets entries, never toggles them).
"""

import mmap
import os
from pathlib import Path
from typing import Final

import numpy as np

from litereplica.store.disk import Disk

ENTRY_BYTES: Final = 8
# The file grows by at least this much at a time (8,192 pages), so that growth costs a remap only rarely.
GROWTH_BYTES: Final = 64 * 1024


class PageChecksums:
    """``table[pgno - 1]`` is xxh3_64(page, seed=pgno), or 0 for a page that does not exist (or the lock page)."""

    __slots__ = ("_capacity", "_descriptor", "_disk", "_map", "table")

    table: memoryview

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._descriptor = disk.open(path, os.O_RDWR | os.O_CREAT)
        size = os.fstat(self._descriptor).st_size
        size -= size % GROWTH_BYTES
        self._map: mmap.mmap | None = None
        self._capacity = 0
        self.table = memoryview(b"").cast("Q")
        if size:
            self._remap(size)
        self.reserve(1)

    def reserve(self, pages: int) -> None:
        """Make room for ``pages`` entries. Raises OSError (ENOSPC) without any change when the disk is full."""
        if pages <= self._capacity:
            return
        wanted = pages * ENTRY_BYTES
        size = max(wanted, self._capacity * ENTRY_BYTES * 5 // 4)
        size += -size % GROWTH_BYTES
        self._disk.allocate(self._descriptor, 0, size)
        self._remap(size)

    def _remap(self, size: int) -> None:
        self.table.release()
        if self._map is not None:
            self._map.close()
        self._map = mmap.mmap(self._descriptor, size)
        self.table = memoryview(self._map).cast("Q")
        self._capacity = size // ENTRY_BYTES

    def xor_range(self, first_pgno: int, last_pgno: int) -> int:
        """XOR of the entries of first_pgno..last_pgno (inclusive; an empty range is 0)."""
        if last_pgno < first_pgno:
            return 0
        self.reserve(last_pgno)
        entries = np.frombuffer(self.table, dtype=np.uint64, count=last_pgno - first_pgno + 1,
                                offset=(first_pgno - 1) * ENTRY_BYTES)
        return int(np.bitwise_xor.reduce(entries))

    def clear_from(self, pgno: int, last_pgno: int) -> None:
        """Set the entries of pgno..last_pgno to 0 (pages that no longer exist)."""
        last_pgno = min(last_pgno, self._capacity)
        if last_pgno >= pgno:
            self.table[pgno - 1 : last_pgno] = memoryview(bytes((last_pgno - pgno + 1) * ENTRY_BYTES)).cast("Q")

    def flush(self) -> None:
        """Make the array durable (msync)."""
        if self._map is not None:
            self._map.flush()

    def close(self) -> None:
        self.table.release()
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._descriptor >= 0:
            self._disk.close(self._descriptor)
            self._descriptor = -1
