"""The files of the mount, one class a kind.

Knows what a write, a truncate, an fsync means for a database file, its WAL, its wal-index and its journal. Does not
know inodes or handles (mount.tree, mount.operations), nor how a transaction is logged (store.database).
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyfuse3
import structlog
import trio

from litereplica.mount.access import Access
from litereplica.sqlite.detector import CommitDetector, Rewind
from litereplica.sqlite.frames import Transaction
from litereplica.sqlite.outcome import Examined
from litereplica.sqlite.pages import DATABASE_MAGIC, is_database
from litereplica.store.adopt import adopt, is_wal_database
from litereplica.store.database import Database, Pages
from litereplica.store.store import Store

log = structlog.get_logger()

FIRST_BYTES: Final = 100


class File:
    """One file of the mount: a backing file that is opened when first needed and shared by all handles."""

    __slots__ = ("access", "descriptor", "name", "store", "unlinked")

    def __init__(self, store: Store, access: Access, name: str) -> None:
        self.store = store
        self.access = access
        self.name = name
        self.descriptor = -1
        self.unlinked = False

    @property
    def path(self) -> Path:
        return self.store.file_path(self.name)

    def ensure_open(self) -> None:
        """Open the backing file; raises OSError."""
        if self.descriptor < 0:
            self.descriptor = self.store.disk.open(self.path)

    def create(self, mode: int) -> None:
        self.descriptor = self.store.disk.open(self.path, os.O_RDWR | os.O_CREAT, mode)

    def close(self) -> None:
        if self.descriptor >= 0:
            self.store.disk.close(self.descriptor)
            self.descriptor = -1

    def status(self) -> os.stat_result:
        return os.fstat(self.descriptor) if self.descriptor >= 0 else os.lstat(self.path)

    def size(self) -> int:
        return self.status().st_size

    def read_now(self, offset: int, size: int) -> bytes:
        return self.store.disk.pread(self.descriptor, size, offset)

    async def read(self, offset: int, size: int) -> bytes:
        return self.store.disk.pread(self.descriptor, size, offset)

    async def write(self, offset: int, data: bytes) -> int:
        return self.store.disk.pwrite(self.descriptor, data, offset)

    async def truncate(self, size: int) -> None:
        self.ensure_open()
        self.store.disk.truncate(self.descriptor, size)

    async def sync(self) -> None:
        descriptor = self.descriptor
        await self.store.calls.run(lambda: self.store.disk.fdatasync(descriptor))

    def refuse(self, event: str, reason: str, code: int = errno.EACCES) -> pyfuse3.FUSEError:
        """Log why, once per refusal, and make the error."""
        log.warning(event, file=self.name, reason=reason)
        return pyfuse3.FUSEError(code)


class DatabaseFile(File):
    """A database, or an empty file that may become one."""

    __slots__ = ("_known", "journal", "wal")

    def __init__(self, store: Store, access: Access, name: str) -> None:
        super().__init__(store, access, name)
        self.wal: WalFile | None = None
        self.journal: JournalFile | None = None
        # The first bytes have been seen to be a database's.
        self._known = False

    @property
    def database(self) -> Database | None:
        """The replicated database that this file is, if it is one by now."""
        database = self.store.databases.get(self.name)
        if database is None or not database.exists or self.unlinked:
            return None
        return database

    async def write(self, offset: int, data: bytes) -> int:
        database = self.database
        if database is None:
            self._check_first_write(offset, data)
        else:
            if self.access.primary and (self.wal is None or not self.wal.detector.committed_frames):
                raise self.refuse(
                    "write_refused",
                    "a replicated database is written outside WAL mode, which this version does not capture: "
                    "keep PRAGMA journal_mode=WAL",
                )
            if not database.log.durable:
                # The log is never behind the files: a page may carry a transaction whose record is not on the disk.
                await self._sync_log(database)
        return self.store.disk.pwrite(self.descriptor, data, offset)

    async def _sync_log(self, database: Database) -> None:
        try:
            await database.log.sync()
        except OSError as error:
            fence(self.access, database, error)
            raise

    def _check_first_write(self, offset: int, data: bytes) -> None:
        if self._known:
            return
        if self.size() == 0:
            journalled = self.journal is not None and self.journal.size() > 0
            if not (journalled and offset) and not (offset == 0 and data.startswith(DATABASE_MAGIC)):
                raise self.refuse(
                    "not_a_database",
                    "only SQLite databases are kept in the mount; put other files beside it",
                )
        elif not is_database(self.read_now(0, FIRST_BYTES)) and offset:
            raise self.refuse("not_a_database", "the first page of this file is not SQLite's; it is left as it is")
        if offset == 0 and is_database(data):
            self._known = True

    async def truncate(self, size: int) -> None:
        database = self.database
        if database is not None:
            wanted = database.page_count * database.page_size
            folding = self.access.primary and self.wal is not None and self.wal.detector.committed_frames
            if self.access.primary and (size < wanted or not folding):
                raise self.refuse("truncate_refused", "a replicated database is only shortened by SQLite's checkpoint")
            if not database.log.durable:
                await self._sync_log(database)
        await super().truncate(size)

    async def adopt_if_wal(self) -> None:
        """Take a database that has become a WAL database into the log; nothing when it is there or is none."""
        if self.database is None and not self.unlinked and self.access.primary and is_wal_database(self.path):
            await adopt(self.store, self.name)


class WalFile(File):
    """A -wal file: where commits are seen (primary), or where the applier appends (replica)."""

    __slots__ = ("_held", "_owner", "_waiting", "detector")

    def __init__(self, store: Store, access: Access, owner: DatabaseFile, name: str) -> None:
        super().__init__(store, access, name)
        self._owner = owner
        self.detector = CommitDetector()
        # A commit is being logged in pieces: SQLite's locks keep other writers away, this keeps away all others.
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def write(self, offset: int, data: bytes) -> int:
        if not self.access.primary:
            return self.store.disk.pwrite(self.descriptor, data, offset)
        while self._held:
            await self._waiting.park()
        detector = self.detector
        try:
            examined = detector.examine(offset, data, self.read_now)
        except Rewind:
            raise self.refuse(
                "wal_rewind_refused",
                "SQLite is about to overwrite a transaction that is logged: its writer died before it published it; "
                "close every connection to this database to let SQLite recover it",
                errno.EIO,
            ) from None
        if examined is not None:
            return await self._commit(examined, offset, data)
        try:
            return self.store.disk.pwrite(self.descriptor, data, offset)
        except OSError:
            detector.forget(offset)
            raise

    async def _commit(self, examined: Examined, offset: int, data: bytes) -> int:
        owner = self._owner
        if self.access.fenced is not None or owner.unlinked:
            self.detector.refuse()
            raise self.refuse("commit_refused", self.access.fenced or "the database file was deleted", errno.EIO)
        written = False

        def write() -> None:
            nonlocal written
            self.store.disk.pwrite(self.descriptor, data, offset)
            written = True

        self._held = True
        try:
            if examined.restart:
                await self._restart()
            for number, transaction in enumerate(examined.transactions, 1):
                last = number == len(examined.transactions)
                await self._log(transaction, write if last else _nothing)
            if not written:
                write()
        except OSError as error:
            self.detector.refuse()
            log.warning(
                "commit_refused",
                database=owner.name,
                reason=error.strerror,
                advice="make room on the data directory's disk" if error.errno == errno.ENOSPC else "",
            )
            raise
        except BaseException:
            self.detector.refuse()
            raise
        else:
            self.detector.accept()
        finally:
            self._held = False
            if self._waiting:
                self._waiting.unpark_all()
        return len(data)

    async def _restart(self) -> None:
        database = self._owner.database
        if database is not None:
            database.wal_restarted()
            self.access.wal_restarted(database.name, self.size())
        else:
            await self._owner.adopt_if_wal()

    async def _log(self, transaction: Transaction, write: Callable[[], None]) -> None:
        owner = self._owner
        database = self.store.databases.get(owner.name) or self.store.create(owner.name)
        if database.page_size != transaction.page_size:
            if database.exists:
                raise self.refuse("commit_refused", "the page size of a replicated database cannot change", errno.EIO)
            database.set_page_size(transaction.page_size)
        pages = transaction.small_pages
        if pages is not None:
            database.commit(pages, transaction.commit, write)
            return
        locked, commit = database.lock_page, transaction.commit
        frames = [each for each in transaction.pages if each[0] <= commit and each[0] != locked]

        def read(start: int, end: int) -> Pages:
            page = self.detector.page
            return [(pgno, page(frame, self.read_now)) for pgno, frame in frames[start:end]]

        await database.commit_stream([pgno for pgno, _ in frames], commit, read, write)

    async def truncate(self, size: int) -> None:
        if self.access.primary:
            try:
                self.detector.truncate(size)
            except Rewind:
                raise self.refuse(
                    "truncate_refused", "the WAL holds transactions that are not yet in the database file"
                ) from None
            database = self._owner.database
            if size == 0 and database is not None:
                database.wal_restarted()
        await super().truncate(size)

    async def sync(self) -> None:
        """What makes a commit durable is the log: after a crash the WAL is written anew from it."""
        database = self._owner.database
        if database is None:
            await super().sync()
            return
        try:
            await database.log.sync()
        except OSError as error:
            fence(self.access, database, error)
            raise

    def may_unlink(self) -> None:
        """Raises unless all its transactions are in the database file."""
        database = self._owner.database
        if database is None or not self.access.primary:
            return
        if self.detector.committed_frames and not database.is_folded(self._owner.read_now):
            raise self.refuse("unlink_refused", "the WAL holds transactions that are not yet in the database file")
        database.wal_restarted()
        self.access.wal_removed(database.name)


class JournalFile(File):
    """A rollback journal: only of a database that is not replicated yet (it is being made, or not in WAL mode)."""

    __slots__ = ("_owner",)

    def __init__(self, store: Store, access: Access, owner: DatabaseFile, name: str) -> None:
        super().__init__(store, access, name)
        self._owner = owner

    async def truncate(self, size: int) -> None:
        if size == 0:
            await self._owner.adopt_if_wal()
        await super().truncate(size)

    async def may_unlink(self) -> None:
        """The journal's end is the commit: a database that has just become a WAL database enters the log here."""
        await self._owner.adopt_if_wal()


class ShmFile(File):
    """A wal-index: shared memory with a name, worth nothing after a restart, so it never reaches the disk."""

    __slots__ = ("mode",)

    def __init__(self, store: Store, access: Access, name: str, mode: int) -> None:
        super().__init__(store, access, name)
        self.descriptor = os.memfd_create(Path(name).name[-200:], os.MFD_CLOEXEC)
        self.mode = mode

    def ensure_open(self) -> None:
        """It is open as long as it exists."""

    async def sync(self) -> None:
        """Nothing to make durable."""


def fence(access: Access, database: Database, error: OSError) -> None:
    """An fsync failed: what is durable is unknown, so nothing more is promised until a restart has looked."""
    access.fenced = (
        f"fsync of the log of {database.name} failed ({error.strerror}): check the disk, then restart this node"
    )
    log.error("fenced", reason=access.fenced)


def _nothing() -> None:
    """A write that carries several commits is done with the last of them."""
