"""A walk over a segment's bytes, record by record, as after a crash.

Knows where records can end and what may lie behind the last one. Does not know whether damage is a torn tail or worse:
recovery decides that from what is known to be durable.
"""

import os
from array import array
from dataclasses import dataclass
from typing import Final

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.decode import RecordSummary, Truncated, scan_record
from litereplica.ltx.format import NEWEST_VERSION, VERSION_PEEK_BYTES
from litereplica.store.disk import Disk

# Reads of the scan; a record of a small transaction is under 16 KiB, so one window holds several.
WINDOW_BYTES: Final = 256 * 1024
MAGIC: Final = b"LRX1"
_ZEROES: Final = bytes(WINDOW_BYTES)


class Window:
    """``read_at`` for scan_record over a descriptor, through one reused window of bytes."""

    __slots__ = ("_bytes", "_descriptor", "_disk", "_start")

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._start = 0
        self._bytes = b""

    def __call__(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._bytes):
            self._bytes = self._disk.pread(self._descriptor, max(size, WINDOW_BYTES), offset)
            self._start, begin = offset, 0
        return self._bytes[begin : begin + size]


class FirstBytes:
    """The same without reading ahead: for one record that is looked at for its header and trailer only."""

    __slots__ = ("_descriptor", "_disk")

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor

    def __call__(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``."""
        return self._disk.pread(self._descriptor, size, offset)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a walk found: whole records up to ``length``, the last of them, and what is wrong behind it, if anything.

    ``damage`` names the record that should be there; None at the end of the file and before nothing but zeroes.
    """

    starts: "array[int]"
    length: int
    last: RecordSummary | None
    damage: str | None


def scan(disk: Disk, descriptor: int, first_txid: int, before: int | None) -> Scan:
    """Walk the records from the start of a segment, every checksum compared.

    ``before``: the rolling checksum before its first record, None when unknown. A record that does not continue the
    one before it is damage: after a crash an old record can lie behind a new one.
    """
    starts = array("Q")
    offset = 0
    last: RecordSummary | None = None
    read_at = Window(disk, descriptor)
    while True:
        expected = first_txid + len(starts)
        if not read_at(offset, len(MAGIC)).strip(b"\0"):
            other = _first_nonzero(disk, descriptor, offset)
            damage = None if other is None else f"record {expected:016x} at byte {offset} is zeroes up to byte {other}"
            return Scan(starts, offset, last, damage)
        try:
            summary = scan_record(read_at, offset, verify=True)
        except Truncated:
            return Scan(starts, offset, last, f"record {expected:016x} at byte {offset} is cut short")
        except (Corrupt, Refused) as error:
            # A record of a newer version is not ours to drop as a torn tail; version 0 is what a tear leaves.
            if isinstance(error, Refused) and read_at(offset, VERSION_PEEK_BYTES)[-1] > NEWEST_VERSION:
                raise
            return Scan(starts, offset, last, f"record {expected:016x} at byte {offset}: {error.message}")
        header = summary.header
        if header.min_txid != expected or header.max_txid != expected:
            other_txid = f"says that it is {header.min_txid:016x}"
            return Scan(starts, offset, last, f"record {expected:016x} at byte {offset} {other_txid}")
        if before is not None and header.pre_checksum != before:
            return Scan(starts, offset, last, f"record {expected:016x} at byte {offset} continues another history")
        starts.append(offset)
        offset += summary.length
        last = summary
        before = summary.trailer.post_checksum


def _first_nonzero(disk: Disk, descriptor: int, offset: int) -> int | None:
    while chunk := disk.pread(descriptor, WINDOW_BYTES, offset):
        if chunk != (_ZEROES if len(chunk) == WINDOW_BYTES else bytes(len(chunk))):
            return offset + len(chunk) - len(chunk.lstrip(b"\0"))
        offset += len(chunk)
    return None


def record_after(disk: Disk, descriptor: int, offset: int, txid: int, database: str) -> int | None:
    """TXID of a whole record of ``database`` after ``txid`` somewhere behind ``offset``; None if there is none."""
    size = os.fstat(descriptor).st_size
    position = offset + 1
    read_at = Window(disk, descriptor)
    while position < size:
        chunk = disk.pread(descriptor, WINDOW_BYTES, position)
        found = chunk.find(MAGIC)
        while found >= 0:
            try:
                summary = scan_record(read_at, position + found, verify=True)
            except (Corrupt, Refused):
                pass
            else:
                if summary.header.min_txid > txid and summary.header.database == database:
                    return summary.header.min_txid
            found = chunk.find(MAGIC, found + 1)
        if len(chunk) < WINDOW_BYTES:
            return None
        position += len(chunk) - len(MAGIC) + 1
    return None
