"""Every page of a database from one node to another while writes go on.

Knows both ends of a fuzzy snapshot: pages are read while a checkpoint may change them, and the records after the base
position, which are sent afterwards, make the result exact at the last of them. Does not know messages' order or
sockets (replication/), or how a finished snapshot becomes the database (Store.install).

Layout of ``incoming/<folder>/``: ``pages`` (the database file so far), ``checksums`` (u64 native order, one a page),
``state`` (see ``_encode_state``). Only what ``state`` says survives a restart: it is written after the other two are
durable.
"""

import contextlib
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import xxhash

from litereplica.cluster.messages import Snapshot, SnapshotEnd, SnapshotProgress
from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import Event, PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader, database_name_problem
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import is_page_size, lock_page
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.page_checksums import xor_of
from litereplica.store.store import Store, folder_name

SAVE_BYTES: Final = 64 * 1024 * 1024
"""Pages between two saves: what a restart in mid-snapshot costs again, and the most that is left for the end."""
_STATE_VERSION: Final = 1
_STATE_NAME: Final = "state"
_PAGES_NAME: Final = "pages"
_CHECKSUMS_NAME: Final = "checksums"


# ------------------------------------------------------------------------------------------------------ on the primary
class SnapshotSource:
    """Reads the pages of a database's file; keeps the records after the base from being trimmed until closed.

    Pages under a live rollback journal may be those of a transaction that never happens, and no record repairs them:
    what ``read`` returns counts only as ``wait_certain`` says.
    """

    __slots__ = ("_database", "_descriptor", "_key", "base", "first_pgno", "open_pages", "page_count", "page_size")

    def __init__(self, database: Database, key: str, progress: SnapshotProgress | None = None) -> None:
        """``progress``: what the replica has of an earlier attempt; it is gone on with where the log still allows."""
        self._database = database
        self._key = key
        self.open_pages = database.open_pages
        self.page_size = database.page_size
        resumed = progress is not None and _resumable(database, progress)
        self.base = progress.base if progress is not None and resumed else database.base
        self._descriptor = -1
        self.page_count = 0
        if database.exists:
            # A file that is gone was dropped in this instant: the record that says so is after the base.
            with contextlib.suppress(FileNotFoundError):
                self._descriptor = database.store.disk.open(database.file_path, os.O_RDONLY)
                self.page_count = os.fstat(self._descriptor).st_size // self.page_size
        self.first_pgno = min(progress.next_pgno, self.page_count + 1) if progress is not None and resumed else 1
        database.log.pin(key, self.base.txid)

    def read(self, first_pgno: int, count: int) -> bytes:
        """Up to ``count`` whole pages; fewer, or none, at the end of the file. Blocking: for a worker thread."""
        if self._descriptor < 0:
            return b""
        size = self.page_size
        data = self._database.store.disk.pread(self._descriptor, count * size, (first_pgno - 1) * size)
        return data if len(data) % size == 0 else data[: len(data) - len(data) % size]

    async def wait_certain(self, first_pgno: int, count: int, rollbacks: int) -> bool:
        """Whether what was just read of these pages is of transactions that have happened; if not, when to read again.

        ``rollbacks``: ``open_pages.rollbacks`` before the read. False comes when the journal in the way has ended; it
        may be that of an application that was stopped in the middle.
        """
        pages = self.open_pages
        if pages.rollbacks == rollbacks and not pages.intersects(first_pgno, count):
            return True
        await pages.wait_closed()
        return False

    def close(self) -> None:
        """Let the file and the log go."""
        self._database.log.unpin(self._key)
        if self._descriptor >= 0:
            self._database.store.disk.close(self._descriptor)
            self._descriptor = -1


def _resumable(database: Database, progress: SnapshotProgress) -> bool:
    """The pages that the replica has are a state at or after a base from which our log still leads on."""
    base = progress.base
    if progress.page_size != database.page_size or base.txid > database.base.txid:
        return False
    if base == database.base:
        return True
    # A log that cannot be read leads nowhere.
    with contextlib.suppress(Corrupt, OSError):
        return database.log.checksum_at(base.txid) == base.checksum
    return False


