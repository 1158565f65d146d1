"""What the applier of a primary puts back is no transaction, whatever went wrong: it cuts its journal then."""

import errno
import sqlite3
from pathlib import Path

import pyfuse3
import pytest

from litereplica.ltx.format import Origin
from litereplica.ltx.position import Position
from litereplica.mount.journal_file import JournalFile
from litereplica.store.disk import Disk
from tests.mount.refusing import SIZE, Writer, adopted

ORIGIN = Origin("b", 7)
PGNOS = [1, 2, 3, 5]


class Refused:
    """A transaction of another node that was written and refused; ``put_back``: so many of its pages."""

    def __init__(self, writer: Writer, original: bytes) -> None:
        self.writer = writer
        self.original = original
        self.position = writer.store.databases["app.db"].position
        self.file = writer.open()

    async def begin(self) -> JournalFile:
        journal = await self.writer.change(self.original, PGNOS, is_appliers=True)
        self.writer.access.expected["app.db"] = self.position, ORIGIN
        return journal

    async def put_back(self, count: int) -> None:
        for pgno in PGNOS[:count]:
            await self.file.write((pgno - 1) * SIZE, self.original[(pgno - 1) * SIZE : pgno * SIZE])
        if count == len(PGNOS):
            await self.file.truncate(len(self.original))


@pytest.mark.parametrize("count", range(len(PGNOS) + 1))
async def test_what_is_not_put_back_is_not_committed(tmp_path: Path, count: int) -> None:
    writer, original = await adopted(tmp_path / "data", Disk())
    refused = Refused(writer, original)
    journal = await refused.begin()
    await refused.put_back(count)
    if count < len(PGNOS):
        with pytest.raises(pyfuse3.FUSEError) as found:
            await journal.truncate(0)
        assert found.value.errno == errno.EIO
        assert journal.is_live
        await refused.put_back(len(PGNOS))
    await journal.truncate(0)
    assert not journal.is_live
    await writer.end(journal)
    assert writer.store.databases["app.db"].position == refused.position
    assert writer.access.expected["app.db"] == (refused.position, ORIGIN)
    assert writer.exact() == original
    writer.close()


async def test_its_removal_is_the_commit(tmp_path: Path) -> None:
    writer, original = await adopted(tmp_path / "data", Disk())
    refused = Refused(writer, original)
    journal = await refused.begin()
    await writer.end(journal)
    assert writer.store.databases["app.db"].position.txid == refused.position.txid + 1
    assert not writer.access.expected
    assert writer.exact() != original
    writer.close()


async def test_an_application_s_journal_after_it_is_the_application_s(tmp_path: Path) -> None:
    """Though the applier's last one was refused at its very beginning."""
    writer, original = await adopted(tmp_path / "data", Disk())
    writer.access.fenced = "for a moment"
    with pytest.raises(pyfuse3.FUSEError):
        await writer.begin(original, PGNOS, is_appliers=True)
    writer.access.fenced = None
    journal = await writer.change(original, PGNOS)
    assert not journal.is_appliers
    await writer.end(journal)
    assert writer.store.databases["app.db"].position.txid == 2
    writer.close()


@pytest.mark.parametrize("how", ["cut", "removed"])
async def test_a_file_that_no_log_knows_is_not_logged_by_putting_it_back(tmp_path: Path, how: str) -> None:
    """A replica makes a database where the primary has an unknown file: it is refused, and the file stays as it is."""
    writer = Writer(tmp_path / "data", Disk())
    with sqlite3.connect(writer.path) as connection:
        connection.execute("CREATE TABLE own (v)")
    connection.close()
    original = writer.path.read_bytes()
    file = writer.open()
    journal = await writer.begin(original, [1, 2], is_appliers=True)
    writer.access.expected["app.db"] = Position.ZERO, ORIGIN
    for pgno in (1, 2):
        await file.write((pgno - 1) * SIZE, bytes(SIZE - 1) + b"x" if pgno == 2 else original[:SIZE])
    for pgno in (1, 2):
        await file.write((pgno - 1) * SIZE, original[(pgno - 1) * SIZE : pgno * SIZE])
    if how == "cut":
        await journal.truncate(0)
    await writer.end(journal)
    assert not journal.is_live
    assert "app.db" not in writer.store.databases
    assert writer.path.read_bytes() == original
    writer.close()
