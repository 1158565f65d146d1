"""The -wal file of the mount: where commits are seen.

Knows what each write to a WAL completes, what is kept back until then, and what a truncate, an fsync or an unlink of it
means. Does not know how a transaction is logged (store.database), nor the frames' rules (sqlite.detector).
"""

import contextlib
import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import pyfuse3
import structlog
import trio

from litereplica.mount.access import Access
from litereplica.mount.files import File, fence
from litereplica.mount.unsummed import NO_SUMS, UnsummedFrames
from litereplica.sqlite.detector import CommitDetector, Rewind
from litereplica.sqlite.frames import Transaction
from litereplica.sqlite.outcome import Examined
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES
from litereplica.store.database import Pages
from litereplica.store.store import Store

if TYPE_CHECKING:
    from litereplica.mount.database_file import DatabaseFile

log = structlog.get_logger()

# Uncommitted frames that are kept back at most: fewer, longer writes, and little to lose sight of.
PENDING_LIMIT_BYTES: Final = 64 * 1024


class WalFile(File):
    """A -wal file: where commits are seen (primary), or where the applier appends (replica)."""

    __slots__ = (
        "_held",
        "_owner",
        "_pending",
        "_pending_at",
        "_pending_end",
        "_pwrite",
        "_read",
        "_unsummed",
        "_waiting",
        "detector",
    )

    def __init__(self, store: Store, access: Access, owner: "DatabaseFile", name: str) -> None:
        super().__init__(store, access, name)
        self._owner = owner
        self.detector = CommitDetector()
        # A commit is being logged in pieces: SQLite's locks keep other writers away, this keeps away all others.
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._unsummed = UnsummedFrames(self.detector)
        # Bytes of uncommitted frames, back to back from ``_pending_at``, answered but not yet written: they go to the
        # file together, at the latest with their commit. Until then they are no more than SQLite's own buffer was;
        # every other look at the file flushes them first.
        self._pending: list[bytes] = []
        self._pending_at = self._pending_end = 0
        # Bound once: they are called for every frame.
        self._read = self.read_now
        self._pwrite = store.disk.pwrite

    async def write_request(self, offset: int, data: bytes) -> int:
        """The hot path: two or three of these are one small commit."""
        try:
            if not self.access.primary:
                # Who opened the file while this node was primary: the transaction ends here.
                self.access.check(self._owner.name)
            while self._held:
                await self._waiting.park()
            unsummed = self._unsummed
            if unsummed.end and offset >= unsummed.end:
                raise self.refuse_unsummed()  # noqa: TRY301  one way out for every error
            examined = self.detector.examine(offset, data, self._read)
            if examined is None:
                if len(data) == FRAME_HEADER_BYTES and (data[8:] == NO_SUMS or unsummed.any):
                    self._check_header(offset, data)
                return self._keep(offset, data)
            if not self._commit_now(examined, offset, data):
                await self._commit(examined, offset, data)
        except BaseException as error:  # noqa: BLE001  the edge: everything becomes the kernel's
            raise self.failure(error) from None
        return len(data)

    async def write_applied(self, offset: int, data: bytes) -> int:
        return self._pwrite(self.descriptor, data, offset)

    def begin_as_primary(self, frames: int) -> None:
        """Follow the writes from here on: ``frames`` of the file are committed. Raises OSError, Corrupt."""
        self.ensure_open()
        self._reset()
        self.detector.resume(frames, super().size(), self._read)

    def end_as_primary(self) -> tuple[int, int, int]:
        """Salts of the WAL and how many of its frames are committed; no write is taken any more but the applier's."""
        with contextlib.suppress(OSError):  # of no commit
            self.flush()
        header, frames = self.detector.header, self.detector.committed_frames
        self._reset()
        return (header.salt1, header.salt2, frames) if header is not None else (0, 0, 0)

    def _reset(self) -> None:
        self._pending = []
        self._pending_at = self._pending_end = 0
        self._unsummed.reset()

    def _keep(self, offset: int, data: bytes) -> int:
        """Take bytes that complete no transaction."""
        size = len(data)
        try:
            if offset == self._pending_end and self._pending:
                self._pending.append(data)
            else:
                if self._pending:
                    self.flush()
                if size != FRAME_HEADER_BYTES and offset != self._pending_end:
                    self._unsummed.note_overwriting(offset)
                self._pending = [data]
                self._pending_at = offset
            end = self._pending_end = offset + size
            if end - self._pending_at >= PENDING_LIMIT_BYTES:
                self.flush()
        except OSError as error:
            self.detector.forget(offset)
            self._owner.say_refused(error)
            raise
        return size

    def flush(self) -> None:
        """Write what was kept; before anything but the next write looks at the file.

        On OSError it stays kept: it was answered, and its commit is refused until it can be written.
        """
        if self._pending:
            self._pwrite(self.descriptor, b"".join(self._pending), self._pending_at)
            self._pending = []

    def read_now(self, offset: int, size: int) -> bytes:
        try:
            self.flush()
        except OSError:
            return self._read_beside(offset, size)
        return super().read_now(offset, size)

    def _read_beside(self, offset: int, size: int) -> bytes:
        """The file's bytes with what is kept laid over them: a full disk is no reason to fail a reader."""
        data = bytearray(super().read_now(offset, size))
        kept = b"".join(self._pending)
        start, end = max(offset, self._pending_at), min(offset + size, self._pending_end)
        if start < end:
            data.extend(bytes(max(0, end - offset - len(data))))
            data[start - offset : end - offset] = kept[start - self._pending_at : end - self._pending_at]
        return bytes(data)

    async def read(self, offset: int, size: int) -> bytes:
        return self.read_now(offset, size)

    def status(self) -> os.stat_result:
        with contextlib.suppress(OSError):
            self.flush()
        return super().status()

    def size(self) -> int:
        size = super().size()
        return max(size, self._pending_end) if self._pending else size

    def close(self) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):  # of no commit: nobody misses it
                self.flush()
        super().close()

    def _check_header(self, offset: int, data: bytes) -> None:
        if not self._unsummed.note_header(offset, data):
            self.detector.forget(offset)
            raise self.refuse_unsummed()

    @property
    def is_unsummed(self) -> bool:
        """A commit frame without salts and checksums was written, and nothing has completed it since."""
        return self._unsummed.end > 0

    def refuse_unsummed(self) -> pyfuse3.FUSEError:
        """The error for whatever builds on a commit that cannot be captured (mount.unsummed)."""
        return self.refuse(
            "commit_not_captured",
            "SQLite writes a transaction (spilled, with a savepoint rolled back) in a form that no recovery can read, "
            "its own included; it fails: use SQLite 3.42 or newer, or a larger PRAGMA cache_size",
            errno.EIO,
        )

    def failure(self, error: BaseException) -> BaseException:
        if isinstance(error, Rewind):
            if self.access.fenced is not None:
                # It is that transaction whose fsync failed, and SQLite took it back.
                return self.refuse("commit_refused", self.access.fenced, errno.EIO)
            self._look_after_index()
            return self.refuse(
                "wal_rewind_refused",
                "SQLite was about to overwrite a transaction that is logged: its writer died before it published it; "
                "nothing to do: the application's transaction fails once, and the next one finds it published",
                errno.EIO,
            )
        return super().failure(error)

    def _commit_now(self, examined: Examined, offset: int, data: bytes) -> bool:
        """One small transaction of a database that is known: no task switch, nothing held. False: not this one."""
        transactions = examined.transactions
        if examined.restart or len(transactions) != 1:
            return False
        transaction = transactions[0]
        database = self._owner.database
        if database is None or database.page_size != transaction.page_size or self.access.problem() is not None:
            return False  # the slow path says why
        pages = transaction.small_pages
        if pages is None:
            return False
        detector = self.detector
        pending = self._pending
        if pending:
            if self._pending_end != offset:
                return False
            data, offset = b"".join((*pending, data)), self._pending_at
        try:
            database.commit(pages, transaction.commit, partial(self._complete, data, offset))
        except BaseException as error:
            detector.refuse()
            self._owner.say_refused(error)
            raise
        self._pending = []
        self._unsummed.reset()
        detector.accept()
        if self._owner.refusing:
            self._owner.say_accepted()
        return True

    def _complete(self, data: bytes, offset: int) -> None:
        """The transaction is logged: it happens, unless the lease has run out in this instant. Raises OSError."""
        self.access.check(self._owner.name)
        self._pwrite(self.descriptor, data, offset)

    async def settle(self) -> None:
        """Log a commit whose last bytes were in the file already, so that no write completed it (sqlite.detector).

        Raises OSError, Refused when the log does not take it; then it is looked at again the next time.
        """
        while self._held:
            await self._waiting.park()
        if self.detector.unsettled:
            examined = self.detector.settle(self._read)
            if examined is not None:
                await self._commit(examined, 0, b"")

    async def released(self, *, opener_is_gone: bool) -> None:
        """A process has closed the file, or died with it open. Raises as ``settle`` does."""
        if self.unlinked or not self.access.primary:
            return
        if self.detector.unsettled:
            await self.settle()
        if opener_is_gone:
            self._look_after_index()

    def _look_after_index(self) -> None:
        header, frames = self.detector.header, self.detector.committed_frames
        if header is not None and frames:
            self.access.writer_gone(self._owner.name, header.salt1, header.salt2, frames)

    async def _commit(self, examined: Examined, offset: int, data: bytes) -> None:
        owner = self._owner
        if owner.unlinked:
            self.detector.refuse()
            raise self.refuse("commit_refused", "the database file was deleted", errno.EIO)
        self._held = True
        try:
            with self.access.committing(owner.name):
                self._flush_before(examined)
                if examined.restart:
                    await self._restart()
                if examined.transactions:
                    await self._log(examined.transactions, offset, partial(self._complete, data, offset))
                else:
                    self._pwrite(self.descriptor, data, offset)
        except BaseException as error:
            self.detector.refuse()
            self._owner.say_refused(error)
            raise
        else:
            self.detector.accept()
            self._unsummed.reset()
            self._owner.say_accepted()
        finally:
            self._held = False
            if self._waiting:
                self._waiting.unpark_all()

    def _flush_before(self, examined: Examined) -> None:
        try:
            self.flush()
        except OSError:
            if not examined.restart or examined.transactions:
                raise
            # What is kept belongs to the WAL that ends here.
            self._pending = []

    async def _restart(self) -> None:
        database = self._owner.database
        if database is not None:
            database.file_complete()
            self.access.wal_restarted(database.name, self.size())
        else:
            await self._owner.adopt_if_wal()

    async def _log(self, transactions: list[Transaction], offset: int, write: Callable[[], object]) -> None:
        """Log what the write at ``offset`` completes: nearly always one transaction; several become one record."""
        owner = self._owner
        newest = transactions[-1]
        database = self.store.databases.get(owner.name) or self.store.create(owner.name)
        if database.page_size != newest.page_size:
            if database.exists:
                raise self.refuse("commit_refused", "the page size of a replicated database cannot change", errno.EIO)
            database.set_page_size(newest.page_size)
        locked, commit = database.lock_page, newest.commit
        found = {pgno: frame for transaction in transactions for pgno, frame in transaction.pages}
        frames = sorted((pgno, frame) for pgno, frame in found.items() if pgno <= commit and pgno != locked)

        def read(start: int, end: int) -> Pages:
            return self._pages(frames[start:end], newest.page_size, offset)

        await database.commit_stream([pgno for pgno, _ in frames], commit, read, write)

    def _pages(self, frames: list[tuple[int, int]], page_size: int, offset: int) -> Pages:
        """(pgno, page) of (pgno, frame). Frames that follow each other, as most do, are read at once.

        What lies at ``offset`` or beyond may be part of the write that commits, which is not in the file yet.
        """
        step = FRAME_HEADER_BYTES + page_size
        pages: Pages = []
        position = 0
        while position < len(frames):
            first = frames[position][1]
            count = 1
            while position + count < len(frames) and frames[position + count][1] == first + count:
                count += 1
            if WAL_HEADER_BYTES + (first + count) * step > offset:
                found = [self.detector.page(frame, self._read) for _, frame in frames[position : position + count]]
            else:
                data = self._read(WAL_HEADER_BYTES + first * step, count * step)
                found = [data[at + FRAME_HEADER_BYTES : at + step] for at in range(0, count * step, step)]
            pages += [(pgno, page) for (pgno, _), page in zip(frames[position : position + count], found, strict=True)]
            position += count
        return pages

    async def truncate(self, size: int) -> None:
        self.ensure_open()
        if size <= self._pending_at:
            self._pending = []
        self.flush()
        if self.access.primary:
            try:
                self.detector.truncate(size)
            except Rewind:
                raise self.refuse(
                    "truncate_refused", "the WAL holds transactions that are not yet in the database file"
                ) from None
            database = self._owner.database
            if size == 0:
                self._unsummed.end = 0
                if database is not None:
                    database.file_complete()
        await super().truncate(size)

    async def sync(self) -> None:
        """What makes a commit durable is the log: after a crash the WAL is written anew from it."""
        database = self._owner.database
        if database is None:
            await super().sync()
            return
        was_primary = self.access.primary
        try:
            await database.log.sync()
        except OSError as error:
            fence(self.access, database, error)
            raise
        if was_primary:
            # What was logged may be of an epoch that has ended meanwhile: its outcome is open, which is no success.
            self.access.check(self._owner.name)

    def may_unlink(self) -> None:
        """Raises unless all its transactions are in the database file."""
        database = self._owner.database
        if database is None or not self.access.primary:
            return
        if self.detector.committed_frames and not database.is_folded(self._owner.read_now):
            raise self.refuse("unlink_refused", "the WAL holds transactions that are not yet in the database file")
        database.file_complete()
        self.access.wal_removed(database.name)
