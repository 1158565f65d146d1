"""Files of a database that is replaced by another of its name, as those see them who had it open before.

Knows how SQLite comes to refuse to go on with each. A read of the database file fails, and so does the question for its
size and owner: who has not opened the WAL yet would open that of the other database, by its name (os_unix.c,
unixOpenSharedMemory, asks before it does). And the wal-index says that it is of a version that SQLite does not know
(wal.c, walIndexReadHdr), which is looked at when a transaction begins. Does not know why they must not go on.

A connection looks at the schema again only when its number has changed (file format, 1.3.9), and without a WAL at any
page only when the change counter has, or the number of pages. Nothing of it tells one history from another: after a
rewind the same numbers may come again, with other tables and other rows behind them.
"""

import errno
from typing import Final

import pyfuse3

from litereplica.mount.files import AppliedHandle, File, ShmFile
from litereplica.sqlite.shm import HEADER_COPY_BYTES, UNKNOWN_VERSION, WalIndexHeader

_HEADER: Final = 2 * WalIndexHeader(
    change=0, big_endian=False, page_size=4096, max_frame=0, page_count=0, s0=0, s1=0, salt1=0, salt2=0,
    version=UNKNOWN_VERSION,
).encode()  # fmt: skip
assert len(_HEADER) == 2 * HEADER_COPY_BYTES


class CutOffHandle:
    """Of the database file: nothing is read or written any more. ``before``: what the handle was.

    Not EIO: of a read that fails so SQLite says that the database is damaged (os_unix.c, seekAndRead).
    """

    __slots__ = ("before",)

    def __init__(self, before: File | AppliedHandle) -> None:
        self.before = before

    async def read(self, _offset: int, _size: int) -> bytes:
        raise pyfuse3.FUSEError(errno.ESTALE)

    async def write_request(self, _offset: int, _data: bytes) -> int:
        raise pyfuse3.FUSEError(errno.ESTALE)

    async def sync(self) -> None:
        """Nothing to make durable."""


class OldIndexHandle:
    """Of the wal-index: whatever is written, its header is one that SQLite refuses."""

    __slots__ = ("_index", "before")

    def __init__(self, before: File | AppliedHandle, index: ShmFile) -> None:
        self.before = before
        self._index = index

    async def read(self, offset: int, size: int) -> bytes:
        return await self.before.read(offset, size)

    async def write_request(self, offset: int, data: bytes) -> int:
        written = await self.before.write_request(offset, data)
        spoil(self._index)
        return written

    async def sync(self) -> None:
        """It is shared memory."""


def spoil(index: ShmFile) -> None:
    """Give a wal-index the header that SQLite refuses; what the kernel has of it has to be dropped afterwards."""
    if index.size():
        index.store.disk.pwrite(index.descriptor, _HEADER, 0)
