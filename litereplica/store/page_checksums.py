"""The checksum of every page of one database, kept in a mapped file, and how much of its log is known to be durable.

Knows the array (8 bytes a page, index pgno - 1), its XOR, and the durable mark. Does not know positions or records.
The array's bytes survive a killed process in the kernel's cache; after a crash entries may be newer or older than the
log's end, which redo repairs (it sets entries, never toggles them).

File, native byte order, u64 each: magic, boot id (2), durable TXID, 4 x 0, then one entry a page. The durable TXID is
written after the fdatasync that made it true and is itself not made durable: whatever value is found is true.
"""

import contextlib
import mmap
import os
from array import array
from pathlib import Path
from typing import Final

import numpy as np

from litereplica.store.disk import Disk

ENTRY_BYTES: Final = 8
HEADER_BYTES: Final = 64
# The file grows by at least this much at a time (8,192 pages), so that growth costs a remap only rarely.
GROWTH_BYTES: Final = 64 * 1024
_COPY_BYTES: Final = 1024 * 1024
_MAGIC: Final = int.from_bytes(b"LRXSUM1\n", "little")
_BOOT: Final = slice(8, 24)
_DURABLE: Final = 3


class PageChecksums:
    """``table[pgno - 1]`` is xxh3_64(page, seed=pgno), or 0 for a page that does not exist (or the lock page).

    ``capacity``: entries that there is room for. ``table`` is replaced when it grows: take it after ``reserve``.
    """

    __slots__ = ("_allocated", "_boot_id", "_disk", "_header", "_map", "_path", "capacity", "table")

    table: memoryview

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._boot_id = disk.boot_id()
        self._map: mmap.mmap | None = None
        # Reserved on the disk by this process: a file that was restored from a backup may have holes.
        self._allocated = 0
        self.capacity = 0
        self.table = self._header = memoryview(b"").cast("Q")
        size = path.stat().st_size if path.exists() else 0
        if size >= HEADER_BYTES + ENTRY_BYTES:
            self._remap((size - HEADER_BYTES) // ENTRY_BYTES)
            if self._header[0] != _MAGIC:
                self.clear_from(1)
                self._header[:8] = memoryview(bytes(HEADER_BYTES)).cast("Q")
        else:
            self.reserve(1)

    # -- entries ---------------------------------------------------------------------------------------------------

    def reserve(self, pages: int) -> None:
        """Make room for ``pages`` entries. Raises OSError (ENOSPC) without any change when the disk is full."""
        if pages <= self.capacity and self._allocated:
            return
        wanted = pages if pages <= self.capacity else max(pages, self.capacity * 5 // 4)
        size = max(HEADER_BYTES + wanted * ENTRY_BYTES, HEADER_BYTES + self.capacity * ENTRY_BYTES)
        size += -size % GROWTH_BYTES
        descriptor = self._disk.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            self._disk.allocate(descriptor, 0, size)
        finally:
            self._disk.close(descriptor)
        self._remap((size - HEADER_BYTES) // ENTRY_BYTES)
        self._allocated = size

    def _remap(self, entries: int) -> None:
        size = HEADER_BYTES + entries * ENTRY_BYTES
        descriptor = self._disk.open(self._path)
        try:
            fresh = self._disk.map(descriptor, size)
        finally:
            self._disk.close(descriptor)
        self._release()
        self._map = fresh
        whole = memoryview(fresh)
        self._header = whole[:HEADER_BYTES].cast("Q")
        self.table = whole[HEADER_BYTES:].cast("Q")
        whole.release()
        self.capacity = entries

    def _release(self) -> None:
        self.table.release()
        self._header.release()
        if self._map is not None:
            self._map.close()
            self._map = None

    def xor_range(self, first_pgno: int, last_pgno: int) -> int:
        """XOR of the entries of first_pgno..last_pgno (inclusive; an empty range is 0)."""
        last_pgno = min(last_pgno, self.capacity)
        if last_pgno < first_pgno:
            return 0
        return xor_of(self.table[first_pgno - 1 : last_pgno])

    def clear_from(self, pgno: int, last_pgno: int | None = None) -> None:
        """Set the entries of pgno..last_pgno (default: all after) to 0: pages that no longer exist."""
        last = self.capacity if last_pgno is None else min(last_pgno, self.capacity)
        if last >= pgno:
            np.frombuffer(self.table[pgno - 1 : last], dtype=np.uint64)[:] = 0

    def is_clear_from(self, pgno: int) -> bool:
        """Whether no entry of ``pgno`` or after is set."""
        return pgno > self.capacity or not np.frombuffer(self.table[pgno - 1 :], dtype=np.uint64).any()

    def set_entries(self, pgnos: list[int], entries: "array[int]") -> None:
        """Set the entries of many pages, for which there is room."""
        values = np.frombuffer(self.table, dtype=np.uint64)
        values[np.array(pgnos, dtype=np.int64) - 1] = np.frombuffer(entries, dtype=np.uint64)

    def replace(self, checksums: "memoryview | bytes") -> None:
        """Set all entries anew: unsigned 64-bit values, native order, from page 1 on. Raises OSError (ENOSPC)."""
        values = np.frombuffer(checksums, dtype=np.uint64)
        self.reserve(len(values))
        self.clear_from(len(values) + 1)
        np.frombuffer(self.table, dtype=np.uint64)[: len(values)] = values

    # -- the durable mark ------------------------------------------------------------------------------------------

    @property
    def durable_txid(self) -> int | None:
        """The log is durable up to here at least; None when nothing is known."""
        return self._header[_DURABLE] if self._header[0] == _MAGIC else None

    @property
    def same_boot(self) -> bool:
        """The last writer ran since this machine's start: no power was lost, the kernel has kept all that it wrote."""
        return self._header[0] == _MAGIC and bytes(self._header.cast("B")[_BOOT]) == self._boot_id

    def mark_durable(self, txid: int) -> None:
        """Remember that the log is durable up to ``txid``."""
        self._header[_DURABLE] = txid

    def begin_boot(self, txid: int) -> None:
        """From here on this process writes; the log is durable up to ``txid``."""
        header = self._header
        header[0] = _MAGIC
        header.cast("B")[_BOOT] = self._boot_id
        header[_DURABLE] = txid

    def sync(self) -> None:
        """Make all entries durable (a file's fdatasync includes its mapped pages). Blocking; for any thread."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.sync_file(self._path)

    def write_again(self) -> None:
        """Make the kernel write all entries, which it holds for written after a failed ``sync`` (fsync(2)). Blocking.

        Raises OSError. ``sync`` has to follow.
        """
        if self._map is None:
            return
        size = len(self._map)
        descriptor = self._disk.open(self._path)
        try:
            for offset in range(0, size, _COPY_BYTES):
                self._disk.pwrite(descriptor, self._map[offset : offset + _COPY_BYTES], offset)
        finally:
            self._disk.close(descriptor)

    def close(self) -> None:
        """Let the mapping go; entries stay in the file."""
        self._release()
        self.capacity = self._allocated = 0


def xor_of(entries: "array[int] | memoryview") -> int:
    """The rolling checksum that page checksums (unsigned 64-bit) make; 0 without any."""
    return int(np.bitwise_xor.reduce(np.frombuffer(entries, dtype=np.uint64))) if len(entries) else 0
