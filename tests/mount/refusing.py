"""What SQLite does to its files, without SQLite and without a mount: so that any step may fail."""

import sqlite3
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

    async def change(self, original: bytes, pgnos: list[int], *, is_appliers: bool = False) -> JournalFile:
        """Everything of a transaction but its end."""
        journal = await self.begin(original, pgnos, is_appliers=is_appliers)
        file = self.open()
        for pgno, page in sorted(changed(original, pgnos).items()):
            await file.write((pgno - 1) * SIZE, page)
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
