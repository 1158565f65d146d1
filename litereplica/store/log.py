"""The LTX log of one database: an append-only sequence of records in segment files.

Knows TXIDs, byte spans, what is durable, what must be kept and for whom. Does not know pages or SQLite, and does not
decide whether a record may be appended: store.database does.

Only the counted end is the log: bytes of a record that is still being received lie beyond it and are cut off when the
rest does not come.
"""

import os
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.decode import RecordSummary, scan_record
from litereplica.store.disk import Disk
from litereplica.store.segment import (
    INDEX_SUFFIX,
    SUFFIX,
    Segment,
    Window,
    index_bytes,
    record_after,
    scan,
    segment_name,
)
from litereplica.store.sync import BlockingCalls

# A new segment is begun once one is longer: small enough that retention is not coarse, few enough files.
SEGMENT_BYTES: Final = 16 * 1024 * 1024
# While an application asks for durable commits, zeroes are written ahead in steps of this, so that most fdatasync
# calls have no new file length to write (measured: 114 us growing, 74 us not, ext4).
WRITE_AHEAD_BYTES: Final = 512 * 1024
_ZEROES: Final = bytes(WRITE_AHEAD_BYTES)


class Trimmed(Refused):
    """The log no longer holds what was asked for: a snapshot is needed."""


@dataclass(frozen=True, slots=True)
class Span:
    """Whole records first_txid..last_txid: ``length`` bytes of ``path`` from ``offset``."""

    path: Path
    offset: int
    length: int
    first_txid: int
    last_txid: int


