"""One segment file of a database's log.

Knows the file name (TXID of the first record, 16 hex digits), where each record starts, and the index sidecar that
spares a sealed segment the scan. Does not know what is in a record beyond its length and TXID: ltx.decode does.

File: records back to back, then (only in a segment that is still written) zero bytes up to the end of the file.
Sidecar ``NAME.idx``: u64 LE start of each record, then u64 LE length of the segment, then xxh3_64 of all that (LE).
"""

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from litereplica.errors import Corrupt
from litereplica.ltx.decode import RecordSummary, Truncated, scan_record
from litereplica.store.disk import Disk

SUFFIX: Final = ".ltx"
INDEX_SUFFIX: Final = ".idx"
# Reads of the scan; a record of a small transaction is under 16 KiB, so one window holds several.
WINDOW_BYTES: Final = 256 * 1024
MAGIC: Final = b"LRX1"


@dataclass(slots=True)
class Segment:
    """Records first_txid..last_txid; ``starts[i]`` is the offset of record first_txid + i, or None when not loaded."""

    path: Path
    first_txid: int
    last_txid: int
    length: int
    newest_timestamp_ms: int
    starts: "array[int] | None"
    descriptor: int = -1
    # How far the file's bytes are known to be on the disk.
    durable: int = 0
    # End of the bytes that exist in the file: beyond ``length`` they are zeroes written ahead.
    allocated: int = 0

    def bounds(self, disk: Disk, txid: int) -> tuple[int, int]:
        """(start, end) offsets of one record."""
        starts = self.starts
        if starts is None:
            starts = self.starts = load_index(disk, self)
        number = txid - self.first_txid
        end = starts[number + 1] if number + 1 < len(starts) else self.length
        return starts[number], end

    def open(self, disk: Disk) -> int:
        if self.descriptor < 0:
            self.descriptor = disk.open(self.path)
        return self.descriptor

    def close(self, disk: Disk) -> None:
        if self.descriptor >= 0:
            disk.close(self.descriptor)
            self.descriptor = -1


def segment_name(first_txid: int) -> str:
    return f"{first_txid:016x}{SUFFIX}"


class Window:
    """``read_at`` for scan_record over a descriptor, through one reused window of bytes."""

    __slots__ = ("_bytes", "_descriptor", "_disk", "_start")

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._start = 0
        self._bytes = b""

    def __call__(self, offset: int, size: int) -> bytes:
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._bytes):
            self._bytes = self._disk.pread(self._descriptor, max(size, WINDOW_BYTES), offset)
            self._start, begin = offset, 0
        return self._bytes[begin : begin + size]


@dataclass(frozen=True, slots=True)
class Scan:
    """What a walk over a segment's bytes found; ``damage`` names the first bytes that are no record, if any."""

    starts: "array[int]"
    length: int
    last: RecordSummary | None
    damage: str | None


def scan(disk: Disk, descriptor: int, first_txid: int, *, verify: bool) -> Scan:
    """Walk the records from the start; stops at zeroes (written ahead), at the end, or at damage."""
    starts = array("Q")
    offset = 0
    last: RecordSummary | None = None
    read_at = Window(disk, descriptor)
    damage: str | None = None
    while True:
        head = read_at(offset, 4)
        if not head.strip(b"\0") and not read_at(offset, 64).strip(b"\0"):
            break
        try:
            summary = scan_record(read_at, offset, verify=verify)
        except Truncated:
            damage = f"record {first_txid + len(starts):016x} at byte {offset} is cut short"
            break
        except Corrupt as error:
            damage = f"record {first_txid + len(starts):016x} at byte {offset}: {error.message}"
            break
        expected = first_txid + len(starts)
        if summary.header.min_txid != expected or summary.header.max_txid != expected:
            damage = f"record {expected:016x} at byte {offset} says that it is {summary.header.min_txid:016x}"
            break
        starts.append(offset)
        offset += summary.length
        last = summary
    return Scan(starts, offset, last, damage)


def record_after(disk: Disk, descriptor: int, offset: int, first_txid: int) -> int | None:
    """TXID of a whole, valid record somewhere after ``offset``: then the damage before it is not a torn tail."""
    size = os.fstat(descriptor).st_size
    position = offset + 1
    read_at = Window(disk, descriptor)
    while position < size:
        chunk = disk.pread(descriptor, WINDOW_BYTES, position)
        if not chunk:
            return None
        found = chunk.find(MAGIC)
        while found >= 0:
            try:
                summary = scan_record(read_at, position + found, verify=True)
            except Corrupt:
                pass
            else:
                if summary.header.min_txid > first_txid:
                    return summary.header.min_txid
            found = chunk.find(MAGIC, found + 1)
        position += max(1, len(chunk) - len(MAGIC) + 1)
        if len(chunk) < WINDOW_BYTES:
            return None
    return None


def index_bytes(segment: Segment) -> bytes:
    assert segment.starts is not None
    body = segment.starts.tobytes() + segment.length.to_bytes(8, "little")
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def load_index(disk: Disk, segment: Segment) -> "array[int]":
    """The record offsets of a sealed segment: from the sidecar, else by a scan. Raises Corrupt for a damaged segment."""
    count = segment.last_txid - segment.first_txid + 1
    path = segment.path.with_suffix(INDEX_SUFFIX)
    if path.exists():
        data = path.read_bytes()
        body, digest = data[:-8], data[-8:]
        if len(data) == 8 * (count + 2) and xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") == digest:
            starts = array("Q")
            starts.frombytes(body[:-8])
            return starts
    found = scan(disk, segment.open(disk), segment.first_txid, verify=True)
    if found.damage is not None or len(found.starts) < count:
        detail = found.damage or f"only {len(found.starts)} of {count} records"
        message = f"log segment {segment.path} is damaged: {detail}; restore it from another node, or move the database's folder aside and let this node take a snapshot"
        raise Corrupt(message)
    return found.starts
