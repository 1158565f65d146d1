"""A -wal file's bytes that were answered and are not written yet, and who waits for a commit.

Knows when they are written, and what the file is with them. Does not know what a write means (mount.wal_file).
"""

import contextlib
import os
from typing import TYPE_CHECKING, Final

import structlog
import trio

from litereplica.mount.access import Access
from litereplica.mount.files import File
from litereplica.mount.unsummed import UnsummedFrames
from litereplica.sqlite.detector import CommitDetector
from litereplica.sqlite.outcome import Examined
from litereplica.sqlite.wal import FRAME_HEADER_BYTES
from litereplica.store.store import Store

if TYPE_CHECKING:
    from litereplica.mount.database_file import DatabaseFile

log = structlog.get_logger()

# For bytes.translate: what differs from a refused write in every byte, whatever it was.
INVERTED: Final = bytes(255 - each for each in range(256))
# Uncommitted frames that are kept back at most: fewer, longer writes, and little to lose sight of.
PENDING_LIMIT_BYTES: Final = 64 * 1024


class KeptFile(File):
    """The file that ``detector`` follows; ``unsummed`` says what of it waits to be completed."""

    __slots__ = (
        "_held",
        "_owner",
        "_pending",
        "_pending_at",
        "_pending_end",
        "_pwrite",
        "_read",
        "_waiting",
        "detector",
        "unsummed",
    )

    def __init__(self, store: Store, access: Access, owner: "DatabaseFile", name: str) -> None:
        super().__init__(store, access, name)
        self._owner = owner
        self.detector = CommitDetector()
        # A commit is being made in pieces: SQLite's locks keep other writers away, this keeps away all others.
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()
        self.unsummed = UnsummedFrames(self.detector)
        # Bytes of uncommitted frames, back to back from ``_pending_at``, answered but not yet written: they go to the
        # file together, at the latest with their commit. Until then they are no more than SQLite's own buffer was;
        # on a primary every other look at the file flushes them first, on a replica (mount.replica_wal) it does not.
        self._pending: list[bytes] = []
        self._pending_at = self._pending_end = 0
        # Bound once: they are called for every frame.
        self._read = self.read_now
        self._pwrite = store.disk.pwrite

    @property
    def owner(self) -> "DatabaseFile":
        """The database file that it belongs to."""
        return self._owner

    @property
    def is_held(self) -> bool:
        """A commit is being made: everybody else waits, ``wait_held``."""
        return self._held

    async def wait_held(self) -> None:
        """Return after that."""
        while self._held:
            await self._waiting.park()

    def hold(self) -> None:
        """Let everybody else wait."""
        self._held = True

    def let_go(self) -> None:
        """And go on."""
        self._held = False
        if self._waiting:
            self._waiting.unpark_all()

    def drop_kept(self) -> None:
        """What is kept belongs to no transaction any more.

        The file becomes as long as if it had been written, because the kernel has counted that. One that is told of
        a shorter file cuts its cache there, whatever is being written (fs/fuse/inode.c, fuse_change_attributes): a page
        whose write is still on its way to us is zeroed behind that length, and the zeroes are what we get.
        """
        if self._pending and self._pending_end > super().size():
            with contextlib.suppress(OSError):
                self.store.disk.truncate(self.descriptor, self._pending_end)
        self._forget_kept()

    def _forget_kept(self) -> None:
        self._pending = []
        self._pending_at = self._pending_end = 0

    def spoil(self, offset: int, data: bytes) -> None:
        """Write over a part of a refused transaction, so that nobody who recovers the WAL finds it."""
        try:
            self._pwrite(self.descriptor, data, offset)
        except OSError as error:
            if super().size() > offset:
                log.warning("refused_not_spoiled", file=self.name, reason=error.strerror)

    def take_kept(self, offset: int) -> bytes:
        """The kept bytes that end at ``offset``, which are the caller's now; others are written. Raises OSError."""
        if self._pending and self._pending_end != offset:
            self.flush()
        kept = b"".join(self._pending)
        self._forget_kept()
        return kept

    def show(self, offset: int, data: bytes) -> None:
        """Let whoever reads find ``data`` there while a commit is held; the file does not get it."""
        self._pending = [data]
        self._pending_at, self._pending_end = offset, offset + len(data)

    def keep(self, offset: int, data: bytes) -> int:
        """Take bytes that complete no transaction."""
        size = len(data)
        try:
            if offset == self._pending_end and self._pending:
                self._pending.append(data)
            else:
                if self._pending:
                    self.flush()
                if size != FRAME_HEADER_BYTES and offset != self._pending_end:
                    self.unsummed.note_overwriting(offset)
                self._pending = [data]
                self._pending_at = offset
            end = self._pending_end = offset + size
            if end - self._pending_at >= PENDING_LIMIT_BYTES and (
                self.access.primary or self.detector.between_frames or end - self._pending_at >= 2 * PENDING_LIMIT_BYTES
            ):
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
        if self._pending and (self._held or not self.access.primary):
            return self._read_beside(offset, size)
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
        if self.access.primary and not self._held:
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

    def flush_before(self, examined: Examined) -> None:
        """Write what is kept, if what is about to come needs it. Raises OSError."""
        try:
            self.flush()
        except OSError:
            if not examined.restart or examined.transactions:
                raise
            # What is kept belongs to the WAL that ends here.
            self.drop_kept()