# ------------------------------------------------------------------------------------------------------ on the replica
@dataclass(frozen=True, slots=True)
class FinishedSnapshot:
    """A whole, verified, durable copy of a database at ``position``; ``pages_file`` now belongs to who takes it.

    ``checksums``: unsigned 64-bit, index pgno - 1, 0 for the lock page. ``page_count`` 0: dropped; the file is empty.
    ``apart``: connections to what it replaces must not go on with it: they might not notice that it is another.
    """

    database: str
    pages_file: Path
    page_size: int
    page_count: int
    position: Position
    checksums: "array[int]"
    epoch: int
    timestamp_ms: int
    apart: bool = False


class SnapshotSink:
    """A snapshot that is being received. Not for two threads at once, except for what ``save`` answers."""

    __slots__ = (
        "_base", "_checksums", "_checksums_descriptor", "_commit", "_decoder", "_directory", "_disk", "_entries",
        "_epoch", "_first_page_size", "_header", "_lock_page", "_next_pgno", "_page_size", "_pages_descriptor",
        "_saved_pgno", "_timestamp_ms", "_txid", "database",
    )  # fmt: skip

    def __init__(self, store: Store, database: str, progress: SnapshotProgress, *, resumed: bool = False) -> None:
        """Begin anew, which removes what an earlier attempt left; or, ``resumed``, go on from what was saved.

        Raises OSError; Corrupt when what was saved is not there.
        """
        self.database = database
        self._disk: Disk = store.disk
        self._directory = store.root / "incoming" / folder_name(database)
        self._base = progress.base
        self._first_page_size = progress.page_size
        self._checksums: array[int] = array("Q")
        self._next_pgno = self._saved_pgno = progress.next_pgno if resumed else 1
        self._pages_descriptor = self._checksums_descriptor = -1
        self._begin_records(0, 0)
        if resumed:
            self._open_files(0)
            self._load_checksums()
        else:
            self._remove_files()
            self._disk.make_directories(self._directory)
            self._open_files(os.O_CREAT | os.O_TRUNC)

    def _load_checksums(self) -> None:
        pages = self._next_pgno - 1
        data = self._disk.pread(self._checksums_descriptor, 8 * pages, 0)
        if len(data) != 8 * pages or os.fstat(self._pages_descriptor).st_size < pages * self._first_page_size:
            self._close_files()
            raise Corrupt(f"{self._directory} is shorter than its state says: the snapshot begins anew")
        self._checksums.frombytes(data)

    def _begin_records(self, record_epoch: int, timestamp_ms: int) -> None:
        """The records after the base come (again): the pages so far are those of the base or newer."""
        self._set_page_size(self._first_page_size)
        self._decoder = RecordDecoder()
        self._header: RecordHeader | None = None
        self._entries: list[tuple[int, int]] = []
        self._txid = self._base.txid
        self._commit: int | None = None
        self._epoch, self._timestamp_ms = record_epoch, timestamp_ms

    def _set_page_size(self, page_size: int) -> None:
        self._page_size = page_size
        self._lock_page = lock_page(page_size) if page_size else 0

    def _open_files(self, flags: int) -> None:
        self._pages_descriptor = self._disk.open(self._directory / _PAGES_NAME, os.O_RDWR | flags)
        self._checksums_descriptor = self._disk.open(self._directory / _CHECKSUMS_NAME, os.O_RDWR | flags)

    @property
    def progress(self) -> SnapshotProgress:
        """What to tell the primary so that it goes on from here."""
        return SnapshotProgress(self._base, self._first_page_size, self._next_pgno)

    @property
    def save_due(self) -> bool:
        """So many pages have come since the last save that another is worth its fdatasync."""
        return (self._next_pgno - self._saved_pgno) * self._first_page_size >= SAVE_BYTES

    def begin(self, message: Snapshot) -> bool:
        """Go on with ``message``; False when it is another snapshot than this one, which is then of no use."""
        known = (self._base, self._first_page_size)
        if known != (message.base, message.page_size) or message.first_pgno > self._next_pgno:
            return False
        self._next_pgno = message.first_pgno
        self._saved_pgno = min(self._saved_pgno, self._next_pgno)
        self._begin_records(message.record_epoch, message.timestamp_ms)
        return True

    def write_pages(self, first_pgno: int, data: bytes) -> None:
        """The next pages. Blocking: for a worker thread. Raises Corrupt for pages out of order, OSError."""
        size = self._first_page_size
        if first_pgno != self._next_pgno or size == 0 or len(data) % size or self._txid != self._base.txid:
            raise Corrupt(
                f"pages of {self.database} from {first_pgno} came where {self._next_pgno} is next: "
                f"the connection is closed and the snapshot goes on from there"
            )
        view = memoryview(data)
        entries = array("Q")
        for offset in range(0, len(data), size):
            pgno = first_pgno + offset // size
            entries.append(0 if pgno == self._lock_page else page_checksum(pgno, view[offset : offset + size]))
        self._disk.pwrite(self._pages_descriptor, data, (first_pgno - 1) * size)
        _extend(self._checksums, first_pgno - 1)
        self._checksums[first_pgno - 1 : first_pgno - 1 + len(entries)] = entries
        self._next_pgno = first_pgno + len(entries)

    def save(self) -> Callable[[], None]:
        """What has to be done, in a worker thread, so that a restart goes on from here. One at a time."""
        next_pgno, saved_pgno = self._next_pgno, self._saved_pgno
        added = self._checksums[saved_pgno - 1 : next_pgno - 1].tobytes()
        state = _encode_state(self.database, self._base, self._first_page_size, next_pgno)
        disk, pages, checksums = self._disk, self._pages_descriptor, self._checksums_descriptor
        self._saved_pgno = next_pgno

        def write() -> None:
            disk.pwrite(checksums, added, 8 * (saved_pgno - 1))
            disk.fdatasync(pages)
            disk.fdatasync(checksums)
            disk.write_file(self._directory / _STATE_NAME, state)

        return write

    def feed(self, data: bytes | memoryview, epoch: int) -> None:
        """The next bytes of the log after the base. Raises Corrupt (damage, or no continuation), Refused, OSError."""
        self._take(self._decoder.feed(data), epoch)
        while self._decoder.more:
            self._take(self._decoder.feed(b""), epoch)
        if self._decoder.failure is not None:
            raise self._decoder.failure

    def _take(self, events: list[Event], epoch: int) -> None:
        for event in events:
            if type(event) is PageBlock:
                self._write_block(event)
            elif type(event) is RecordHeader:
                self._check(event, epoch)
            else:
                self._end_record()

    def _check(self, header: RecordHeader, epoch: int) -> None:
        follows = header.min_txid == header.max_txid == self._txid + 1
        if header.database != self.database or not follows or header.epoch > epoch:
            raise Corrupt(
                f"record {header.min_txid:016x} of {header.database} does not follow {self._txid:016x} "
                f"in the snapshot of {self.database}"
            )
        if header.page_size != self._page_size:
            if self._commit != 0 and self._page_size and not header.holds_every_page:
                raise Corrupt(f"{self.database} changes its page size in a record that does not hold every page")
            # The numbers of the pages so far mean other bytes now, and none of them stays.
            self._disk.truncate(self._pages_descriptor, 0)
            del self._checksums[:]
            self._set_page_size(header.page_size)
        self._header = header
        self._entries = []

    def _write_block(self, block: PageBlock) -> None:
        size = self._page_size
        for pgno, page in block.pages:
            self._disk.pwrite(self._pages_descriptor, page, (pgno - 1) * size)
            self._entries.append((pgno, page_checksum(pgno, page)))

    def _end_record(self) -> None:
        header = self._header
        assert header is not None
        checksums = self._checksums
        if header.commit < len(checksums):
            del checksums[header.commit :]
        _extend(checksums, header.commit)
        for pgno, entry in self._entries:
            checksums[pgno - 1] = entry
        self._txid, self._commit = header.max_txid, header.commit
        self._epoch, self._timestamp_ms = header.epoch, header.timestamp_ms
        self._header = None

    def finish(self, end: SnapshotEnd) -> FinishedSnapshot:
        """Verify and make durable. Blocking: for a worker thread. Raises Corrupt when it is not what ``end`` says.

        Afterwards this object is only good for ``remove``; so it is after an error.
        """
        if end.position.txid != self._txid or self._header is not None or self._commit not in (None, end.page_count):
            raise Corrupt(
                f"the snapshot of {self.database} ends at {end.position} with {end.page_count} pages, received are "
                f"the records up to {self._txid:016x}: it begins anew"
            )
        checksums = self._checksums
        del checksums[end.page_count :]
        _extend(checksums, end.page_count)
        checksum = xor_of(checksums)
        if checksum != end.position.checksum:
            raise Corrupt(
                f"the pages of the snapshot of {self.database} have checksum {checksum:016x}, at {end.position} they "
                f"should have {end.position.checksum:016x}: it begins anew"
            )
        # Without its state a crash from here on begins anew, which is right: the pages are about to move.
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self._directory / _STATE_NAME)
        self._disk.truncate(self._pages_descriptor, end.page_count * self._page_size)
        self._disk.fdatasync(self._pages_descriptor)
        self._close_files()
        return FinishedSnapshot(
            self.database, self._directory / _PAGES_NAME, self._page_size, end.page_count, end.position, checksums,
            self._epoch, self._timestamp_ms,
        )  # fmt: skip

    def remove(self) -> None:
        """Give up, or clean up after the finished snapshot was taken."""
        self._close_files()
        self._remove_files()

    def close(self) -> None:
        """Leave everything as last saved, for the next start."""
        self._close_files()

    def _close_files(self) -> None:
        for descriptor in (self._pages_descriptor, self._checksums_descriptor):
            if descriptor >= 0:
                self._disk.close(descriptor)
        self._pages_descriptor = self._checksums_descriptor = -1

    def _remove_files(self) -> None:
        _remove_directory(self._disk, self._directory)


