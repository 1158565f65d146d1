"""The files of the mount, one class a kind.

Knows what a write, a truncate, an fsync means for a database file, its wal-index and its journal; the WAL has a module
of its own (mount.wal_file). Does not know inodes or handles (mount.tree, mount.operations).
"""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyfuse3
import structlog

from litereplica.mount.access import Access
from litereplica.mount.errors import translate
from litereplica.sqlite.pages import DATABASE_MAGIC, is_database
from litereplica.store.adopt import adopt, is_wal_database
from litereplica.store.database import Database
from litereplica.store.folded import changed_pages
from litereplica.store.store import Store

if TYPE_CHECKING:
    from litereplica.mount.wal_file import WalFile

log = structlog.get_logger()

FIRST_BYTES: Final = 100


class File:
    """One file of the mount: a backing file that is opened when first needed and shared by all handles."""

    __slots__ = ("access", "descriptor", "modified_ns", "name", "store", "unlinked")

    def __init__(self, store: Store, access: Access, name: str) -> None:
        self.store = store
        self.access = access
        self.name = name
        self.descriptor = -1
        self.unlinked = False
        # The modified time that the kernel is told; None until it first asks. It stays as it is while the kernel knows
        # the file: a new one makes it drop every page that it caches (FUSE_AUTO_INVAL_DATA, on by default), though
        # every change of the content has come through its own cache.
        self.modified_ns: int | None = None

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

    async def write_request(self, offset: int, data: bytes) -> int:
        """``write`` for the kernel: every error is its own."""
        try:
            return await self.write(offset, data)
        except BaseException as error:  # noqa: BLE001  the edge: everything becomes the kernel's
            raise self.failure(error) from None

    def failure(self, error: BaseException) -> BaseException:
        """What the kernel is told of ``error``; cancellation and the like pass."""
        return translate(error, "write")

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

    __slots__ = ("_known", "journal", "rejected", "wal")

    def __init__(self, store: Store, access: Access, name: str) -> None:
        super().__init__(store, access, name)
        self.wal: WalFile | None = None
        self.journal: JournalFile | None = None
        # The first bytes have been seen to be a database's.
        self._known = False
        # Somebody tried to make another kind of file of it; when it is closed, nothing of it stays.
        self.rejected = False

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
            if self.wal is not None and self.wal.is_unsummed and self.access.primary:
                raise self.wal.refuse_unsummed()
            if self.wal is not None and self.wal.detector.unsettled and self.access.primary:
                # A checkpoint copies what it found committed, whether a write completed that or not.
                await self.wal.settle()
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
                raise self._reject()
        elif not is_database(self.read_now(0, FIRST_BYTES)) and offset:
            raise self.refuse("not_a_database", "the first page of this file is not SQLite's; it is left as it is")
        if offset == 0 and is_database(data):
            self._known = True

    def _reject(self) -> pyfuse3.FUSEError:
        """Once in the log for each file, however often its writer tries."""
        if self.rejected:
            return pyfuse3.FUSEError(errno.EACCES)
        self.rejected = True
        return self.refuse(
            "not_a_database",
            "only SQLite databases can be replicated, so only they are kept in the mount: put this file elsewhere",
        )

    async def truncate(self, size: int) -> None:
        database = self.database
        if database is not None:
            folding = self.wal is not None and self.wal.detector.committed_frames
            if self.access.primary and not (folding and self._is_in_wal_beyond(database, size)):
                raise self.refuse("truncate_refused", "a replicated database is only shortened by SQLite's checkpoint")
            if not database.log.durable:
                await self._sync_log(database)
        await super().truncate(size)

    @staticmethod
    def _is_in_wal_beyond(database: Database, size: int) -> bool:
        """Whether a checkpoint may leave ``size`` bytes: pages beyond them have to be in the WAL.

        It cuts the file to the size at the commit that it has read, and commits go on meanwhile (walCheckpoint).
        """
        beyond = range(size // database.page_size + 1, database.page_count + 1)
        return not beyond or changed_pages(database.log, database.base.txid).issuperset(
            pgno for pgno in beyond if pgno != database.lock_page
        )

    async def adopt_if_wal(self) -> None:
        """Take a database that has become a WAL database into the log; nothing when it is there or is none."""
        if self.database is None and not self.unlinked and self.access.primary and is_wal_database(self.path):
            await adopt(self.store, self.name)


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
