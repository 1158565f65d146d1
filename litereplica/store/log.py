"""The LTX log of one database: an append-only sequence of records in segment files.

Knows how records get in and out again, and what is durable. Does not know pages or SQLite, does not decide whether a
record may be appended (store.database), nor how a log is found again (store.reopen).

Only the counted end is the log: bytes of a record that is still being received lie beyond it and are cut off when the
rest does not come. All state belongs to the loop's thread; a worker thread only ever gets descriptors to sync.

The kernel reports a lost write to one fdatasync of a descriptor and to none after it (fsync(2)). So two of them never
run at once, wherever they are called, and after one that has failed none is believed.
"""

import contextlib
import errno
import os
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from litereplica.ltx.position import Position
from litereplica.store.cursor import LogCursor, Span, Trimmed
from litereplica.store.disk import Disk
from litereplica.store.reading import LogSegments
from litereplica.store.segment import Segment, save_index, segment_name
from litereplica.store.sync import BlockingCalls

__all__ = ["Log", "LogCursor", "Span", "Trimmed"]

# A new segment is begun once one is longer: small enough that retention is not coarse, few enough files.
SEGMENT_BYTES: Final = 16 * 1024 * 1024
# While an application asks for durable commits, zeroes are written ahead in steps of this, so that most fdatasync
# calls have no new file length to write (measured: 114 us growing, 74 us not, ext4).
WRITE_AHEAD_BYTES: Final = 512 * 1024
_ZEROES: Final = bytes(WRITE_AHEAD_BYTES)
# Uncounted bytes that are copied when a segment ends under them; a stream of received bytes never pauses at a record's
# end, and without this it would make one endless segment. Longer ones wait for the next record's end.
MOVE_LIMIT_BYTES: Final = 1024 * 1024