class Log:
    """Records first_txid..last_txid, without gaps; empty when last_txid == first_txid - 1."""

    __slots__ = (
        "_calls", "_disk", "_pins", "_segments", "_sync_waiters", "_syncing", "_unsynced",
        "_wants_durable", "directory", "first_txid", "last_txid", "received_bytes", "size_bytes", "uncounted", "version",
    )

    def __init__(self, disk: Disk, calls: BlockingCalls, directory: Path, next_txid: int) -> None:
        self._disk = disk
        self._calls = calls
        self.directory = directory
        self.first_txid = next_txid
        self.last_txid = next_txid - 1
        self.size_bytes = 0
        # Bytes of every record counted since the start; it only rises.
        self.received_bytes = 0
        self.uncounted = 0
        self.version = 0  # rises with each append or cut; a cheap "has anything changed"
        self._segments: list[Segment] = []
        self._pins: dict[str, int] = {}
        # Segments with bytes that no fdatasync has covered yet, oldest first.
        self._unsynced: list[Segment] = []
        self._syncing = False
        self._sync_waiters = trio.lowlevel.ParkingLot()
        self._wants_durable = False

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, disk: Disk, calls: BlockingCalls, directory: Path, next_txid: int) -> "Log":
        """Find the segments; check the newest one record by record; drop a torn tail.

        ``next_txid`` is used when there is no record. Raises Corrupt, naming the record, when bytes in the middle are
        damaged or a segment is missing; nothing is changed then.
        """
        log = cls(disk, calls, directory, next_txid)
        names = sorted(entry.name for entry in directory.iterdir() if entry.name.endswith(SUFFIX))
        for number, name in enumerate(names):
            first = int(name.removesuffix(SUFFIX), 16)
            path = directory / name
            if log._segments and first != log._segments[-1].last_txid + 1:
                message = f"log of {directory.name}: records {log._segments[-1].last_txid + 1:016x} to {first - 1:016x} are missing before {path}; restore the segment, or move the folder {directory} aside and let this node take a snapshot"
                raise Corrupt(message)
            newest = number == len(names) - 1
            segment = log._open_newest(path, first) if newest else log._open_sealed(path, first, directory / names[number + 1])
            if segment is not None:
                log._segments.append(segment)
                log.size_bytes += segment.length
        if log._segments:
            log.first_txid = log._segments[0].first_txid
            log.last_txid = log._segments[-1].last_txid
        return log

    def _open_sealed(self, path: Path, first: int, following: Path) -> Segment:
        last = int(following.name.removesuffix(SUFFIX), 16) - 1
        status = path.stat()
        segment = Segment(path, first, last, status.st_size, status.st_mtime_ns // 1_000_000, None)
        segment.durable = segment.allocated = status.st_size
        return segment

    def _open_newest(self, path: Path, first: int) -> Segment | None:
        descriptor = self._disk.open(path)
        found = scan(self._disk, descriptor, first, verify=True)
        if found.damage is not None:
            later = record_after(self._disk, descriptor, found.length, first)
            if later is not None:
                self._disk.close(descriptor)
                message = f"log segment {path} is damaged in the middle: {found.damage}, and record {later:016x} after it is whole; restore the file, or move the folder {self.directory} aside and let this node take a snapshot"
                raise Corrupt(message)
        if os.fstat(descriptor).st_size != found.length:
            self._disk.truncate(descriptor, found.length)
        if found.last is None:
            # The segment was begun and no record of it became whole; appending begins it again under the same name.
            self._disk.close(descriptor)
            self._disk.unlink(path)
            return None
        segment = Segment(path, first, first + len(found.starts) - 1, found.length,
                          found.last.header.timestamp_ms, found.starts, descriptor)
        segment.allocated = found.length
        self._unsynced.append(segment)
        return segment

    # -- appending -------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """Counted bytes of the newest segment."""
        return self._segments[-1].length if self._segments else 0

    def append(self, record: bytes, txid: int, timestamp_ms: int) -> None:
        """Add one whole record (the hot path). On OSError nothing is added."""
        segment = self._room()
        length = segment.length
        try:
            if length + len(record) > segment.allocated:
                self._extend(segment, length + len(record))
            self._disk.pwrite(segment.descriptor, record, length)
        except OSError:
            self._cut(segment)
            raise
        assert segment.starts is not None
        segment.starts.append(length)
        segment.length = length + len(record)
        segment.last_txid = self.last_txid = txid
        segment.newest_timestamp_ms = timestamp_ms
        self.size_bytes += len(record)
        self.received_bytes += len(record)
        self.version += 1

    def append_uncounted(self, data: bytes | memoryview) -> None:
        """Write bytes at the tail that are not yet part of the log. On OSError all uncounted bytes are cut off."""
        segment = self._room() if not self.uncounted else self._segments[-1]
        try:
            self._disk.pwrite(segment.descriptor, data, segment.length + self.uncounted)
        except OSError:
            self.cut_uncounted()
            raise
        self.uncounted += len(data)
        segment.allocated = max(segment.allocated, segment.length + self.uncounted)

    def count(self, txid: int, length: int, timestamp_ms: int) -> None:
        """The next ``length`` uncounted bytes are the record ``txid``."""
        assert txid == self.last_txid + 1
        assert length <= self.uncounted
        segment = self._segments[-1]
        assert segment.starts is not None
        segment.starts.append(segment.length)
        segment.length += length
        segment.last_txid = self.last_txid = txid
        segment.newest_timestamp_ms = timestamp_ms
        self.uncounted -= length
        self.size_bytes += length
        self.received_bytes += length
        self.version += 1

    def cut_uncounted(self) -> None:
        """Forget bytes beyond the counted end."""
        self.uncounted = 0
        if self._segments:
            self._cut(self._segments[-1])

    def cut_last(self) -> None:
        """Take the newest record back: the write that it was logged for did not reach the file."""
        segment = self._segments[-1]
        assert segment.starts
        start = segment.starts.pop()
        self.size_bytes -= segment.length - start
        segment.length = start
        segment.last_txid -= 1
        self.last_txid -= 1
        self.version += 1
        self._cut(segment)

    def _cut(self, segment: Segment) -> None:
        self._disk.truncate(segment.descriptor, segment.length)
        segment.allocated = segment.length
        segment.durable = min(segment.durable, segment.length)

    def _room(self) -> Segment:
        """The segment that the next record goes to."""
        if self._segments:
            segment = self._segments[-1]
            if segment.length < SEGMENT_BYTES:
                return segment
            self._seal(segment)
        return self._begin()

    def _begin(self) -> Segment:
        first = self.last_txid + 1
        path = self.directory / segment_name(first)
        descriptor = self._disk.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        segment = Segment(path, first, first - 1, 0, 0, array("Q"), descriptor, durable=-1)
        self._segments.append(segment)
        self._unsynced.append(segment)
        return segment

    def _seal(self, segment: Segment) -> None:
        if segment.allocated > segment.length:
            self._cut(segment)
        index = segment.path.with_suffix(INDEX_SUFFIX)
        descriptor = self._disk.open(index, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self._disk.pwrite(descriptor, index_bytes(segment), 0)
        finally:
            self._disk.close(descriptor)
        segment.starts = None
        if segment not in self._unsynced:
            segment.close(self._disk)

    def _extend(self, segment: Segment, needed: int) -> None:
        if not self._wants_durable:
            segment.allocated = needed
            return
        try:
            self._disk.pwrite(segment.descriptor, _ZEROES, needed)
        except OSError:
            # No room to write ahead is no reason to refuse a record that may still fit.
            self._cut(segment)
            segment.allocated = needed
        else:
            segment.allocated = needed + WRITE_AHEAD_BYTES

    # -- durability ------------------------------------------------------------------------------------------------

    @property
    def durable(self) -> bool:
        """All counted records are on the disk."""
        for segment in self._unsynced:
            if segment.durable < segment.length:
                return False
        return True

    async def sync(self) -> None:
        """Return when every record counted before the call is durable. Several callers share one fdatasync.

        OSError: the outcome is unknown; the caller must not go on as if nothing had happened.
        """
        self._wants_durable = True
        target = self.last_txid
        while not self.durable and self._oldest_unsynced() <= target:
            if self._syncing:
                await self._sync_waiters.park()
                continue
            self._syncing = True
            try:
                await self._calls.run(self._sync_now)
            finally:
                self._syncing = False
                self._sync_waiters.unpark_all()
            self._close_synced()

    def _oldest_unsynced(self) -> int:
        """First TXID that may not be durable."""
        for segment in self._unsynced:
            if segment.durable < segment.length:
                return segment.first_txid
        return self.last_txid + 1

    def _sync_now(self) -> None:
        """Make all that is counted now durable. Runs on the loop or in a thread; only one at a time."""
        for segment in list(self._unsynced):
            length = segment.length
            if segment.durable < length:
                self._disk.fdatasync(segment.descriptor)
                if segment.durable < 0:
                    self._disk.fsync_directory(self.directory)
                # A cut in the meantime leaves less than was synced.
                segment.durable = min(length, segment.length)

    def _close_synced(self) -> None:
        """Sealed segments that are durable need no descriptor for writing any more."""
        newest = self._segments[-1] if self._segments else None
        for segment in [each for each in self._unsynced if each is not newest and each.durable >= each.length]:
            self._unsynced.remove(segment)
            segment.close(self._disk)

    def sync_blocking(self) -> None:
        """The same, for start and stop, where nothing else runs."""
        self._sync_now()
        self._close_synced()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _segment_of(self, txid: int) -> Segment:
        if txid < self.first_txid:
            message = f"the log of {self.directory.name} begins at {self.first_txid:016x}, record {txid:016x} is no longer kept"
            raise Trimmed(message)
        segments = self._segments
        if segments[-1].first_txid <= txid:
            return segments[-1]
        low, high = 0, len(segments) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if segments[middle].first_txid <= txid:
                low = middle
            else:
                high = middle - 1
        return segments[low]

    def spans(self, after_txid: int, max_bytes: int, max_records: int) -> Span | None:
        """The next whole records in one segment: at least one, at most the limits. None at the end."""
        if after_txid >= self.last_txid:
            return None
        first = after_txid + 1
        segment = self._segment_of(first)
        start, end = segment.bounds(self._disk, first)
        last = first
        limit = min(segment.last_txid, first + max_records - 1)
        while last < limit:
            following = segment.bounds(self._disk, last + 1)[1]
            if following - start > max_bytes:
                break
            last += 1
            end = following
        return Span(segment.path, start, end - start, first, last)

    def read(self, segment: Segment, offset: int, size: int) -> bytes:
        return self._disk.pread(segment.open(self._disk), size, offset)

    def cursor(self, after_txid: int) -> "LogCursor":
        return LogCursor(self, after_txid)

    def checksum_at(self, txid: int) -> int | None:
        """Post-apply checksum of record ``txid``, when the log can tell."""
        if self.first_txid <= txid <= self.last_txid:
            summary = self.summary(txid)
            return summary.trailer.post_checksum
        if txid == self.first_txid - 1 and self.first_txid <= self.last_txid:
            return self.summary(self.first_txid).header.pre_checksum
        return None

    def summary(self, txid: int) -> RecordSummary:
        """Header and trailer of one record; Trimmed when it is no longer kept."""
        segment = self._segment_of(txid)
        start, _ = segment.bounds(self._disk, txid)
        return scan_record(Window(self._disk, segment.open(self._disk)), start)

    def segments(self) -> Iterator[Segment]:
        yield from self._segments

    # -- retention -------------------------------------------------------------------------------------------------

    def pin(self, key: str, after_txid: int) -> None:
        """Keep the records after ``after_txid`` for ``key`` (up to the hard cap)."""
        self._pins[key] = after_txid

    def unpin(self, key: str) -> None:
        self._pins.pop(key, None)

    def trim(self, base_txid: int, age_s: float, size_bytes: int) -> int:
        """Delete old segments; returns how many bytes went.

        Never a record after ``base_txid`` (redo needs it). Older than ``age_s``: only when no pin needs it. Beyond
        ``size_bytes`` in all: whoever needs it; that replica then takes a snapshot.
        """
        removed = 0
        oldest_ms = int((time.time() - age_s) * 1000)
        kept_for = min(self._pins.values(), default=self.last_txid)
        while len(self._segments) > 1:
            segment = self._segments[0]
            if segment.last_txid > base_txid:
                break
            over = self.size_bytes > size_bytes
            old = segment.newest_timestamp_ms < oldest_ms and segment.last_txid <= kept_for
            if not (over or old) or segment in self._unsynced:
                break
            self._drop(segment)
            removed += segment.length
        return removed

    def _drop(self, segment: Segment) -> None:
        segment.close(self._disk)
        index = segment.path.with_suffix(INDEX_SUFFIX)
        if index.exists():
            self._disk.unlink(index)
        self._disk.unlink(segment.path)
        self._segments.remove(segment)
        self.size_bytes -= segment.length
        self.first_txid = self._segments[0].first_txid

    def restart(self, next_txid: int) -> None:
        """Forget all segments (their files were moved elsewhere); the next record is ``next_txid``."""
        self.close()
        self._segments.clear()
        self._unsynced.clear()
        self._pins.clear()
        self.uncounted = self.size_bytes = 0
        self.first_txid, self.last_txid = next_txid, next_txid - 1
        self.version += 1

    def close(self) -> None:
        for segment in self._segments:
            segment.close(self._disk)


class LogCursor:
    """Reads a log's bytes in order, across records and segments."""

    __slots__ = ("_log", "_offset", "_segment", "txid")

    def __init__(self, log: Log, after_txid: int) -> None:
        self._log = log
        self._segment: Segment | None = None
        self._offset = 0
        self.txid = after_txid

    def read(self, max_bytes: int) -> bytes:
        """The next bytes, at most ``max_bytes``; b"" at the end.

        ``txid`` becomes the last record that has been returned as a whole. Raises Trimmed when retention (the hard
        cap) has removed what comes next.
        """
        log = self._log
        segment = self._segment
        if segment is None or self._offset >= segment.length:
            if self.txid >= log.last_txid:
                return b""
            segment = self._segment = log._segment_of(self.txid + 1)  # noqa: SLF001  one module, one log
            self._offset, _ = segment.bounds(log._disk, self.txid + 1)  # noqa: SLF001
        elif segment.path and self.txid + 1 < log.first_txid:
            log._segment_of(self.txid + 1)  # noqa: SLF001  raises Trimmed
        size = min(max_bytes, segment.length - self._offset)
        data = log.read(segment, self._offset, size)
        self._offset += len(data)
        self._advance(segment)
        return data

    def _advance(self, segment: Segment) -> None:
        if self._offset == segment.length:
            self.txid = segment.last_txid
            return
        disk = self._log._disk  # noqa: SLF001
        while self.txid < segment.last_txid and segment.bounds(disk, self.txid + 1)[1] <= self._offset:
            self.txid += 1
