"""What the files of the mount have in common, and the wal-index.

Does not know databases (mount.database_file), journals (mount.journal_file), the WAL (mount.wal_file), inodes or
handles (mount.tree, mount.operations).
"""

import errno
import os
from pathlib import Path

import pyfuse3
import structlog

from litereplica.mount.access import Access
from litereplica.mount.errors import translate
from litereplica.store.commit import PendingCommit
from litereplica.store.database import Database
from litereplica.store.store import Store

log = structlog.get_logger()


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

    async def write_applied(self, offset: int, data: bytes) -> int:
        """Take what the applier of a replica writes."""
        return self.store.disk.pwrite(self.descriptor, data, offset)

    async def write_expected(self, offset: int, data: bytes) -> int:
        """Take what the applier of a primary writes: a transaction of another node (Operations.expect)."""
        return await self.write(offset, data)

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

    async def truncate_applied(self, size: int) -> None:
        """Let the applier of a replica cut it."""
        self.ensure_open()
        self.store.disk.truncate(self.descriptor, size)

    async def sync(self) -> None:
        descriptor = self.descriptor
        await self.store.calls.run(lambda: self.store.disk.fdatasync(descriptor))

    async def sync_applied(self) -> None:
        """Make durable here what the applier has written."""
        await self.sync()

    def refuse(self, event: str, reason: str, code: int = errno.EACCES) -> pyfuse3.FUSEError:
        """Log why, once per refusal, and make the error."""
        log.warning(event, file=self.name, reason=reason)
        return pyfuse3.FUSEError(code)


class AppliedHandle:
    """A file as the applier has it open: on a replica it applies, on the primary it commits for other nodes."""

    __slots__ = ("file",)

    def __init__(self, file: File) -> None:
        self.file = file

    async def read(self, offset: int, size: int) -> bytes:
        return await self.file.read(offset, size)

    async def write_request(self, offset: int, data: bytes) -> int:
        try:
            if self.file.access.primary:
                return await self.file.write_expected(offset, data)
            return await self.file.write_applied(offset, data)
        except BaseException as error:  # noqa: BLE001  the edge: everything becomes the kernel's
            raise self.file.failure(error) from None

    async def sync(self) -> None:
        await self.file.sync_applied()


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
    fence_for(access, f"fsync of the log of {database.name} failed", error)


async def make_durable(access: Access, commit: PendingCommit) -> None:
    """Bring what is about to happen to the disk. Raises OSError, and this node accepts nothing more then."""
    try:
        await commit.make_durable()
    except OSError as error:
        fence(access, commit.database, error)
        raise


def fence_for(access: Access, problem: str, error: OSError) -> None:
    """Accept nothing more until a restart has looked.

    The first one counts: those that come after it only repeat it.
    """
    if access.fenced is not None:
        return
    access.fenced = f"{problem} ({error.strerror}): check the disk, then restart this node"
    log.error("fenced", reason=access.fenced)
    access.told_fenced(access.fenced)
