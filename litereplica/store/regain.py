"""The log up to a position comes back after an install has set all of it aside.

Knows that segments return newest first, so that after a crash the log is a shorter one without gaps. Does not know why
the database went back to the position.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from litereplica.errors import Corrupt
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.held import in_steps
from litereplica.store.segment import INDEX_SUFFIX, Segment
from litereplica.store.store import folder_name

log = structlog.get_logger()

COPY_BYTES: Final = 4 * 1024 * 1024
"""One step: the segment that the position lies in is cut by a copy, others may have to be written again."""


class OldLog:
    """The segments with records up to a position, taken down before the install."""

    __slots__ = ("_database", "_durable_txid", "_segments", "_starts", "_txid")

    def __init__(self, database: Database, txid: int) -> None:
        """``txid``: the position's. Raises Corrupt when a segment has no index and is damaged, OSError."""
        self._database = database
        self._txid = txid
        records = database.log
        self._durable_txid = records.durable_txid
        self._segments = [each for each in records.segments() if each.length and each.first_txid <= txid]
        self._starts = array("Q")
        if self._segments:
            newest = self._segments[-1]
            last = min(newest.last_txid, txid)
            # Where each of its records starts that stays, and where the last of them ends.
            end = records.bounds(newest, last)[1]
            assert newest.starts is not None
            self._starts = newest.starts[: last - newest.first_txid + 1]
            self._starts.append(end)

    async def take_back(self, folder: Path) -> None:
        """From ``folder``, where the install has put them, into the log, which is empty. Raises OSError.

        What was trimmed between the two, from the oldest on, stays away.
        """
        segments = self._segments
        while segments and not (folder / segments[0].path.name).exists():
            segments = segments[1:]
        if not segments:
            return
        database, disk = self._database, self._database.store.disk
        *older, newest = segments
        length = self._starts[-1]
        copy = database.store.incoming / folder_name(database.name) / "pages"
        disk.make_directories(copy.parent)
        await in_steps(_cut(disk, folder / newest.path.name, copy, length))
        # From now on they count as durable, and the log that knew which of them are not has let go of them.
        not_durable = [each for each in older if each.last_txid > self._durable_txid]
        await in_steps(_write_again(disk, [(folder / each.path.name, each.length) for each in not_durable]))
        # From here on in one stretch.
        assert database.log.last_txid == self._txid == database.log.first_txid - 1
        directory = database.directory
        disk.rename(copy, directory / newest.path.name)
        disk.fsync_directory(directory)
        for segment in reversed(older):
            index = (folder / segment.path.name).with_suffix(INDEX_SUFFIX)
            if index.exists():
                disk.rename(index, directory / index.name)
            disk.rename(folder / segment.path.name, directory / segment.path.name)
        disk.fsync_directory(directory)
        disk.fsync_directory(folder)
        disk.rmdir(copy.parent)
        database.log.take(
            [
                *(_again(each, each.last_txid, each.length, None) for each in older),
                _again(newest, self._txid, length, self._starts[:-1]),
            ],
            self._txid,
            [],
        )
        log.info("log_taken_back", database=database.name, first_txid=f"{database.log.first_txid:016x}")


def _again(segment: Segment, last_txid: int, length: int, starts: "array[int] | None") -> Segment:
    return Segment(
        segment.path, segment.first_txid, last_txid, length, segment.newest_timestamp_ms, starts, allocated=length
    )


def _write_again(disk: Disk, segments: list[tuple[Path, int]]) -> Iterator[None]:
    """Make segments durable, of (path, length), of which an fdatasync may have failed, or fail, where nobody hears it.

    The kernel holds their bytes for written then (fsync(2)), and the next one alone would report success.
    """
    for path, length in segments:
        descriptor = disk.open(path)
        try:
            yield from _copy(disk, descriptor, descriptor, length, path)
        finally:
            disk.close(descriptor)


def _cut(disk: Disk, source: Path, target: Path, length: int) -> Iterator[None]:
    """The first ``length`` bytes of a segment, durable."""
    reading = disk.open(source, os.O_RDONLY)
    try:
        writing = disk.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            yield from _copy(disk, reading, writing, length, source)
        finally:
            disk.close(writing)
    finally:
        disk.close(reading)


def _copy(disk: Disk, reading: int, writing: int, length: int, source: Path) -> Iterator[None]:
    for offset in range(0, length, COPY_BYTES):
        data = disk.pread(reading, min(COPY_BYTES, length - offset), offset)
        if len(data) != min(COPY_BYTES, length - offset):
            raise Corrupt(f"{source} is shorter than it was")
        disk.pwrite(writing, data, offset)
        yield
    disk.fdatasync(writing)