class Log(LogSegments):
    """Records first_txid..last_txid that can be added to.

    ``durable_txid``: all records up to it are on the disk. ``failure``: a call failed whose outcome is unknown;
    nothing is appended any more and nothing is reported durable until the next start has looked.
    """

    __slots__ = (
        "_calls", "_covering", "_limit", "_lost", "_mark", "_segment_bytes", "_syncing", "_waiters", "_wants_durable",
        "durable_txid", "failure", "uncounted",
    )  # fmt: skip

    def __init__(
        self,
        disk: Disk,
        calls: BlockingCalls,
        directory: Path,
        start: Position,
        mark: Callable[[int], None],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Begin an empty log after ``start``. ``mark`` is told each new durable TXID."""
        self._segment_bytes = segment_bytes
        self._calls = calls
        self._mark = mark
        self.failure: OSError | None = None
        self._syncing = threading.Lock()
        self._waiters = trio.lowlevel.ParkingLot()
        self._wants_durable = False
        super().__init__(disk, directory, start)

    def _begin_empty(self, start: Position) -> None:
        super()._begin_empty(start)
        self.durable_txid = self._covering = start.txid
        self.uncounted = 0
        # The first error of an fdatasync of these segments, from whichever thread: the others would be told success.
        self._lost: list[OSError] = []
        # A record that ends beyond this byte of the newest segment takes the slow path.
        self._limit = -1

    def take(self, segments: list[Segment], durable_txid: int, unsynced: list[Segment]) -> None:
        """Go on with segments that were found; all up to ``durable_txid`` is durable, ``unsynced`` may not be."""
        assert not self._segments
        if not segments:
            return
        self._segments = segments
        self._newest = segments[-1]
        self._unsynced = unsynced
        self.first_txid = segments[0].first_txid
        self.last_txid = self._newest.last_txid
        self.durable_txid = durable_txid
        self.size_bytes = sum(segment.length for segment in segments)

    # -- appending -------------------------------------------------------------------------------------------------

    def append(self, record: bytes, txid: int, timestamp_ms: int) -> None:
        """Add one whole record (the hot path). On OSError nothing is added."""
        size = len(record)
        segment = self._newest
        if segment is None or segment.length + size > self._limit:
            if self.uncounted:
                raise OSError(errno.EBUSY, "another transaction of this database is being logged")
            segment = self._room(size)
        start = segment.length
        try:
            self._disk.pwrite(segment.descriptor, record, start)
        except OSError:
            self._cut(segment)
            raise
        starts = segment.starts
        assert starts is not None
        starts.append(start)
        segment.length = start + size
        segment.last_txid = self.last_txid = txid
        segment.newest_timestamp_ms = timestamp_ms
        self.size_bytes += size

    def append_uncounted(self, data: bytes | memoryview) -> None:
        """Write bytes at the tail that are not yet part of the log. On OSError all uncounted bytes are cut off.

        What was uncounted before is less than a record: a start must never find a whole one in two segments.
        """
        segment = self._newest
        if segment is None or not self.uncounted:
            segment = self._room(len(data))
        try:
            self.check()
            if segment.length >= self._segment_bytes and 0 < self.uncounted <= MOVE_LIMIT_BYTES:
                segment = self._move_uncounted(segment)
            end = segment.length + self.uncounted
            self._disk.pwrite(segment.descriptor, data, end)
        except OSError:
            self.cut_uncounted()
            raise
        self.uncounted += len(data)
        segment.allocated = max(segment.allocated, end + len(data))
        self._limit = -1

    def count(self, txid: int, length: int, timestamp_ms: int) -> None:
        """Make the next ``length`` uncounted bytes the record ``txid``."""
        segment = self._newest
        assert segment is not None
        assert segment.starts is not None
        assert txid == self.last_txid + 1, (txid, self.last_txid)
        assert 0 < length <= self.uncounted, (length, self.uncounted)
        segment.starts.append(segment.length)
        segment.length += length
        segment.last_txid = self.last_txid = txid
        segment.newest_timestamp_ms = timestamp_ms
        self.uncounted -= length
        self.size_bytes += length

    def cut_uncounted(self) -> None:
        """Forget bytes beyond the counted end."""
        self.uncounted = 0
        segment = self._newest
        if segment is not None and segment.descriptor >= 0:
            self._cut(segment)

    def make_cut_durable(self) -> None:
        """What was cut off must not come back with a loss of power: its transaction was refused. Blocking; OSError."""
        segment = self._newest
        if segment is None or segment.descriptor < 0:
            return
        self._sync_here(self._sync_call([segment]))

    def cut_last(self) -> None:
        """Take the newest record back: the write that it was logged for did not reach the file."""
        segment = self._newest
        assert segment is not None
        assert segment.starts
        start = segment.starts.pop()
        self.size_bytes -= segment.length - start
        segment.length = start
        segment.last_txid -= 1
        self.last_txid -= 1
        # An fdatasync that is under way does not cover what comes to lie here instead.
        self.durable_txid = min(self.durable_txid, self.last_txid)
        self._covering = min(self._covering, self.last_txid)
        self._cut(segment)

    def cut_from(self, txid: int) -> None:
        """At start: take back the records from ``txid`` on."""
        while self.last_txid >= txid and (segment := self._newest) is not None:
            self._open(segment)
            if segment.starts is None:
                segment.bounds(self._disk, segment.first_txid)
            if segment.starts:
                self.cut_last()
            self.make_cut_durable()
            if not segment.length:
                self._segments.remove(segment)
                self._remove(segment)
                self._disk.unlink(segment.path)
                self._disk.fsync_directory(self.directory)
                self._newest = self._segments[-1] if self._segments else None

    def _cut(self, segment: Segment) -> None:
        segment.allocated = segment.length
        self._limit = -1
        try:
            self._disk.truncate(segment.descriptor, segment.length)
        except OSError as error:
            # Bytes that are not ours to keep lie behind the end: what a restart would make of them is unknown.
            self.fail(error)
            raise

    def fail(self, error: OSError) -> None:
        """Accept nothing any more: what a restart would find is unknown."""
        self.failure = error
        self._limit = -1

    def mended(self, error: OSError) -> None:
        """Go on, if ``error`` was the failure; what another one has left is as unknown as before."""
        if self.failure is error:
            self.failure = None

    @property
    def lost(self) -> OSError | None:
        """The error of an fdatasync, if one has failed: bytes that were written may be gone."""
        return self._lost[0] if self._lost else None

    def check(self) -> None:
        """Raise the failure, if there was one."""
        if self.failure is not None:
            raise OSError(self.failure.errno, f"{self.failure.strerror} (earlier: restart this node)")

    def _room(self, size: int) -> Segment:
        """Make ready the segment that the next record of ``size`` bytes goes to. On OSError nothing has changed."""
        self.check()
        segment = self._newest
        if segment is not None and segment.length >= self._segment_bytes:
            self._seal(segment)
            segment = None
        if segment is None:
            segment = self._begin()
        else:
            self._open(segment)
            if segment.starts is None:
                segment.bounds(self._disk, segment.first_txid)
        self._limit = self._segment_bytes
        if self._wants_durable:
            if segment.length + size > segment.allocated:
                self._write_ahead(segment, segment.length + size)
            self._limit = min(segment.allocated, self._segment_bytes)
        return segment

    def _begin(self) -> Segment:
        first = self.last_txid + 1
        path = self.directory / segment_name(first)
        descriptor = self._disk.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        segment = Segment(path, first, first - 1, 0, 0, array("Q"), descriptor, named=False)
        self._segments.append(segment)
        self._unsynced.append(segment)
        self._newest = segment
        return segment

    def _seal(self, segment: Segment) -> None:
        if segment.starts is None:
            return
        if segment.allocated > segment.length:
            self._disk.truncate(segment.descriptor, segment.length)
            segment.allocated = segment.length
        save_index(self._disk, segment)
        segment.starts = None
        if segment not in self._unsynced:
            self._close(segment)

    def _write_ahead(self, segment: Segment, needed: int) -> None:
        try:
            self._disk.pwrite(segment.descriptor, _ZEROES, needed)
        except OSError:
            # No room to write ahead is no reason to refuse a record that may still fit.
            self._cut(segment)
            segment.allocated = needed
        else:
            segment.allocated = needed + WRITE_AHEAD_BYTES

    def _move_uncounted(self, segment: Segment) -> Segment:
        """Begin the next segment with the uncounted bytes. On OSError they are where they were."""
        data = self._disk.pread(segment.descriptor, self.uncounted, segment.length)
        if len(data) != self.uncounted:
            raise OSError(errno.EIO, f"{segment.path} is shorter than it was")
        fresh = self._begin()
        try:
            self._disk.pwrite(fresh.descriptor, data, 0)
            self._disk.truncate(segment.descriptor, segment.length)
        except OSError:
            self._remove(fresh)
            self._newest = segment
            with contextlib.suppress(OSError):
                self._disk.unlink(fresh.path)
            raise
        fresh.allocated = len(data)
        segment.allocated = segment.length
        self._seal(segment)
        return fresh

    # -- durability ------------------------------------------------------------------------------------------------

    @property
    def durable(self) -> bool:
        """All counted records are on the disk."""
        return self.durable_txid >= self.last_txid

    async def sync(self) -> None:
        """Return when every record counted before the call is durable. Several callers share one fdatasync.

        OSError: the outcome is unknown, for every caller whose records that fdatasync was to cover, and for each one
        after it: the kernel reports a lost write only once (fsync(2)). Callers must not go on as if nothing had
        happened.
        """
        if not self._wants_durable:
            self._wants_durable = True
            self._limit = -1
        target, generation = self.last_txid, self.generation
        while self.durable_txid < min(target, self.last_txid) and generation == self.generation:
            self.check()
            if self._in_use:
                await self._waiters.park()
            else:
                await self._sync_round(generation)

    async def sync_uncounted(self) -> None:
        """Return when the uncounted bytes, and all before them, are durable. OSError as for ``sync``."""
        self._wants_durable = True
        while self._in_use:
            await self._waiters.park()
        self.check()
        await self._sync_round(self.generation)

    def known_durable(self, txid: int) -> None:
        """The record ``txid`` was durable before it was counted."""
        if self.durable_txid == txid - 1:
            self.durable_txid = txid
            self._mark(txid)

    async def _sync_round(self, generation: int) -> None:
        self._covering = self.last_txid
        segments = list(self._unsynced)
        self._in_use = True
        try:
            await self._calls.run(self._sync_call(segments))
        except OSError as error:
            if generation == self.generation:
                self.fail(error)
                raise
        else:
            if generation == self.generation:
                self.check()
                self._covered(segments, self._covering)
        finally:
            self._in_use = False
            for descriptor in self._doomed:
                self._disk.close(descriptor)
            self._doomed.clear()
            self._waiters.unpark_all()

    def sync_blocking(self, allow: Callable[[], object] = lambda: None) -> None:
        """Make all durable, for start and stop, where nothing else runs. OSError as for ``sync``.

        ``allow`` is called when it is, and before that is marked: what it raises may have the newest record cut again,
        and a start takes a log that ends before its mark for a damaged one.
        """
        self.check()
        if self.durable:
            return
        segments = list(self._unsynced)
        self._sync_here(self._sync_call(segments))
        allow()
        self._covered(segments, self.last_txid)

    def _sync_here(self, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            self.fail(error)
            raise

    def _sync_call(self, segments: list[Segment]) -> Callable[[], None]:
        """What has to be called, in any thread; its descriptors stay open until it is done."""
        disk, directory, syncing, lost = self._disk, self.directory, self._syncing, self._lost
        descriptors = [segment.descriptor for segment in segments]
        named = all(segment.named for segment in segments)

        def call() -> None:
            with syncing:
                if lost:
                    raise lost[0]
                try:
                    for descriptor in descriptors:
                        disk.fdatasync(descriptor)
                    if not named:
                        disk.fsync_directory(directory)
                except OSError as error:
                    lost.append(error)
                    raise

        return call

    def _covered(self, segments: list[Segment], txid: int) -> None:
        """All up to ``txid``, and the segments' names, are durable."""
        for segment in segments:
            segment.named = True
        self.durable_txid = max(self.durable_txid, txid)
        self._mark(self.durable_txid)
        # Sealed segments that are durable need no descriptor for writing any more.
        for segment in segments:
            if segment is not self._newest and segment.last_txid <= self.durable_txid and segment in self._unsynced:
                self._unsynced.remove(segment)
                self._close(segment)

    # -- the end ---------------------------------------------------------------------------------------------------

    def save_end(self) -> None:
        """At a clean stop: drop the zeroes written ahead, and spare the next start the scan."""
        segment = self._newest
        if segment is not None and segment.length and segment.starts is not None:
            if segment.descriptor >= 0:
                self._cut(segment)
            save_index(self._disk, segment)

    def restart(self, start: Position) -> None:
        """Forget all segments (their files were moved elsewhere); the log is empty after ``start``."""
        self.close()
        self.generation += 1
        self._pins.clear()
        self._begin_empty(start)
        self._mark(start.txid)
        self._waiters.unpark_all()
