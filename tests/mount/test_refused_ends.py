"""The disk refuses a step at the end of a rollback journal: the commit is refused whole, and what follows is right."""

import errno
import os
import sqlite3
from pathlib import Path

import pyfuse3
import pytest

from litereplica.ltx.checksum import page_checksum
from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.journal_file import JournalFile
from litereplica.mount.tree import Tree
from litereplica.sqlite.journal import JOURNAL_MAGIC
from litereplica.store.adopt import adopt
from litereplica.store.disk import Disk
from litereplica.store.store import Store

SIZE = 4096


class RefusingDisk(Disk):
    """Refuses the step with a number, once; counts the steps."""

    __slots__ = ("refused", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self.refused = -1

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.refused:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        self._step()
        return super().pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._step()
        super().truncate(descriptor, size)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)


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


@pytest.mark.parametrize("step", range(1, 13))
async def test_a_refused_step_refuses_the_commit_and_a_rollback_makes_all_as_it_was(tmp_path: Path, step: int) -> None:
    root = tmp_path / "data"
    disk = RefusingDisk()
    writer, original = await adopted(root, disk)
    before = writer.store.databases["app.db"].position
    file = writer.open()
    pgnos = [1, 2, 3, 5]
    journal = await writer.begin(original, pgnos)
    for pgno, page in sorted(changed(original, pgnos).items()):
        await file.write((pgno - 1) * SIZE, page)
    disk.steps, disk.refused = 0, step
    try:
        await writer.end(journal)
    except (OSError, pyfuse3.FUSEError):
        assert writer.store.databases["app.db"].position == before
        assert writer.access.fenced is None
        # SQLite plays its journal back, and ends it.
        await file.truncate(len(original))
        for pgno in pgnos:
            await file.write((pgno - 1) * SIZE, original[(pgno - 1) * SIZE : pgno * SIZE])
        await writer.end(journal)
        assert writer.store.databases["app.db"].position == before
        assert writer.exact() == original
    else:
        assert step == 1 or disk.steps < step, "only writing ahead in the log may fail without a word"
        assert writer.store.databases["app.db"].position.txid == before.txid + 1
        assert writer.exact()[:SIZE] != original[:SIZE]
    found = writer.exact()
    writer.close()
    again = Writer(root, Disk())
    assert again.exact() == found
    again.close()


@pytest.mark.parametrize("step", range(1, 13))
async def test_a_process_that_dies_after_a_refused_step_finds_one_of_the_two_states(tmp_path: Path, step: int) -> None:
    root = tmp_path / "data"
    disk = RefusingDisk()
    writer, original = await adopted(root, disk)
    file = writer.open()
    pgnos = [1, 2, 3, 5]
    journal = await writer.begin(original, pgnos)
    for pgno, page in sorted(changed(original, pgnos).items()):
        await file.write((pgno - 1) * SIZE, page)
    disk.steps, disk.refused = 0, step
    refused = False
    try:
        await writer.end(journal)
    except (OSError, pyfuse3.FUSEError):
        refused = True
    writer.close()
    again = Writer(root, Disk())
    found = again.exact()
    assert (found == original) is refused
    assert not journal.path.exists()
    again.close()
