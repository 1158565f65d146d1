"""A database file of the mount, or an empty file that may become one.

Knows what may change it: SQLite under a live rollback journal, SQLite's checkpoint of a WAL, and whoever copies a whole
database file into the mount. Does not know how a transaction is found in it (mount.rollback) nor logged.

Pages that are written under a rollback journal are held here until the journal ends: then they go to the log first and
to the backing file after it. So the backing file has only what is committed and logged, and the journal, which is there
to undo what it has not, need not be durable. Only a transaction of more than HELD_LIMIT_BYTES is written through, with
a durable journal, as SQLite would do it.
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import pyfuse3
import structlog
import trio

from litereplica.mount.access import Access
from litereplica.mount.files import File, fence, fence_for
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, SMALLEST_PAGE
from litereplica.sqlite.version import header_problem
from litereplica.store.adopt import adopt, is_wal_database, whole_pages
from litereplica.store.database import Database
from litereplica.store.folded import changed_pages
from litereplica.store.store import Store
from litereplica.store.verify import is_settled

if TYPE_CHECKING:
    from litereplica.mount.journal_file import JournalFile
    from litereplica.mount.wal_file import WalFile

log = structlog.get_logger()

# Of one transaction: twice SQLite's default cache, beyond which it begins to write before the commit.
HELD_LIMIT_BYTES: Final = 4 << 20
NO_JOURNAL: Final = (
    "written without a journal (PRAGMA journal_mode is MEMORY or OFF), so that a crash could not be undone: set PRAGMA "
    "journal_mode=WAL, or DELETE, TRUNCATE, PERSIST"
)
UNDONE: Final = "the journal that is played back was rolled back by this node already: begin again"


class DatabaseFile(File):
    """A database, or an empty file that may become one."""

    __slots__ = (
        "_adopting",
        "_known",
        "held",
        "importers",
        "is_held",
        "is_torn",
        "is_undone",
        "is_written_through",
        "journal",
        "refusing",
        "rejected",
        "wal",
    )

    def __init__(self, store: Store, access: Access, name: str) -> None:
        super().__init__(store, access, name)
        self.wal: WalFile | None = None
        self.journal: JournalFile | None = None
        # Pages by number that a transaction under the journal has written; the backing file does not have them.
        self.held: dict[int, bytes] = {}
        # The transaction is too large (or not in whole pages): the backing file has what it writes.
        self.is_written_through = False
        # It has been given what is held, and perhaps taken only some: a rollback has to be written to it too.
        self.is_torn = False
        # The node has rolled a dead writer's journal back; somebody may be about to do so too, and need not any more.
        self.is_undone = False
        # The first bytes have been seen to be a database's.
        self._known = False
        # Somebody tried to make another kind of file of it; when it is closed, nothing of it stays.
        self.rejected = False
        # While the whole file is read to be logged.
        self._adopting: trio.Event | None = None
        # Of a replica: the end of a journal is held until the primary has committed.
        self.is_held = False
        # Handles that can only write: somebody copies a file here (SQLite always opens for reading too).
        self.importers = 0
        # The disk has refused a commit and taken none since: an application that tries again and again is one line.
        self.refusing = False

    @property
    def database(self) -> Database | None:
        """The replicated database that this file is, if it is one by now."""
        database = self.store.databases.get(self.name)
        if database is None or not database.exists or self.unlinked:
            return None
        return database

    @property
    def is_protected(self) -> bool:
        """Whether a live rollback journal says how to undo changes."""
        return self.journal is not None and self.journal.is_live

    async def write(self, offset: int, data: bytes) -> int:
        await self.wait_adopted()
        database = self.database
        if database is None:
            self._check_unknown(offset, data)
            if self.is_protected:
                self.is_written_through = True
                await self._make_journal_durable()
        else:
            await self._prepare_change(database)
            if self.is_protected:
                size = database.page_size
                if not self.is_written_through:
                    if offset % size == 0 and len(data) == size and len(self.held) * size < HELD_LIMIT_BYTES:
                        self.held[offset // size + 1] = data
                        return len(data)
                    await self._write_through(database)
                database.open_pages.add(offset // size + 1, (offset + len(data) - 1) // size + 1)
        return self.store.disk.pwrite(self.descriptor, data, offset)

    async def write_applied(self, offset: int, data: bytes) -> int:
        if (database := self.database) is not None:
            await self._sync_log(database)
            if self.held:
                # It plays back the journal of a dead writer, before we have heard that it is dead.
                self.held.pop(offset // database.page_size + 1, None)
        return self.store.disk.pwrite(self.descriptor, data, offset)

    async def _prepare_change(self, database: Database) -> None:
        """Raises unless SQLite can undo the change, or a checkpoint makes it; nothing is ahead of the log then."""
        if self.is_protected:
            if database.settled:
                database.unsettle()
            if self.is_written_through:
                await self._make_journal_durable()
        else:
            wal = self.wal
            if wal is not None and wal.is_unsummed:
                raise wal.refuse_unsummed()
            if self.access.primary and wal is not None and wal.detector.unsettled:
                # A checkpoint copies what it found committed, whether a write completed that or not.
                await wal.settle()
            if not self._has_wal():
                undone, self.is_undone = self.is_undone, False
                raise self.refuse("write_refused", UNDONE if undone else f"a replicated database is {NO_JOURNAL}")
            if database.settled:
                database.unsettle()
        # The log is never behind the files: a page may carry a transaction whose record is not on the disk.
        await self._sync_log(database)

    def _has_wal(self) -> bool:
        """Whether a checkpoint may write here. Raises EIO on a replica whose applications only read."""
        wal = self.wal
        if self.access.primary:
            return wal is not None and wal.detector.committed_frames > 0
        if self.access.elsewhere is None:
            self.access.check(self.name)
        # Others may have written it: how many of its frames are committed is known to SQLite alone.
        return wal is not None and wal.size() > 0

    async def _sync_log(self, database: Database) -> None:
        if database.log.durable:
            return
        try:
            await database.log.sync()
        except OSError as error:
            fence(self.access, database, error)
            raise

    async def _make_journal_durable(self) -> None:
        assert self.journal is not None
        if not self.journal.is_durable:
            await self.journal.make_durable()

    async def _write_through(self, database: Database) -> None:
        """From here on the backing file has what the transaction writes. Raises OSError."""
        await self._make_journal_durable()
        self.open_held(database)
        self.write_held()
        self.held = {}
        self.is_written_through = True

    def open_held(self, database: Database) -> None:
        """The backing file has, or is about to have, what is held: the journal has to undo it there."""
        for pgno in self.held:
            database.open_pages.add(pgno, pgno)

    def write_held(self) -> None:
        """Bring what is held to the backing file; pages behind its end first, which a full disk refuses. OSError."""
        if not self.held:
            return
        disk, descriptor = self.store.disk, self.descriptor
        before = super().size()
        self.is_torn = True
        try:
            for pgno, page in sorted(self.held.items(), reverse=True):
                disk.pwrite(descriptor, page, (pgno - 1) * len(page))
        except OSError:
            disk.truncate(descriptor, before)
            raise

    def journal_ended(self) -> None:
        """What was held is in the backing file, or was rolled back."""
        self.held = {}
        self.is_written_through = self.is_torn = False

    def read_now(self, offset: int, size: int) -> bytes:
        data = super().read_now(offset, size)
        return self._lay_over(data, offset, size) if self.held else data

    async def read(self, offset: int, size: int) -> bytes:
        return self.read_now(offset, size)

    def _lay_over(self, data: bytes, offset: int, size: int) -> bytes:
        """``data`` of the backing file at ``offset``, with what is held in its place; up to ``size`` bytes."""
        page_size = len(next(iter(self.held.values())))
        end = max(offset + len(data), min(offset + size, max(self.held) * page_size))
        found = bytearray(data).ljust(end - offset, b"\0")
        for pgno in range(offset // page_size + 1, (end - 1) // page_size + 2):
            page = self.held.get(pgno)
            if page is not None:
                start = (pgno - 1) * page_size
                first, last = max(start, offset), min(start + page_size, end)
                found[first - offset : last - offset] = page[first - start : last - start]
        return bytes(found)

    def size(self) -> int:
        size = super().size()
        if self.held:
            size = max(size, max(self.held) * len(next(iter(self.held.values()))))
        return size

    async def sync(self) -> None:
        """What makes a replicated database durable is the log; its file is made so when the base advances."""
        database = self.database
        if database is not None:
            await self._sync_log(database)
            return
        await super().sync()

    # -- a file that is not replicated yet -------------------------------------------------------------------------

    def _check_unknown(self, offset: int, data: bytes) -> None:
        if not self.is_protected and not self.importers:
            if not self.access.primary and self.access.elsewhere is None:
                self.access.check(self.name)
            if (
                offset == 0
                and not self.size()
                and (problem := header_problem(data[:DATABASE_HEADER_BYTES])) is not None
            ):
                raise self._reject(problem)
            if self.unlinked:
                raise self.refuse("write_refused", "the database file was deleted")
            raise self.refuse("write_refused", f"a new database is {NO_JOURNAL}")
        if self._known:
            return
        if offset:
            # Under a journal the first page may come last; of a copy it comes first.
            if (
                not self.is_protected
                and (problem := header_problem(self.read_now(0, DATABASE_HEADER_BYTES))) is not None
            ):
                raise self._reject(problem)
            return
        if (problem := header_problem(data[:DATABASE_HEADER_BYTES])) is not None:
            raise self._reject(problem)
        self._known = True

    def _reject(self, problem: str) -> pyfuse3.FUSEError:
        """Once in the log for each file, however often its writer tries."""
        if self.rejected:
            return pyfuse3.FUSEError(errno.EACCES)
        self.rejected = True
        return self.refuse("not_a_database", problem)

    async def wait_adopted(self) -> None:
        """Return when nobody reads the whole file to log it: it must not change meanwhile."""
        while self._adopting is not None:
            await self._adopting.wait()

    async def adopt_if_wal(self) -> None:
        """Take a database that has become a WAL database into the log; nothing when it is there or is none."""
        await self.wait_adopted()
        if self.database is None and not self.unlinked and self.access.primary and is_wal_database(self.path):
            await self._adopt()

    async def _adopt(self) -> None:
        """The log takes a large file in many turns: the fence may close in one of them."""
        await adopt(self.store, self.name, allow=partial(self.access.check, self.name))

    @property
    def _is_unknown(self) -> bool:
        return self.database is None and not self.unlinked and self.access.primary and not self.is_protected

    async def copied(self) -> None:
        """Whoever copies a file here closes it, and waits: if it is whole it enters the log. OSError: it does not."""
        await self.wait_adopted()
        if (
            not self._is_unknown
            or not whole_pages(self.path)
            or header_problem(self.read_now(0, DATABASE_HEADER_BYTES))
        ):
            return
        self._adopting = trio.Event()
        try:
            with self.access.committing(self.name):
                await self._adopt()
        except BaseException as error:
            self.say_refused(error)
            raise
        finally:
            self._adopting.set()
            self._adopting = None

    def left(self) -> None:
        """Whoever copied a file here is gone."""
        if self._is_unknown and self._adopting is None and self.size():
            log.warning(
                "import_incomplete",
                file=self.name,
                reason="it is no whole SQLite database, so it is not replicated: copy it again, or remove it",
            )

    # -- its size --------------------------------------------------------------------------------------------------

    async def truncate(self, size: int) -> None:
        await self.wait_adopted()
        database = self.database
        if database is not None:
            await self._check_size(database, size)
            await self._sync_log(database)
        await super().truncate(size)

    async def truncate_applied(self, size: int) -> None:
        await self.wait_adopted()
        if (database := self.database) is not None:
            if self.is_protected:
                await self._check_size(database, size)
            await self._sync_log(database)
        await super().truncate_applied(size)

    async def _check_size(self, database: Database, size: int) -> None:
        if self.is_protected:
            if database.settled:
                database.unsettle()
            kept, rest = divmod(size, database.page_size)
            if not rest:
                self.held = {pgno: page for pgno, page in self.held.items() if pgno <= kept}
            if rest or size != super().size():
                await self._write_through(database)
                database.open_pages.cut(kept)
        elif size >= database.page_count * database.page_size:
            return  # SQLite cuts what a transaction left over after its journal has ended (pager_end_transaction)
        elif not (self._has_wal() and self._is_in_wal_beyond(database, size)):
            raise self.refuse(
                "truncate_refused",
                "a replicated database is only shortened by SQLite: to replace it by a file, use the sqlite3 shell's "
                ".restore, or drop it first",
            )

    @staticmethod
    def _is_in_wal_beyond(database: Database, size: int) -> bool:
        """Whether a checkpoint may leave ``size`` bytes: pages beyond them have to be in the WAL.

        It cuts the file to the size at the commit that it has read, and commits go on meanwhile (walCheckpoint). The
        pages of a content that is on its way into the file are all in the WAL, or in a file of their own; but a
        checkpoint leaves whole pages, and at least one. Whoever copies a file here begins with none: what is in the WAL
        is of no use then, because SQLite reads what is folded from the file.
        """
        # The content that is replaced may have pages of another size.
        settled = is_settled(database)
        if not size or size % (database.page_size if settled else SMALLEST_PAGE):
            return False
        if not settled:
            return True
        beyond = range(size // database.page_size + 1, database.page_count + 1)
        return not beyond or changed_pages(database.log, database.base.txid).issuperset(
            pgno for pgno in beyond if pgno != database.lock_page
        )

    # -- commits that are refused -----------------------------------------------------------------------------

    def refuse_commit(self, reason: str, *, is_unknown: bool = False) -> pyfuse3.FUSEError:
        """The error for a transaction that the primary has not committed, or that it may have (``is_unknown``)."""
        if is_unknown:
            log.warning("commit_unknown", database=self.name, reason=reason)
        else:
            log.info("commit_refused", database=self.name, reason=reason)
        return pyfuse3.FUSEError(errno.EIO)

    def say_refused(self, error: BaseException) -> None:
        """Log that the disk takes no commits, once until it does again."""
        self._fence_lost()
        if isinstance(error, OSError) and not self.refusing:
            self.refusing = True
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            log.warning(
                "commits_refused",
                database=self.name,
                reason=error.strerror,
                advice="make room on the data directory's disk: commits go on by themselves then"
                if full
                else "check the data directory's disk",
            )

    def drop(self, database: Database) -> None:
        """Log that the database is gone. Raises OSError, and EIO where no commit is accepted any more."""
        try:
            database.drop(partial(self.access.check, self.name))
        except OSError:
            self._fence_lost()
            raise

    def _fence_lost(self) -> None:
        """Something was refused: an fsync of the log may have failed in it, or what was to take it back."""
        database = self.store.databases.get(self.name)
        if database is None:
            return
        failure = database.log.failure
        if database.log.lost is not None:
            fence(self.access, database, database.log.lost)
        elif failure is not None and failure is not database.install_failure:
            # The other nodes are whole, and none of them becomes the primary as long as this one is.
            fence_for(self.access, f"the log of {database.name} failed", failure)

    def say_accepted(self) -> None:
        """The disk takes commits again."""
        if self.refusing:
            self.refusing = False
            log.info("commits_accepted_again", database=self.name)


Finish = Callable[[], object]
"""Does to the backing files what ends a journal; raises OSError, and then nothing has ended."""
