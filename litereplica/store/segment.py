"""One segment file of a database's log.

Knows the file name (TXID of the first record, 16 hex digits), where each record starts, and the index sidecar that
spares a segment the scan. Does not know what is in a record (ltx.decode) or in which order segments belong (log).

File: records back to back, then (only in a segment that is still written) zero bytes up to the end of the file.
Sidecar ``NAME.idx``: u64 LE start of each record, then u64 LE length of the segment, then xxh3_64 of all that (LE).
"""

import contextlib
import os
import sys
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from litereplica.errors import Corrupt
from litereplica.store.disk import Disk
from litereplica.store.scan import scan

SUFFIX: Final = ".ltx"
INDEX_SUFFIX: Final = ".idx"
assert sys.byteorder == "little", "the sidecar and the page checksums are read as they lie in memory"


@dataclass(slots=True, eq=False)
class Segment:
    """Records first_txid..last_txid; ``starts[i]`` is the offset of record first_txid + i, or None when not loaded.

    ``length``: bytes of counted records. ``allocated``: end of the bytes in the file; beyond ``length`` they are
    zeroes written ahead. ``named``: the file's name is durable.
    """

    path: Path
    first_txid: int
    last_txid: int
    length: int
    newest_timestamp_ms: int
    starts: "array[int] | None"
    descriptor: int = -1
    allocated: int = 0
    named: bool = True

    def _starts(self, disk: Disk) -> "array[int]":
        starts = self.starts
        if starts is None:
            starts = self.starts = load_index(disk, self)
        return starts

    def bounds(self, disk: Disk, txid: int) -> tuple[int, int]:
        """(start, end) offsets of one record."""
        starts = self._starts(disk)
        number = txid - self.first_txid
        end = starts[number + 1] if number + 1 < len(starts) else self.length
        return starts[number], end

    def last_ending_by(self, disk: Disk, offset: int) -> int:
        """TXID of the last record that ends at or before ``offset``; first_txid - 1 if none does."""
        if offset >= self.length:
            return self.last_txid
        # Record i ends where i + 1 starts.
        return self.first_txid + bisect_right(self._starts(disk), offset) - 2

    def open(self, disk: Disk) -> int:
        """Return a descriptor; it stays open until ``close``."""
        if self.descriptor < 0:
            self.descriptor = disk.open(self.path)
        return self.descriptor

    def close(self, disk: Disk) -> None:
        """Give the descriptor back, if there is one."""
        if self.descriptor >= 0:
            disk.close(self.descriptor)
            self.descriptor = -1


def segment_name(first_txid: int) -> str:
    """Return the file name of a segment."""
    return f"{first_txid:016x}{SUFFIX}"


def first_txid_of(name: str) -> int | None:
    """Return the TXID that a segment's file name states; None for a name of another kind."""
    stem = name.removesuffix(SUFFIX)
    if stem == name or len(stem) != 16 or not all(digit in "0123456789abcdef" for digit in stem):
        return None
    return int(stem, 16)


def save_index(disk: Disk, segment: Segment) -> None:
    """Write the sidecar; without it (the disk is full) the segment is scanned when it is needed."""
    assert segment.starts is not None
    body = segment.starts.tobytes() + segment.length.to_bytes(8, "little")
    path = segment.path.with_suffix(INDEX_SUFFIX)
    with contextlib.suppress(OSError):
        descriptor = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            disk.pwrite(descriptor, body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"), 0)
        finally:
            disk.close(descriptor)


def read_index(path: Path) -> "tuple[array[int], int] | None":
    """Return (starts, length of the segment) from the sidecar of the segment ``path``; None if it is no good."""
    try:
        data = path.with_suffix(INDEX_SUFFIX).read_bytes()
    except FileNotFoundError:
        return None
    body, digest = data[:-8], data[-8:]
    if len(data) < 24 or len(data) % 8 or xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != digest:
        return None
    starts = array("Q")
    starts.frombytes(body)
    length = starts.pop()
    return starts, length


def load_index(disk: Disk, segment: Segment) -> "array[int]":
    """Find the records of a segment: from the sidecar, else by a scan. Raises Corrupt for a damaged segment."""
    count = segment.last_txid - segment.first_txid + 1
    found = read_index(segment.path)
    if found is not None and len(found[0]) == count and found[1] == segment.length:
        return found[0]
    scanned = scan(disk, segment.open(disk), segment.first_txid, None)
    if scanned.damage is not None or len(scanned.starts) < count:
        detail = scanned.damage or f"only {len(scanned.starts)} of {count} records"
        raise Corrupt(
            f"log segment {segment.path} is damaged: {detail}; restore it from another node, or move the database's "
            f"folder aside and let this node take a snapshot"
        )
    return scanned.starts[:count]