def resume_snapshots(store: Store) -> dict[str, SnapshotSink]:
    """The unfinished snapshots that an earlier run of this node left, by database; the useless ones are removed."""
    found = {}
    for directory in sorted((store.root / "incoming").iterdir()):
        try:
            database, progress = _decode_state((directory / _STATE_NAME).read_bytes())
            if directory.name != folder_name(database):
                _remove_directory(store.disk, directory)
                continue
            found[database] = SnapshotSink(store, database, progress, resumed=True)
        except (OSError, Corrupt):
            _remove_directory(store.disk, directory)
    return found


def _extend(checksums: "array[int]", count: int) -> None:
    """Entries of pages that never came are 0, as in the table of a database."""
    missing = count - len(checksums)
    if missing > 0:
        checksums.frombytes(bytes(8 * missing))


def _remove_directory(disk: Disk, directory: Path) -> None:
    # The state first: without it the rest means nothing.
    for name in (_STATE_NAME, _STATE_NAME + ".new", _CHECKSUMS_NAME, _PAGES_NAME):
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(directory / name)
    # A folder that is not there or holds something of somebody else's is left as it is.
    with contextlib.suppress(OSError):
        disk.rmdir(directory)


def _encode_state(database: str, base: Position, page_size: int, next_pgno: int) -> bytes:
    """Msgpack [version, database, base TXID, base checksum, page size, next pgno], then its xxh3_64 (8 bytes LE)."""
    body: bytes = msgpack.packb((_STATE_VERSION, database, base.txid, base.checksum, page_size, next_pgno))
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def _decode_state(data: bytes) -> tuple[str, SnapshotProgress]:
    body = data[:-8]
    damaged = Corrupt("the state of an unfinished snapshot is damaged: it begins anew")
    if xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]:
        raise damaged
    try:
        fields: list[Any] = msgpack.unpackb(body, max_array_len=16)
    except (ValueError, msgpack.UnpackException):
        raise damaged from None
    if type(fields) is not list or len(fields) != 6 or fields[0] != _STATE_VERSION or type(fields[1]) is not str:
        raise damaged
    _, database, txid, checksum, page_size, next_pgno = fields
    if database_name_problem(database) or not all(type(each) is int and each >= 0 for each in fields[2:]):
        raise damaged
    if not is_page_size(page_size) or next_pgno < 1:
        raise damaged
    return database, SnapshotProgress(Position(txid, checksum), page_size, next_pgno)
