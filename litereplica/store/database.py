"""One database: its position, its log, the checksums of its pages, and how a transaction becomes part of it.

Knows the order of a commit: log record first, then the application's bytes, then what everybody sees. Does not know
how a commit was recognised (sqlite.detector), who waits for it, or how it reaches other nodes.

A stretch without ``await`` is atomic here: position, page count, page checksums and the log's counted end change
together in ``_advance`` and nowhere else.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Final

import structlog

from litereplica.errors import Corrupt, LitereplicaError
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.encode import encode_record
from litereplica.ltx.format import Origin, RecordHeader, RecordTrailer
from litereplica.ltx.position import Point, Position
from litereplica.ltx.small import RecordWriter
from litereplica.sqlite.pages import lock_page
from litereplica.store.commit import PendingCommit, log_pages
from litereplica.store.dropped import keep_dropped
from litereplica.store.folded import changed_page, has_pages
from litereplica.store.log import Log
from litereplica.store.meta import NOT_CLEAN, Meta, save_meta
from litereplica.store.open_pages import OpenPages
from litereplica.store.page_checksums import PageChecksums
from litereplica.store.unlaid import Unlaid
from litereplica.store.waiters import Waiters

if TYPE_CHECKING:
    from litereplica.store.awaited import Awaited
    from litereplica.store.store import Store

log = structlog.get_logger()

CHECKSUMS_NAME: Final = "checksums"
WAL_MODE: Final = "wal"
ROLLBACK_MODE: Final = "rollback"
Pages = list[tuple[int, bytes]]


def journal_mode_of(first_page: bytes | memoryview) -> str:
    """What the format versions in page 1 (its beginning is enough) say: read version 2 is WAL mode."""
    return WAL_MODE if first_page[19:20] == b"\x02" else ROLLBACK_MODE


@dataclass(frozen=True, slots=True)
class Counted:
    """A received record whose bytes are in the log, not yet counted; ``pages`` are (pgno, page checksum)."""

    header: RecordHeader
    trailer: RecordTrailer
    length: int
    pages: list[tuple[int, int]]


class Database:
    """State of one database on this node. All methods belong to the event loop's thread.

    ``position``: after the last logged record. ``applied``: TXID that readers here see. ``page_count``: pages at
    ``position``. ``base``: all of it is in the database file (in the kernel's hands at least), ``base_pages`` pages;
    ``saved_base``, ``saved_base_pages``: the same as the meta file has it durably: redo begins there.
    ``dropped_txid``: the last record that left no pages, since this process started.
    ``pending_install``: a whole new content that the applier has still to write over the old one.
    ``awaits_install``: until the applier is given that, it may still write what it was given of the history before it.
    ``install_failure``: why the segments of the history before it are still in the log's place (store.install).
    ``settled``: nothing has changed since the clean stop that the meta file speaks of.
    Of a replica whose applications write: ``awaited``, the transaction of theirs that is on its way; ``own_txid``, the
    newest that has come back as the cluster's, 0 when none has since this process started or since an install;
    ``claim``, the newest commit in the WAL that one of them made and need not have published yet: (salt 1, salt 2,
    frames); ``unlaid``: those of theirs whose page 1 the files here lack.
    ``telltale``: of the newest transaction that was committed through this node's files, (TXID, page size, pgno,
    checksum) of a page that it has changed; None: it has changed none, or there is none.
    """

    __slots__ = (
        "__weakref__", "_writer", "applied", "awaited", "awaits_install", "base", "base_pages", "checksums", "claim",
        "directory", "dropped_txid", "epoch", "file_failure", "install_failure", "install_folded", "journal_mode",
        "kept_install", "lock_page", "log", "name", "open_pages", "own_txid", "page_count", "page_size",
        "pending_install", "position", "saved_base", "saved_base_pages", "settled", "store", "telltale",
        "timestamp_ms", "unlaid", "waiters",
    )  # fmt: skip

    def __init__(self, store: "Store", name: str, directory: Path) -> None:
        self.store = store
        self.name = name
        self.directory = directory
        self.page_size = 0
        self.lock_page = 0
        # Of the newest transaction: what the versions in page 1 say.
        self.journal_mode = WAL_MODE
        # Of the primary: what a live rollback journal protects.
        self.open_pages = OpenPages()
        self.position = self.base = self.saved_base = Position.ZERO
        self.applied = 0
        self.page_count = self.base_pages = self.saved_base_pages = 0
        self.epoch = 0
        self.timestamp_ms = 0
        self.dropped_txid = 0
        self.pending_install: Path | None = None
        self.awaits_install = False
        # The file of a pending install, kept after the applier has written it into its WAL until that is folded.
        self.kept_install: Path | None = None
        self.install_folded = False
        self.install_failure: OSError | None = None
        self.settled = False
        self.awaited: Awaited | None = None
        self.own_txid = 0
        self.claim: tuple[int, int, int] | None = None
        self.telltale: tuple[int, int, int, int] | None = None
        self.unlaid = Unlaid()
        # The fdatasync of the database file failed: what of it is on the disk is unknown until the next start.
        self.file_failure: OSError | None = None
        self._writer: RecordWriter | None = None
        self.checksums = PageChecksums(store.disk, directory / CHECKSUMS_NAME)
        self.log = self.new_log(Position.ZERO)
        self.waiters = Waiters()

    def __repr__(self) -> str:
        return f"<Database {self.name} {self.position}>"

    def new_log(self, start: Position) -> Log:
        """Return an empty log after ``start``."""
        store = self.store
        mark = self.checksums.mark_durable
        return Log(store.disk, store.calls, self.directory, start, mark, store.segment_bytes)

    @property
    def point(self) -> Point:
        """The position as a point of this history, as far as the log can be read."""
        position = self.position
        try:
            point = self.log.point_at(position.txid)
        except (LitereplicaError, OSError) as error:
            log.warning("log_unreadable", database=self.name, reason=str(error), then="its position alone is compared")
            point = None
        return point or Point(position.txid, position.checksum, 0)

    @property
    def base_txid(self) -> int:
        """TXID of ``base``."""
        return self.base.txid

    @property
    def file_path(self) -> Path:
        """The backing file."""
        return self.store.file_path(self.name)

    @property
    def is_behind(self) -> bool:
        """Readers here do not see all that is logged."""
        return self.applied < self.position.txid or self.pending_install is not None

    @property
    def exists(self) -> bool:
        """False before the first transaction and after a drop."""
        return self.page_count > 0

    @property
    def is_nameless(self) -> bool:
        """A file of this name is none of its own: it does not exist, and the file that was dropped is gone."""
        return not self.exists and self.applied >= self.dropped_txid

    def set_page_size(self, page_size: int) -> None:
        """Set the page size; 0 while it is not known."""
        self.page_size = page_size
        self.lock_page = lock_page(page_size) if page_size else 0

    def unsettle(self) -> None:
        """Before the first change after a clean start: the next start must not trust the clean stop. Raises OSError."""
        # A file that was restored from a backup may have holes: a store into one on a full disk would be a SIGBUS.
        self.checksums.reserve(1)
        save_meta(self.store.disk, self.directory, self.meta())
        self.checksums.begin_boot(self.log.durable_txid)
        self.settled = False

    # -- commit on the primary -------------------------------------------------------------------------------------

    def commit(self, pages: Pages, commit: int, write: Callable[[], object], origin: Origin | None = None) -> None:
        """Log a transaction, let ``write`` put the application's bytes in their file, then count it.

        ``pages`` are (pgno, bytes) in ascending order, ``commit`` the page count after. Raises OSError when the log or
        the file refuses; then the transaction did not happen and nothing has changed.
        """
        if self.settled:
            self.unsettle()
        if commit >= self.lock_page or pages[-1][0] > commit:
            pages = [each for each in pages if each[0] <= commit and each[0] != self.lock_page]
        checksums = self.checksums
        if commit > checksums.capacity:
            checksums.reserve(commit)
        table = checksums.table
        position = self.position
        checksum = position.checksum
        entries = []
        for pgno, page in pages:
            entry = page_checksum(pgno, page)
            checksum ^= entry ^ table[pgno - 1]
            entries.append((pgno, entry))
        if commit < self.page_count:
            # Entries that this transaction both changes and cuts off were filtered out above.
            checksum ^= checksums.xor_range(commit + 1, self.page_count)
        txid = position.txid + 1
        timestamp_ms = time_ns() // 1_000_000
        writer = self._record_writer(self.page_size)
        record = writer.encode(pages, commit, txid, timestamp_ms, position.checksum, checksum, origin)
        log = self.log
        log.append(record, txid, timestamp_ms)
        try:
            write()
        except BaseException:
            log.cut_last()
            # The kernel may have brought the record to the disk, at any time.
            log.make_cut_durable()
            raise
        self.advance(Position(txid, checksum), commit, self.store.epoch, timestamp_ms)
        self.committed_here(txid, changed_page(reversed(entries), table))
        for pgno, entry in entries:
            table[pgno - 1] = entry
        self.applied = txid
        self.changed()

    async def commit_stream(
        self,
        pgnos: list[int],
        commit: int,
        read: Callable[[int, int], Pages],
        write: Callable[[], object],
        origin: Origin | None = None,
        settle: Callable[[PendingCommit], Awaitable[None]] | None = None,
    ) -> None:
        """Do the same for a transaction of any size, in bounded memory; ``settle`` comes between the log and ``write``.

        ``read(i, j)`` answers (pgno, bytes) of ``pgnos[i:j]``; the pages must not change until this returns (their
        writer is held, or holds SQLite's locks). Other databases are served in between.
        """
        pending = await log_pages(self, pgnos, commit, self.page_size, read, origin)
        try:
            if settle is not None:
                await settle(pending)
            write()
        except BaseException:
            pending.cut()
            raise
        pending.count()

    def drop(self, allow: Callable[[], object] = lambda: None) -> None:
        """Log that the database is gone: a record that leaves 0 pages. The caller unlinks the file next.

        Raises what ``allow`` does, which is called once the record is on the disk; nothing has changed then. Raises
        OSError when the log refuses; nothing has changed then either, but that nothing more may be logged.
        """
        if self.settled:
            self.unsettle()
        keep_dropped(self.store.disk, self.file_path, self.directory)
        header = self.next_header(self.page_size, 0, 0)
        self.log.append(encode_record(header, [], 0), header.min_txid, header.timestamp_ms)
        try:
            # Before the name is free for another file: redo of a log without this record would go into that one.
            self.log.sync_blocking(allow)
        except BaseException:
            self.log.cut_last()
            self.log.make_cut_durable()
            raise
        self.advance(Position(header.max_txid, 0), 0, header.epoch, header.timestamp_ms)
        self.applied = header.max_txid
        if self.awaited is not None:
            self.awaited.counted(self, header)
        self.changed()

    def _record_writer(self, page_size: int) -> RecordWriter:
        writer, store = self._writer, self.store
        if writer is None or not writer.fits(page_size, store.epoch):
            writer = RecordWriter(self.name, page_size, store.epoch, store.node, store.compression)
            self._writer = writer
        return writer

    def next_header(self, page_size: int, page_count: int, commit: int, origin: Origin | None = None) -> RecordHeader:
        """The header of the record that would follow: ``page_count`` pages, ``commit`` in the database after it."""
        position = self.position
        timestamp_ms = time_ns() // 1_000_000
        writer = self._record_writer(page_size)
        return writer.header(page_count, commit, position.txid + 1, timestamp_ms, position.checksum, origin)

    def advance(self, position: Position, commit: int, epoch: int, timestamp_ms: int) -> None:
        """Stand at ``position``, whose record the log has counted."""
        if commit < self.page_count:
            self.checksums.clear_from(commit + 1, self.page_count)
        self.page_count = commit
        self.epoch = epoch
        self.timestamp_ms = timestamp_ms
        self.position = position
        if not commit:
            self.dropped_txid = position.txid
            self.base, self.base_pages = position, 0
            # A content that was still to be written over the old one has nowhere to go.
            self.pending_install = None
            self.awaits_install = False
            self.install_folded = self.kept_install is not None
            self.unlaid.replaced()
            self.telltale = None

    def committed_here(self, txid: int, page: tuple[int, int] | None) -> None:
        """An application, or the applier for another node, has committed ``txid``; ``page``: as ``changed_page``."""
        self.telltale = None if page is None else (txid, self.page_size, *page)

    def changed(self) -> None:
        """Tell every listener."""
        # One may take itself off while it is told, and the next must not be passed over.
        for listener in tuple(self.store.listeners):
            listener(self)
        self.waiters.reached(self.applied)

    def origin_at(self, txid: int) -> Origin | None:
        """Where record ``txid`` comes from; None: from the node that wrote it, or there is no such record yet.

        Raises Trimmed when the log does not hold it any more (also after a snapshot), OSError.
        """
        if txid > self.position.txid:
            return None
        return self.log.header(txid).origin

    # -- received on a replica -------------------------------------------------------------------------------------

    def append_bytes(self, data: bytes | memoryview, whole: Sequence[Counted] = ()) -> None:
        """Received log bytes, verbatim; not counted until ``count_records`` says what they are. Raises OSError.

        ``whole``: the records that are whole with them. A start after a crash counts these.
        """
        if self.settled:
            self.unsettle()
        if whole:
            self._clear_name(whole)
        self.log.append_uncounted(data)

    def cut_uncounted(self) -> None:
        """Drop received bytes of a record that will not become whole."""
        if self.log.uncounted:
            self.log.cut_uncounted()

    def count_records(self, records: list[Counted]) -> None:
        """Make received records, in order, part of the log; their TXIDs and pre-apply checksums have been checked.

        Raises Corrupt at a record whose pages do not lead to the checksum that it promises, OSError when the disk
        refuses; those before it count.
        """
        try:
            for record in records:
                self._count(record)
        finally:
            self.changed()

    def _count(self, record: Counted) -> None:
        header = record.header
        resized = header.page_size != self.page_size
        assert header.holds_every_page or not (resized and self.exists)
        checksums = self.checksums
        checksums.reserve(header.commit)
        table = checksums.table
        if resized:
            # The old pages' numbers mean other bytes: the record has all that there is.
            checksum = 0
            for _, entry in record.pages:
                checksum ^= entry
        else:
            checksum = self.position.checksum
            for pgno, entry in record.pages:
                checksum ^= entry ^ table[pgno - 1]
            if header.commit < self.page_count:
                checksum ^= checksums.xor_range(header.commit + 1, self.page_count)
        if checksum != record.trailer.post_checksum:
            raise Corrupt(
                f"record {header.max_txid:016x} of {self.name} leads to checksum {checksum:016x}, not to "
                f"{record.trailer.post_checksum:016x} as its writer had it: one of the two nodes has damaged pages"
            )
        self.log.count(header.max_txid, record.length, header.timestamp_ms)
        if resized:
            checksums.clear_from(1)
            self.set_page_size(header.page_size)
        position = Position(header.max_txid, checksum)
        self.advance(position, header.commit, header.epoch, header.timestamp_ms)
        if self.telltale is not None and self.telltale[0] >= header.max_txid:
            # It was of a history that is lost.
            self.telltale = None
        for pgno, entry in record.pages:
            table[pgno - 1] = entry
        if record.pages and record.pages[0][0] == 1:
            self.unlaid.logged(header.max_txid)
        if self.awaited is not None:
            self.awaited.counted(self, header)

    def _clear_name(self, records: Sequence[Counted]) -> None:
        """Before a record is whole that makes the database or drops it: see to the file of its name. Raises OSError.

        From then on a start after a crash makes the file from the log, or removes it.
        """
        if self.is_nameless and (self.awaited is None or self.awaited.origin != records[0].header.origin):
            self.store.make_way(self.name)
        exists = self.exists
        for record in records:
            if exists and not record.header.commit:
                keep_dropped(self.store.disk, self.file_path, self.directory)
            exists = record.header.commit > 0

    def set_applied(self, txid: int) -> None:
        """Readers on this node see the database as of ``txid``."""
        if txid > self.applied:
            self.applied = txid
            self.changed()

    # -- what is in the file ---------------------------------------------------------------------------------------

    def installed(self) -> None:
        """The applier has written the whole new content (into its WAL: the file is kept until that is folded)."""
        self.pending_install = None

    def file_complete(self) -> None:
        """Everything committed is in the database file: a WAL begins again (file format, 4.4), a journal has ended."""
        self.checkpointed(self.position.txid)

    def checkpointed(self, txid: int) -> None:
        """Everything up to ``txid`` was folded into the database file, as it is in the WAL."""
        txid = self.unlaid.base_for(txid)
        if txid == self.position.txid:
            self._set_base(self.position, self.page_count)
        elif txid > self.base.txid:
            summary = self.log.summary(txid)
            self._set_base(Position(txid, summary.trailer.post_checksum), summary.header.commit)
        elif txid == self.base.txid:
            self._set_base(self.base, self.base_pages)

    def _set_base(self, base: Position, pages: int) -> None:
        if self.pending_install is None:
            self.base, self.base_pages = base, pages
            self.install_folded = self.kept_install is not None

    def is_folded(self, read: Callable[[int, int], bytes]) -> bool:
        """Whether the database file (read by ``read(offset, size)``) has every page changed since ``base``.

        Page 1 may lack what is unlaid, and is brought in then.
        """
        pgnos = range(2 if self.unlaid else 1, self.page_count + 1)
        return has_pages(self.log, self.base.txid, pgnos, self.page_size, self.checksums.table, read)

    def lacks_newest(self, read: Callable[[int, int], bytes]) -> bool:
        """Whether what readers here see last is not in the database file, of which SQLite says that it has all.

        SQLite goes by the wal-index, and that it does not show a transaction whose writer died within its COMMIT. Such
        a one is not in the file at all, every other one as a whole: one page that it has changed tells which it is.
        """
        if self.telltale is None or self.telltale[0] != self.applied:
            return False
        # Not the page size of now: a change of that is logged before it is applied, which takes an empty WAL.
        _, page_size, pgno, entry = self.telltale
        page = read((pgno - 1) * page_size, page_size)
        if len(page) != page_size:
            return True
        found = page_checksum(pgno, page)
        # The applier may have laid the log's page 1 over it since; an older one (``unlaid.firsts``) tells nothing. If a
        # later record has page 1 too, that is another one, and who asks is refused until it is applied.
        return found != entry and not (pgno == 1 and found == self.checksums.table[0])

    # -- what is certain -------------------------------------------------------------------------------------------

    def meta(self, stamp: tuple[int, int] = (NOT_CLEAN, 0), *, installing: bool = False) -> Meta:
        """What the meta file should say; ``stamp``: the file's size and time of change at a clean stop."""
        return Meta(
            self.name, self.page_size, self.saved_base, self.saved_base_pages, self.epoch, self.timestamp_ms,
            *stamp, installing or self.install_failure is not None,
        )  # fmt: skip

    def save_meta(self, stamp: tuple[int, int] = (NOT_CLEAN, 0), *, installing: bool = False) -> None:
        """Make the state of ``saved_base`` durable. Raises OSError."""
        save_meta(self.store.disk, self.directory, self.meta(stamp, installing=installing))

    def close(self) -> None:
        """Give descriptors and mappings back."""
        self.checksums.close()
        self.log.close()
