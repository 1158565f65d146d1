"""One database: its position, its log, the checksums of its pages, and how a transaction becomes part of it.

Knows the order of a commit: log record first, then the application's bytes, then what everybody sees. Does not know
how a commit was recognised (sqlite.detector), who waits for it, or how it reaches other nodes.

A stretch without ``await`` is atomic here: position, page count, page checksums and the log's counted end change
together in ``_advance`` and nowhere else.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.encode import RecordEncoder, block_capacity, encode_record
from litereplica.ltx.format import RecordHeader, RecordTrailer
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import lock_page
from litereplica.store.log import Log
from litereplica.store.meta import Meta, save_meta
from litereplica.store.page_checksums import PageChecksums

if TYPE_CHECKING:
    from litereplica.store.store import Store

CHECKSUMS_NAME: Final = "checksums"
_READ_BYTES: Final = 256 * 1024
Pages = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Counted:
    """A received record whose bytes are in the log, not yet counted; ``pages`` are (pgno, page checksum)."""

    header: RecordHeader
    trailer: RecordTrailer
    length: int
    pages: list[tuple[int, int]]


class Database:
    """State of one database on this node. All methods belong to the event loop's thread."""

    __slots__ = (
        "__weakref__", "applied", "base", "checksums", "directory", "dropped_txid", "epoch", "lock_page", "log", "name", "page_count",
        "page_size", "pending_install", "position", "saved_base", "store", "timestamp_ms", "waiters",
    )

    def __init__(self, store: "Store", name: str, directory: Path) -> None:
        self.store = store
        self.name = name
        self.directory = directory
        self.page_size = 0
        self.lock_page = 0
        self.position = Position.ZERO
        self.applied = 0
        self.page_count = 0
        self.epoch = 0
        self.timestamp_ms = 0
        # The last record that left no pages, since this process started.
        self.dropped_txid = 0
        # Everything up to here is in the database file (in the kernel's hands at least).
        self.base = Position.ZERO
        # The same, as last made durable in the meta file; redo begins after this one.
        self.saved_base = Position.ZERO
        # A whole new content that the applier has still to write over the old one.
        self.pending_install: Path | None = None
        self.checksums = PageChecksums(store.disk, directory / CHECKSUMS_NAME)
        self.log = Log(store.disk, store.calls, directory, 1)
        self.waiters = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<Database {self.name} {self.position}>"

    @property
    def base_txid(self) -> int:
        return self.base.txid

    @property
    def file_path(self) -> Path:
        return self.store.file_path(self.name)

    @property
    def exists(self) -> bool:
        """False before the first transaction and after a drop."""
        return self.page_count > 0

    @property
    def journal_mode(self) -> str:
        return "wal"

    def set_page_size(self, page_size: int) -> None:
        self.page_size = page_size
        self.lock_page = lock_page(page_size)

    # -- commit on the primary -------------------------------------------------------------------------------------

    def commit(self, pages: Pages, commit: int, write: Callable[[], None]) -> None:
        """Log a transaction, let ``write`` put the application's bytes in their file, then count it.

        ``pages`` are (pgno, bytes) in ascending order, ``commit`` the page count after. Raises OSError when the log or
        the file refuses; then the transaction did not happen and nothing has changed.
        """
        if commit >= self.lock_page or pages[-1][0] > commit:
            pages = [each for each in pages if each[0] <= commit and each[0] != self.lock_page]
        checksums = self.checksums
        checksums.reserve(commit)
        table = checksums.table
        before = self.position
        checksum = before.checksum
        entries = []
        for pgno, page in pages:
            entry = page_checksum(pgno, page)
            checksum ^= entry ^ table[pgno - 1]
            entries.append((pgno, entry))
        if commit < self.page_count:
            # Entries that this transaction both changes and cuts off were filtered out above.
            checksum ^= checksums.xor_range(commit + 1, self.page_count)
        header = self._header(len(pages), commit)
        txid = header.min_txid
        record = encode_record(header, pages, checksum)
        self.log.append(record, txid, header.timestamp_ms)
        try:
            write()
        except OSError:
            self.log.cut_last()
            raise
        self._advance(header, checksum, entries)
        self.applied = txid
        self._changed()

    async def commit_stream(
        self, pgnos: list[int], commit: int, read: Callable[[int, int], Pages], write: Callable[[], None]
    ) -> None:
        """The same for a transaction of any size, in bounded memory.

        ``read(i, j)`` answers (pgno, bytes) of ``pgnos[i:j]``; the pages must not change until this returns (their
        writer is held, or holds SQLite's locks). Other databases are served in between.
        """
        checksums = self.checksums
        checksums.reserve(commit)
        checksum = self.position.checksum
        header = self._header(len(pgnos), commit)
        encoder = RecordEncoder(header)
        log = self.log
        entries: list[tuple[int, int]] = []
        length = 0
        try:
            piece = encoder.begin()
            for start, end in _steps(len(pgnos), block_capacity(self.page_size)):
                log.append_uncounted(piece)
                length += len(piece)
                pages = read(start, end)
                table = checksums.table
                for pgno, page in pages:
                    entry = page_checksum(pgno, page)
                    checksum ^= entry ^ table[pgno - 1]
                    entries.append((pgno, entry))
                piece = encoder.block(pages)
                await trio.lowlevel.checkpoint()
            if commit < self.page_count:
                checksum ^= checksums.xor_range(commit + 1, self.page_count)
            piece += encoder.end(checksum)
            log.append_uncounted(piece)
            length += len(piece)
            write()
        except BaseException:
            log.cut_uncounted()
            raise
        log.count(header.max_txid, length, header.timestamp_ms)
        self._advance(header, checksum, entries)
        self.applied = header.max_txid
        self._changed()

    def drop(self) -> None:
        """Log that the database is gone: a record that leaves 0 pages."""
        header = self._header(0, 0)
        self.log.append(encode_record(header, [], 0), header.min_txid, header.timestamp_ms)
        self._advance(header, 0, [])
        self.applied = header.max_txid
        self.base = self.position
        self._changed()

    def _header(self, page_count: int, commit: int) -> RecordHeader:
        store = self.store
        txid = self.position.txid + 1
        return RecordHeader(
            database=self.name, page_size=self.page_size, commit=commit, page_count=page_count, min_txid=txid,
            max_txid=txid, epoch=store.epoch, node=store.node, timestamp_ms=time.time_ns() // 1_000_000,
            pre_checksum=self.position.checksum, compression=store.compression,
        )

    def _advance(self, header: RecordHeader, checksum: int, entries: list[tuple[int, int]]) -> None:
        table = self.checksums.table
        for pgno, entry in entries:
            table[pgno - 1] = entry
        if header.commit < self.page_count:
            self.checksums.clear_from(header.commit + 1, self.page_count)
        self.page_count = header.commit
        if not header.commit:
            self.dropped_txid = header.max_txid
        self.epoch = header.epoch
        self.timestamp_ms = header.timestamp_ms
        self.position = Position(header.max_txid, checksum)

    def _changed(self) -> None:
        for listener in self.store.listeners:
            listener(self)
        if self.waiters:
            self.waiters.unpark_all()

    # -- received on a replica -------------------------------------------------------------------------------------

    def append_bytes(self, data: bytes | memoryview) -> None:
        """Received log bytes, verbatim; not counted until ``count_records`` says what they are."""
        self.log.append_uncounted(data)

    def cut_uncounted(self) -> None:
        """Drop received bytes of a record that will not become whole."""
        if self.log.uncounted:
            self.log.cut_uncounted()

    def count_records(self, records: list[Counted]) -> None:
        """Make received records, in order, part of the log; their TXIDs and pre-apply checksums have been checked.

        Raises Corrupt at a record whose pages do not lead to the checksum that it promises; those before it count.
        """
        try:
            for record in records:
                self._count(record)
        finally:
            self._changed()

    def _count(self, record: Counted) -> None:
        header = record.header
        if header.page_size != self.page_size:
            assert not self.exists
            self.set_page_size(header.page_size)
        checksums = self.checksums
        checksums.reserve(header.commit)
        table = checksums.table
        checksum = self.position.checksum
        for pgno, entry in record.pages:
            checksum ^= entry ^ table[pgno - 1]
        if header.commit < self.page_count:
            checksum ^= checksums.xor_range(header.commit + 1, self.page_count)
        if checksum != record.trailer.post_checksum:
            message = f"record {header.max_txid:016x} of {self.name} leads to checksum {checksum:016x}, not to {record.trailer.post_checksum:016x} as its writer had it: one of the two nodes has damaged pages"
            raise Corrupt(message)
        self.log.count(header.max_txid, record.length, header.timestamp_ms)
        self._advance(header, checksum, record.pages)

    def set_applied(self, txid: int) -> None:
        """Readers on this node see the database as of ``txid``."""
        if txid > self.applied:
            self.applied = txid
            self._changed()

    # -- what is in the file ---------------------------------------------------------------------------------------

    def installed(self) -> None:
        """The applier has written the whole new content."""
        if self.pending_install is not None:
            self.store.disk.unlink(self.pending_install)
            self.pending_install = None

    def wal_restarted(self) -> None:
        """SQLite begins its WAL again: everything committed is in the database file (SQLite file format, 4.4)."""
        self.base = self.position

    def checkpointed(self, txid: int) -> None:
        """The applier has folded everything up to ``txid`` into the database file."""
        if txid <= self.base.txid:
            return
        if txid == self.position.txid:
            self.base = self.position
            return
        checksum = self.log.checksum_at(txid)
        if checksum is not None:
            self.base = Position(txid, checksum)

    def is_folded(self, read: Callable[[int, int], bytes]) -> bool:
        """Whether the database file (read by ``read(offset, size)``) has every page changed since ``base``."""
        page_size, table = self.page_size, self.checksums.table
        for pgno in changed_pages(self.log, self.base.txid):
            if pgno <= self.page_count:
                page = read((pgno - 1) * page_size, page_size)
                if len(page) != page_size or page_checksum(pgno, page) != table[pgno - 1]:
                    return False
        return True

    def meta(self, *, clean: bool = False) -> Meta:
        path = self.file_path
        size = path.stat().st_size if clean and path.exists() else 0
        return Meta(self.name, self.page_size, self.saved_base, self.page_count, self.epoch,
                    self.position if clean else None, size)

    def save_meta(self, *, clean: bool = False) -> None:
        save_meta(self.store.disk, self.directory, self.meta(clean=clean))

    def close(self) -> None:
        self.checksums.close()
        self.log.close()


def changed_pages(log: Log, after_txid: int) -> set[int]:
    """Page numbers in the records after ``after_txid``."""
    changed: set[int] = set()
    cursor = log.cursor(after_txid)
    decoder = RecordDecoder()
    while data := cursor.read(_READ_BYTES):
        for event in decoder.feed(data):
            if isinstance(event, PageBlock):
                changed.update(pgno for pgno, _ in event.pages)
    return changed


def _steps(count: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, step):
        yield start, min(start + step, count)
