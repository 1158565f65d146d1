"""How a log is found again at start: which segments, up to which record, and what a crash has left behind it.

Knows the rule that tells a torn tail from damage: what is known to be durable must be there; behind that, a power loss
may have kept any part of what was written, a killed process all of it. Everything is looked at before anything is
changed. Does not know the database file.
"""

import contextlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import structlog

from litereplica.errors import Corrupt
from litereplica.ltx.position import Position
from litereplica.store.disk import Disk
from litereplica.store.log import Log
from litereplica.store.scan import Scan, record_after, scan
from litereplica.store.segment import INDEX_SUFFIX, Segment, first_txid_of, read_index

log = structlog.get_logger()

_COPY_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Known:
    """What is certain before the log is read.

    ``base``: durable, and in the database file. ``durable_txid``: as far as the log is known to be durable (the mark in
    the checksums file). ``same_boot``: the machine has not been restarted since, so nothing that was written is lost.
    """

    database: str
    base: Position
    durable_txid: int
    same_boot: bool


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """(first TXID, path) of each segment in a database's folder, in order."""
    found = [(first_txid_of(entry.name), entry) for entry in directory.iterdir()]
    return sorted((first, path) for first, path in found if first is not None)


def reopen_clean(records: Log, base: Position) -> bool:
    """Find the segments as a clean stop at ``base`` left them, reading one sidecar; False when they are not so."""
    files = segment_files(records.directory)
    if not files:
        return True
    segments = []
    for (first, path), (following, _) in pairwise(files):
        status = path.stat()
        segments.append(Segment(path, first, following - 1, status.st_size, status.st_mtime_ns // 1_000_000, None))
    first, path = files[-1]
    status = path.stat()
    index = read_index(path)
    if index is None or index[1] != status.st_size or first + len(index[0]) - 1 != base.txid:
        return False
    starts, length = index
    newest = Segment(path, first, base.txid, length, status.st_mtime_ns // 1_000_000, starts, allocated=length)
    records.take([*segments, newest], base.txid, [])
    return True


def reopen(disk: Disk, records: Log, known: Known) -> None:
    """Find the segments after a crash; drop a torn tail.

    Raises Corrupt, naming the record, when durable bytes are damaged or missing; nothing is changed then.
    """
    found = _Reopening(disk, records.directory, known)
    try:
        found.look()
    except BaseException:
        for segment in found.segments:
            segment.close(disk)
        raise
    found.drop()
    durable = max(known.base.txid, known.durable_txid)
    unsynced = [segment for segment in found.segments if segment.last_txid > durable]
    for segment in found.segments:
        if segment not in unsynced:
            segment.close(disk)
    for segment in unsynced:
        segment.named = False
        _write_again(disk, segment, durable)
    records.take(found.segments, min(durable, found.last_txid), unsynced)


class _Reopening:
    """The segments as they are found, and what has to go."""

    def __init__(self, disk: Disk, directory: Path, known: Known) -> None:
        self.disk = disk
        self.directory = directory
        self.known = known
        self.files = segment_files(directory)
        self.segments: list[Segment] = []
        self.last_txid = known.base.txid
        self.surplus: list[Path] = []

    def look(self) -> None:
        known = self.known
        checksum: int | None = None
        for number, (first, path) in enumerate(self.files):
            if self.segments and first != self.last_txid + 1:
                gap = f"records {self.last_txid + 1:016x} to {first - 1:016x} are missing before {path.name}"
                self._judge(gap, number, None)
                break
            following = self.files[number + 1][0] if number + 1 < len(self.files) else None
            if following is not None and following - 1 <= known.base.txid and following > first:
                self._take_sealed(path, first, following - 1)
                continue
            if first == known.base.txid + 1:
                checksum = known.base.checksum
            found, segment = self._take_scanned(path, first, checksum)
            if found.damage is not None:
                self._judge(f"segment {path.name}: {found.damage}", number + 1, segment)
                break
            if found.last is not None:
                checksum = found.last.trailer.post_checksum
        self._check_ends()

    def _take_sealed(self, path: Path, first: int, last: int) -> None:
        """A segment that redo does not need: its sidecar says how long it is."""
        status = path.stat()
        index = read_index(path)
        timestamp_ms = status.st_mtime_ns // 1_000_000
        if index is not None and len(index[0]) == last - first + 1 and index[1] <= status.st_size:
            self.segments.append(Segment(path, first, last, index[1], timestamp_ms, None))
        else:
            found, _ = self._take_scanned(path, first, None)
            if self.segments[-1].last_txid != last:
                raise self._corrupt(f"segment {path.name}: {found.damage or 'records are missing at its end'}")
        self.last_txid = last

    def _take_scanned(self, path: Path, first: int, checksum: int | None) -> tuple[Scan, Segment]:
        descriptor = self.disk.open(path)
        segment = Segment(path, first, first - 1, 0, path.stat().st_mtime_ns // 1_000_000, None, descriptor)
        self.segments.append(segment)
        found = scan(self.disk, descriptor, first, checksum)
        segment.starts, segment.length = found.starts, found.length
        segment.last_txid = self.last_txid = first + len(found.starts) - 1
        if found.last is not None:
            segment.newest_timestamp_ms = found.last.header.timestamp_ms
        segment.allocated = segment.length
        return found, segment

    def _judge(self, problem: str, number: int, segment: Segment | None) -> None:
        """Record last_txid + 1 is not there as it should be: a torn tail, or damage (then this raises Corrupt).

        ``files[number:]`` come after it, and the bytes of ``segment`` behind its whole records.
        """
        known = self.known
        missing = self.last_txid + 1
        if missing <= max(known.base.txid, known.durable_txid):
            raise self._corrupt(f"{problem}; it was durable")
        later = None
        if segment is not None:
            later = record_after(self.disk, segment.descriptor, segment.length, missing, known.database)
        rest = self.files[number:]
        for first, path in rest:
            if later is None:
                descriptor = self.disk.open(path)
                try:
                    later = first if scan(self.disk, descriptor, first, None).last is not None else None
                finally:
                    self.disk.close(descriptor)
        if later is not None and known.same_boot:
            raise self._corrupt(f"{problem}, and record {later:016x} after it is whole")
        self.surplus = [path for _, path in rest]
        log.warning("torn_tail_dropped", database=known.database, last_txid=f"{self.last_txid:016x}", reason=problem)

    def _check_ends(self) -> None:
        known = self.known
        if self.segments and self.segments[0].first_txid > known.base.txid + 1:
            first = self.segments[0].first_txid
            raise self._corrupt(
                f"it begins at {first:016x}, after {known.base.txid:016x} up to which the file is known to be complete"
            )
        durable = max(known.base.txid if self.segments else 0, known.durable_txid)
        if self.last_txid < durable:
            raise self._corrupt(f"it ends at {self.last_txid:016x}, but {durable:016x} was durable")

    def _corrupt(self, problem: str) -> Corrupt:
        return Corrupt(
            f"the log of {self.known.database} is damaged: {problem}; restore the files in {self.directory}, or move "
            f"that folder aside and let this node take a snapshot"
        )

    def drop(self) -> None:
        """Remove what is behind the last whole record, newest first, so that a crash in between leaves a torn tail."""
        for path in reversed(self.surplus):
            self._unlink(path)
        while self.segments and not self.segments[-1].length:
            # Begun, and no record of it became whole; appending begins it again under the same name.
            segment = self.segments.pop()
            segment.close(self.disk)
            self._unlink(segment.path)
        for segment in self.segments:
            if segment.path.stat().st_size != segment.length:
                self.disk.truncate(segment.open(self.disk), segment.length)

    def _unlink(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.disk.unlink(path.with_suffix(INDEX_SUFFIX))
        self.disk.unlink(path)


def _write_again(disk: Disk, segment: Segment, durable_txid: int) -> None:
    """Make the kernel write what may not be on the disk.

    After a failed fdatasync it holds such bytes for written (fsync(2)), and the next one would report success.
    """
    descriptor = segment.open(disk)
    offset = segment.bounds(disk, max(durable_txid + 1, segment.first_txid))[0]
    while offset < segment.length:
        data = disk.pread(descriptor, min(_COPY_BYTES, segment.length - offset), offset)
        disk.pwrite(descriptor, data, offset)
        offset += len(data)
