"""What SQLite does to its files, without SQLite and without a mount, on a disk that refuses what a test names."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import pytest

from litereplica.ltx.checksum import page_checksum
from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.journal_file import JournalFile
from litereplica.mount.tree import Tree
from litereplica.mount.wal_file import WalFile
from litereplica.sqlite.journal import JOURNAL_MAGIC
from litereplica.sqlite.wal import WalHeader
from litereplica.store.adopt import adopt
from litereplica.store.disk import Disk
from litereplica.store.store import Store

SIZE = 4096


class NamedCalls(Disk):
    """Refuses the calls for which ``refuses(call, path)``, with ``code``."""

    __slots__ = ("code", "refuses")

    def __init__(self) -> None:
        self.refuses: Callable[[str, str], bool] = lambda _call, _path: False
        self.code = errno.EIO

    def _check(self, call: str, file: int | Path) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else file
        if self.refuses(call, str(path)):
            raise OSError(self.code, os.strerror(self.code))

    def well(self) -> None:
        """Refuse nothing any more."""
        self.refuses = lambda _call, _path: False

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        self._check("pwrite", descriptor)
        return super().pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._check("truncate", descriptor)
        super().truncate(descriptor, size)

    def fdatasync(self, descriptor: int) -> None:
        self._check("fdatasync", descriptor)
        super().fdatasync(descriptor)

    def unlink(self, path: Path) -> None:
        self._check("unlink", path)
        super().unlink(path)

    def fsync_directory(self, path: Path) -> None:
        self._check("fsync_directory", path)
        super().fsync_directory(path)


class Writer:
    """What SQLite does to the two files, without SQLite: so that any step may fail."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.disk = disk
        self.store = Store.open(root, disk, "a")
        self.access = Access()
        self.access.primary = True
        self.tree = Tree(self.store, self.access)
        self.path = root / "files" / "app.db"

    def open(self) -> DatabaseFile:
        file = self.tree.database_file("app.db")
        file.ensure_open()
        return file

    async def begin(self, original: bytes, pgnos: list[int], *, is_appliers: bool = False) -> JournalFile:
        self.path.with_name("app.db-journal").touch()
        journal = self.tree.take("app.db-journal", directory=False).file
        assert isinstance(journal, JournalFile)
        journal.ensure_open()
        numbers = (len(pgnos), 7, len(original) // SIZE, 512, SIZE)
        header = b"".join(number.to_bytes(4) for number in numbers)
        await journal.write(0, (bytes(8) + header).ljust(512, b"\0"))
        at = 512
        for pgno in pgnos:
            page = original[(pgno - 1) * SIZE : pgno * SIZE]
            total = 7 + sum(page[place] for place in range(SIZE - 200, 0, -200))
            await journal.write(at, pgno.to_bytes(4) + page + total.to_bytes(4))
            at += SIZE + 8
        write = journal.write_expected if is_appliers else journal.write
        await write(0, JOURNAL_MAGIC + len(pgnos).to_bytes(4))
        return journal

    async def end(self, journal: JournalFile) -> None:
        await journal.unlink(lambda: self.disk.unlink(journal.path))
        self.tree.remove("app.db-journal")

    def exact(self) -> bytes:
        data = self.path.read_bytes()
        database = self.store.databases["app.db"]
        total = 0
        for pgno in range(1, database.page_count + 1):
            total ^= page_checksum(pgno, data[(pgno - 1) * SIZE : pgno * SIZE])
        assert total == database.position.checksum
        return data

    def close(self) -> None:
        self.tree.close()
        self.store.close()


def changed(original: bytes, pgnos: list[int]) -> dict[int, bytes]:
    """New pages: page 1 with the next change counter and one more page, and others."""
    count = len(original) // SIZE + 1
    counter = (int.from_bytes(original[24:28]) + 1).to_bytes(4)
    first = original[:24] + counter + count.to_bytes(4) + original[32:92] + counter + original[96:SIZE]
    pages = {pgno: bytes([pgno]) * SIZE for pgno in pgnos if pgno != 1}
    return {1: first, **pages, count: b"\xaa" * SIZE}


async def adopted(root: Path, disk: Disk) -> tuple[Writer, bytes]:
    """A writer whose database is in the log, and its file."""
    writer = Writer(root, disk)
    with sqlite3.connect(writer.path) as connection:
        connection.execute("CREATE TABLE t (v)")
        connection.execute("INSERT INTO t VALUES (randomblob(40000))")
    connection.close()
    await adopt(writer.store, "app.db")
    return writer, writer.exact()


async def adopted_wal(root: Path, disk: Disk) -> tuple[Writer, bytes, WalFile]:
    """The same in WAL mode, with an empty WAL."""
    writer = Writer(root, disk)
    with sqlite3.connect(writer.path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (v)")
        connection.execute("INSERT INTO t VALUES (randomblob(40000))")
    connection.close()
    await adopt(writer.store, "app.db")
    writer.open()
    writer.path.with_name("app.db-wal").touch()
    wal = writer.tree.take("app.db-wal", directory=False).file
    assert isinstance(wal, WalFile)
    wal.ensure_open()
    return writer, writer.path.read_bytes(), wal


def wal_header(number: int) -> WalHeader:
    """The header of a WAL that begins for the ``number``-th time."""
    return WalHeader.build(page_size=SIZE, checkpoint_sequence=number, salt1=1000 + number, salt2=5)


async def refused(wal: WalFile, offset: int, data: bytes) -> int:
    """The errno that a write is refused with."""
    with pytest.raises(pyfuse3.FUSEError) as error:
        await wal.write_request(offset, data)
    code: int = error.value.errno
    return code
