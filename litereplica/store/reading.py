"""The read side of a database's log: its segments, what is in them, and how long they are kept.

Knows TXIDs, byte spans, pins and retention. Does not know how records get in, or when they are durable (store.log).
"""

import contextlib
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from litereplica.ltx.decode import RecordSummary, scan_header, scan_record
from litereplica.ltx.format import RecordHeader
from litereplica.ltx.position import Point, Position
from litereplica.store.cursor import LogCursor, Span, Trimmed
from litereplica.store.disk import Disk
from litereplica.store.scan import FirstBytes
from litereplica.store.segment import INDEX_SUFFIX, Segment

# Sealed segments that are kept open for readers: more than one reader seldom reads the past.
OPEN_SEALED_LIMIT: Final = 2


class LogSegments:
    """Records first_txid..last_txid, without gaps; empty when last_txid == first_txid - 1.

    ``generation`` rises when a snapshot replaces the log.
    """

    __slots__ = (
        "_disk", "_doomed", "_in_use", "_newest", "_pins", "_readers", "_segments", "_start_checksum", "_unsynced",
        "directory", "first_txid", "generation", "last_txid", "size_bytes",
    )  # fmt: skip

    def __init__(self, disk: Disk, directory: Path, start: Position) -> None:
        """Begin an empty log after ``start``."""
        self._disk = disk
        self.directory = directory
        self.generation = 0
        self._pins: dict[str, int] = {}
        # A worker thread may be using descriptors: what is closed meanwhile waits here.
        self._in_use = False
        self._doomed: list[int] = []
        self._begin_empty(start)

    def _begin_empty(self, start: Position) -> None:
        self.first_txid = start.txid + 1
        self.last_txid = start.txid
        self._start_checksum = start.checksum
        self.size_bytes = 0
        self._segments: list[Segment] = []
        self._newest: Segment | None = None
        # Segments with bytes that no fdatasync has covered yet, oldest first; their descriptors are open.
        self._unsynced: list[Segment] = []
        self._readers: list[Segment] = []

    # -- reading ---------------------------------------------------------------------------------------------------

    def segment_of(self, txid: int) -> Segment:
        """Return the segment with record ``txid``, which must not be after the last; Trimmed when it is gone."""
        if txid < self.first_txid:
            where = f"the log of {self.directory.name}"
            raise Trimmed(f"{where} begins at {self.first_txid:016x}, record {txid:016x} is no longer kept")
        return self._segments[bisect_right(self._segments, txid, key=_first_txid) - 1]

    def bounds(self, segment: Segment, txid: int) -> tuple[int, int]:
        """(start, end) offsets of a record in its segment."""
        return segment.bounds(self._disk, txid)

    def last_ending_by(self, segment: Segment, offset: int) -> int:
        """TXID of the segment's last record that ends at or before ``offset``."""
        return segment.last_ending_by(self._disk, offset)

    def spans(self, after_txid: int, max_bytes: int, max_records: int) -> Span | None:
        """Return the next whole records in one segment: at least one, at most the limits; None at the end."""
        if after_txid >= self.last_txid:
            return None
        first = after_txid + 1
        segment = self.segment_of(first)
        start, end = segment.bounds(self._disk, first)
        last = min(segment.last_ending_by(self._disk, start + max_bytes), first + max_records - 1)
        if last > first:
            end = segment.bounds(self._disk, last)[1]
        else:
            last = first
        return Span(segment.path, start, end - start, first, last)

    def read(self, segment: Segment, offset: int, size: int) -> bytes:
        """Return bytes of a segment."""
        return self._disk.pread(self._open(segment), size, offset)

    def _open(self, segment: Segment) -> int:
        if segment.descriptor < 0:
            if segment is self._newest:
                if segment not in self._unsynced:
                    self._unsynced.append(segment)
            else:
                self._readers.append(segment)
                if len(self._readers) > OPEN_SEALED_LIMIT:
                    self._close(self._readers.pop(0))
        return segment.open(self._disk)

    def cursor(self, after_txid: int) -> LogCursor:
        """Return a reader of what follows record ``after_txid``; Trimmed when that is not in the log."""
        return LogCursor(self, after_txid)

    def checksum_at(self, txid: int) -> int | None:
        """Post-apply checksum of record ``txid``, or of the position before the first one; None when it is unknown."""
        if self.first_txid <= txid <= self.last_txid:
            return self.summary(txid).trailer.post_checksum
        if txid != self.first_txid - 1:
            return None
        return self.summary(txid + 1).header.pre_checksum if txid < self.last_txid else self._start_checksum

    def point_at(self, txid: int) -> Point | None:
        """The same as a point of this history; None when it is unknown. Raises Trimmed, Corrupt, OSError."""
        if not self.first_txid <= txid <= self.last_txid:
            checksum = self.checksum_at(txid)
            return None if checksum is None else Point(txid, checksum, 0)
        trailer = self.summary(txid).trailer
        return Point(txid, trailer.post_checksum, trailer.record_checksum)

    def summary(self, txid: int) -> RecordSummary:
        """Header and trailer of one record; Trimmed when it is no longer kept."""
        segment = self.segment_of(txid)
        start = segment.bounds(self._disk, txid)[0]
        return scan_record(FirstBytes(self._disk, self._open(segment)), start)

    def header(self, txid: int) -> RecordHeader:
        """The header of one record, in one read; Trimmed when it is no longer kept."""
        segment = self.segment_of(txid)
        start = segment.bounds(self._disk, txid)[0]
        return scan_header(FirstBytes(self._disk, self._open(segment)), start)

    def segments(self) -> Iterator[Segment]:
        """All segments, oldest first."""
        yield from self._segments

    # -- retention -------------------------------------------------------------------------------------------------

    def pin(self, key: str, after_txid: int) -> None:
        """Keep the records after ``after_txid`` for ``key`` (up to the hard cap); a later call moves it."""
        self._pins[key] = after_txid

    def unpin(self, key: str) -> None:
        """Let go of what was kept for ``key``."""
        self._pins.pop(key, None)

    def trim(self, base_txid: int, age_s: float, size_bytes: int, now_s: float | None = None) -> int:
        """Delete old segments; returns how many bytes went.

        Never a record after ``base_txid`` (redo needs it), never the newest record. Older than ``age_s``: only when no
        pin needs it. Beyond ``size_bytes`` in all: whoever needs it; that replica then takes a snapshot.
        """
        removed = 0
        oldest_ms = int(((time.time() if now_s is None else now_s) - age_s) * 1000)
        kept_for = min(self._pins.values(), default=self.last_txid)
        while len(self._segments) > 1 and self._segments[1].length:
            segment = self._segments[0]
            if segment.last_txid > base_txid or segment in self._unsynced:
                break
            over = self.size_bytes > size_bytes
            if not over and (segment.newest_timestamp_ms >= oldest_ms or segment.last_txid > kept_for):
                break
            # Whatever the disk refuses, the next call goes on from there; a segment without its index can be read.
            for path in (segment.path.with_suffix(INDEX_SUFFIX), segment.path):
                with contextlib.suppress(FileNotFoundError):
                    self._disk.unlink(path)
            self._remove(segment)
            self.size_bytes -= segment.length
            self.first_txid = self._segments[0].first_txid
            removed += segment.length
        return removed

    def _remove(self, segment: Segment) -> None:
        self._close(segment)
        for each in (self._segments, self._unsynced, self._readers):
            if segment in each:
                each.remove(segment)

    def close(self) -> None:
        """Give all descriptors back."""
        for segment in self._segments:
            self._close(segment)

    def _close(self, segment: Segment) -> None:
        """Close a segment's descriptor, later if a worker thread may be using it."""
        if self._in_use and segment.descriptor >= 0:
            self._doomed.append(segment.descriptor)
            segment.descriptor = -1
        segment.close(self._disk)


def _first_txid(segment: Segment) -> int:
    return segment.first_txid
