"""The -wal file of the mount: where commits are seen.

Knows what each write to a WAL completes, what is kept back until then, and what a truncate, an fsync or an unlink of it
means. Does not know how a transaction is logged (store.database), nor the frames' rules (sqlite.detector), nor what is
different on a replica (mount.replica_wal).
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pyfuse3
import structlog

from litereplica.errors import Corrupt
from litereplica.mount.access import Access
from litereplica.mount.files import fence, make_durable
from litereplica.mount.first_page import enters_wal_mode, in_wal
from litereplica.mount.kept_file import INVERTED, KeptFile
from litereplica.mount.replica_wal import ReplicaWal
from litereplica.mount.unsummed import NO_SUMS
from litereplica.mount.wal_pages import FramePages
from litereplica.sqlite.detector import Rewind
from litereplica.sqlite.frames import Transaction
from litereplica.sqlite.outcome import Examined
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES
from litereplica.store.database import ROLLBACK_MODE, WAL_MODE, Database
from litereplica.store.store import Store

if TYPE_CHECKING:
    from litereplica.mount.database_file import DatabaseFile

log = structlog.get_logger()


class WalFile(KeptFile):
    """A -wal file. Its applications' commits are logged here (primary), or elsewhere (``replica``)."""

    __slots__ = ("_applier_at", "replica")

    def __init__(self, store: Store, access: Access, owner: "DatabaseFile", name: str) -> None:
        super().__init__(store, access, owner, name)
        # Of the primary: the committed frames after which the applier has begun a transaction of another node.
        self._applier_at = -1
        self.replica = ReplicaWal(self)

    async def write_request(self, offset: int, data: bytes) -> int:
        """The hot path: two or three of these are one small commit."""
        try:
            if not self.access.primary:
                return await self.replica.write(offset, data)
            if self._held:
                await self.wait_held()
                return await self.write_request(offset, data)
            unsummed = self.unsummed
            if unsummed.end and offset >= unsummed.end:
                self.check_rest(offset)
            examined = self.detector.examine(offset, data, self._read)
            if examined is None:
                if len(data) == FRAME_HEADER_BYTES and (data[8:] == NO_SUMS or unsummed.any):
                    self.check_header(offset, data)
                return self.keep(offset, data)
            if not self._commit_now(examined, offset, data):
                await self._commit(examined, offset, data)
        except BaseException as error:  # noqa: BLE001  the edge: everything becomes the kernel's
            raise self.failure(error) from None
        return len(data)

    async def write_applied(self, offset: int, data: bytes) -> int:
        while self._held:
            await self._waiting.park()
        self._refuse_overtaken()
        self.replica.lose_sight()
        return self._pwrite(self.descriptor, data, offset)

    async def write_expected(self, offset: int, data: bytes) -> int:
        while self._held:
            await self._waiting.park()
        self._refuse_overtaken()
        if self.unsummed.is_rest and offset >= self.unsummed.end:
            self.check_rest(offset)
        examined = self.detector.examine(offset, data, self._read)
        self._applier_at = self.detector.committed_frames
        if examined is None:
            return self.keep(offset, data)
        if not self._commit_now(examined, offset, data, is_expected=True):
            await self._commit(examined, offset, data, is_expected=True)
        return len(data)

    def _refuse_overtaken(self) -> None:
        """Raises EIO while the applier may write what is over; it says so to whom that concerns (node.follow).

        It would lie over what came after it; or it is of a lost history: where its records were in the log there may
        be the new history's by then, which do not fit on what is here.
        """
        database = self._owner.database
        if database is not None and (database.unlaid.is_overtaken or database.awaits_install):
            raise pyfuse3.FUSEError(errno.EIO)

    def begin_as_primary(self, frames: int) -> None:
        """Follow the writes from here on: ``frames`` of the file are committed. Raises OSError, Corrupt.

        Where the writes of an open transaction have been followed already, that goes on.
        """
        self.ensure_open()
        if not self.replica.follows(frames):
            self.drop_kept()
            self.unsummed.reset()
            self.detector.resume(frames, super().size(), self._read)
            if not frames and super().size():
                self._resume_folded()

    def _resume_folded(self) -> None:
        """The WAL begins again, so far in the wal-index alone (applier.rollback_mode): its frames are all folded.

        Who opens the database as the first one recovers them from the file, and goes on behind them.
        """
        try:
            self.detector.resume(0, super().size(), self._read, trusted=True)
        except Corrupt:
            self.detector.resume(0, super().size(), self._read)
        if self.detector.settle(self._read) is not None:
            self.detector.accept()

    def end_as_primary(self) -> tuple[int, int, int]:
        """Salts of the WAL and how many of its frames are committed."""
        self.replica.begin()
        return self._committed_end()

    def _committed_end(self) -> tuple[int, int, int]:
        header = self.detector.header
        return (header.salt1, header.salt2, self.detector.committed_frames) if header is not None else (0, 0, 0)

    def written_end(self) -> tuple[int, int, int] | None:
        """Salts and committed frames, as applications have written them; None where nothing is that they have to show.

        On a replica the applier shows what it has written itself, before anybody hears of it.
        """
        end = self._committed_end()
        return end if end[2] and (self.access.primary or self.replica.is_followed) else None

    def check_header(self, offset: int, data: bytes) -> None:
        """Look at a frame header that may be one without sums; raises EIO for one that nothing will complete."""
        if not self.unsummed.note_header(offset, data):
            self.detector.forget(offset)
            raise self.refuse_unsummed()

    @property
    def is_unsummed(self) -> bool:
        """A commit frame without salts and checksums was written, and nothing has completed it since."""
        return self.unsummed.end > 0 and not self.unsummed.is_rest

    def check_rest(self, offset: int) -> None:
        """A write at ``unsummed.end`` or behind it: only one that begins a new transaction. Raises EIO.

        Not what the detector says: frames of the refused one are in the file, and the same ones may come again.
        """
        if not self.unsummed.is_rest:
            raise self.refuse_unsummed()
        if offset != self.unsummed.end:
            raise pyfuse3.FUSEError(self.unsummed.rest_code)
        self.unsummed.reset()

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
            self.look_after_index()
            return self.refuse(
                "wal_rewind_refused",
                "SQLite was about to overwrite a transaction that is logged: its writer died before it published it; "
                "nothing to do: the application's transaction fails once, and the next one finds it published",
                errno.EIO,
            )
        return super().failure(error)

    def _commit_now(self, examined: Examined, offset: int, data: bytes, *, is_expected: bool = False) -> bool:
        """One small transaction of a database that is known: no task switch, nothing held. False: not this one."""
        transactions = examined.transactions
        if examined.restart or len(transactions) != 1:
            return False
        transaction = transactions[0]
        database = self._owner.database
        if database is None or database.page_size != transaction.page_size or database.journal_mode != WAL_MODE:
            return False
        access = self.access
        if (access.lost_locks and not is_expected) or database.unlaid.oldest or access.problem() is not None:
            return False  # the slow path says why, or sees to page 1
        pages = transaction.small_pages
        if pages is None:
            return False
        pending = self._pending
        whole, start = data, offset
        if pending:
            if self._pending_end != offset:
                return False
            whole, start = b"".join((*pending, data)), self._pending_at
        try:
            origin = access.take_expected(database.name, database.position) if is_expected else None
            database.commit(pages, transaction.commit, partial(self._complete, whole, start), origin)
        except BaseException as error:
            self._refuse(examined, offset, data, error)
            raise
        self._pending = []
        self.unsummed.reset()
        self.detector.accept()
        if self._owner.refusing:
            self._owner.say_accepted()
        return True

    def _complete(self, data: bytes, offset: int) -> None:
        """The transaction is logged: it happens, unless the lease has run out in this instant. Raises OSError."""
        self.access.check(self._owner.name)
        self._pwrite(self.descriptor, data, offset)

    def _refuse(self, examined: Examined, offset: int, data: bytes, error: BaseException) -> None:
        """The write will not be made; what it would have completed must not become whole by old bytes in its place.

        What the kernel keeps of that part of the file it reads again, since its write has failed.
        """
        detector, header = self.detector, self.detector.header
        detector.refuse()
        if examined.transactions and not examined.restart and header is not None and data:
            step = FRAME_HEADER_BYTES + header.page_size
            begins_at = detector.committed_bytes
            # Not of one that was whole before (``settle``): there others may have gone on behind it.
            if offset < WAL_HEADER_BYTES + (examined.transactions[0].last_frame + 1) * step:
                start = max(offset, begins_at)
                self.spoil(start, data[start - offset :].translate(INVERTED))
                self.drop_kept()
                detector.forget(begins_at)
                code = error.errno if isinstance(error, OSError) else None
                self.unsummed.refuse_rest(begins_at, code or errno.EIO)
        self._owner.say_refused(error)

    async def settle(self) -> None:
        """Log a commit whose last bytes were in the file already, so that no write completed it (sqlite.detector).

        Raises OSError, Refused when the log does not take it; then it is looked at again the next time.
        """
        while self._held:
            await self._waiting.park()
        if self.detector.unsettled:
            examined = self.detector.settle(self._read)
            if examined is not None:
                is_expected = self._owner.name in self.access.expected
                is_appliers = is_expected and self._applier_at == self.detector.committed_frames
                await self._commit(examined, 0, b"", is_expected=is_appliers)

    async def released(self, *, opener_is_gone: bool) -> None:
        """A process has closed the file, or died with it open. Raises as ``settle`` does."""
        if self.unlinked:
            return
        if not self.access.primary:
            if opener_is_gone:
                self.replica.look_after_index()
            return
        if self.detector.unsettled:
            await self.settle()
        if opener_is_gone:
            self.look_after_index()

    def look_after_index(self) -> None:
        """Have it seen to that the wal-index shows all that is committed."""
        end = self._committed_end()
        if end[2]:
            self.access.writer_gone(self._owner.name, *end)

    async def _commit(self, examined: Examined, offset: int, data: bytes, *, is_expected: bool = False) -> None:
        owner = self._owner
        if owner.unlinked:
            self.detector.refuse()
            raise self.refuse("commit_refused", "the database file was deleted", errno.EIO)
        self._held = True
        try:
            with self.access.committing(owner.name):
                if examined.transactions and not is_expected:
                    self.access.check_lock(owner.name)
                self.flush_before(examined)
                if examined.restart:
                    await self._restart()
                if examined.transactions:
                    write = partial(self._complete, data, offset)
                    await self.log(examined.transactions, offset, write, is_expected=is_expected)
                else:
                    self._pwrite(self.descriptor, data, offset)
        except BaseException as error:
            self._refuse(examined, offset, data, error)
            raise
        else:
            self.detector.accept()
            self.unsummed.reset()
            self._owner.say_accepted()
        finally:
            self.let_go()

    async def _restart(self) -> None:
        database = self._owner.database
        if database is not None:
            self.check_folded(database)
            database.file_complete()
            self.access.wal_restarted(database.name, self.size())
        else:
            await self._owner.adopt_if_wal()

    def check_folded(self, database: Database) -> None:
        """SQLite begins the WAL anew. Raises Rewind when something is in it alone.

        SQLite goes by the wal-index: all that this shows is in the database file. A writer that died within its COMMIT
        has logged it and not shown it. That can only be the last one: who comes next goes on behind it, or stops here.
        """
        if self.size() and database.lacks_newest(self._owner.read_now):
            raise Rewind("the last transaction of the WAL is not in the database file")

    def check_emptied(self, database: Database) -> None:
        """SQLite empties the WAL. Raises EIO when something is in it alone."""
        try:
            self.check_folded(database)
        except Rewind as error:
            raise self.failure(error) from None

    async def log(
        self, transactions: list[Transaction], offset: int, write: Callable[[], object], *, is_expected: bool = False
    ) -> None:
        """Log what the write at ``offset`` completes: nearly always one transaction; several become one record.

        ``is_expected``: of another node, through the applier.
        """
        owner = self._owner
        newest = transactions[-1]
        database = self.store.databases.get(owner.name) or self.store.create(owner.name)
        if database.page_size != newest.page_size:
            if database.exists:
                raise self.refuse("commit_refused", "the page size of a replicated database cannot change", errno.EIO)
            database.set_page_size(newest.page_size)
        frames = FramePages(self.detector, transactions, database.lock_page, offset, self._read)
        if not database.exists and len(frames.pgnos) != frames.commit - (frames.commit >= database.lock_page):
            raise self.refuse("commit_refused", "its database was deleted, or never made", errno.EIO)
        pages = await in_wal(self, database, frames)
        origin = self.access.take_expected(owner.name, database.position) if is_expected else None
        enters = enters_wal_mode(database, pages)
        # Of a rollback mode (the WAL is from when this node was a replica) each commit is durable, whatever
        # ``synchronous`` is: SQLite goes by the WAL here, and asks for it with FULL only.
        settle = partial(make_durable, self.access) if database.journal_mode == ROLLBACK_MODE else None
        await database.commit_stream(pages.pgnos, pages.commit, pages.read, write, origin, settle)
        if enters:
            database.journal_mode = WAL_MODE

    async def truncate(self, size: int) -> None:
        self.ensure_open()
        if self.access.primary:
            await self.wait_held()
        # Asked again: the role may have changed in that wait.
        if not self.access.primary:
            self.replica.check_truncate(size)
        if size <= self._pending_at:
            self._pending = []
        self.flush()
        database = self._owner.database
        if not size:
            if self.access.primary and database is not None:
                self.check_emptied(database)
            self._empty()
            if not self.access.primary:
                self.replica.emptied()
            elif database is not None:
                database.file_complete()
            return
        if self.access.primary:
            try:
                self.detector.truncate(size)
            except Rewind:
                raise self.refuse(
                    "truncate_refused", "the WAL holds transactions that are not yet in the database file"
                ) from None
        await super().truncate(size)

    def _empty(self) -> None:
        """Raises OSError; then all that is committed in it is so still."""
        try:
            self.store.disk.truncate(self.descriptor, 0)
        except OSError:
            self.detector.forget(WAL_HEADER_BYTES)  # what was kept is gone
            raise
        self.detector.truncate(0)
        self.unsummed.reset()

    async def sync(self) -> None:
        """What makes a commit durable is the log: after a crash the WAL is written anew from it."""
        database = self._owner.database
        if database is None or self.access.primary or not await self.replica.sync(database):
            await self.sync_applied()

    async def sync_applied(self) -> None:
        """The same for the applier: what is in the log here; it never waits for another node."""
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
        if was_primary and (problem := self.access.problem()) is not None:
            # What was logged may be of an epoch that has ended meanwhile: its outcome is open, which is no success.
            raise self._owner.refuse_commit(problem, is_unknown=True)

    async def truncate_applied(self, size: int) -> None:
        self.ensure_open()
        await self.wait_held()
        database = self._owner.database
        if size == 0 and database is not None:
            self.check_emptied(database)
        self.replica.lose_sight()
        await super().truncate(size)

    def may_unlink(self) -> None:
        """Raises unless all its transactions are in the database file."""
        database = self._owner.database
        if database is None or self._owner.unlinked or not self.access.primary:
            return
        if self.detector.committed_frames and not database.is_folded(self._owner.read_now):
            raise self.refuse("unlink_refused", "the WAL holds transactions that are not yet in the database file")
        database.file_complete()
        self.access.wal_removed(database.name)
