"""The disk refuses a step at the end of a rollback journal: the commit is refused whole, and what follows is right."""

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
from structlog.testing import capture_logs

from litereplica.mount.journal_file import JournalFile
from litereplica.mount.operations import Operations
from litereplica.mount.rollback import roll_back_abandoned
from litereplica.store.base import advance_base
from litereplica.store.disk import Disk
from litereplica.store.roll_back import NotDurable
from tests.mount.refusing import SIZE, Writer, adopted, changed
from tests.store.named_calls import NamedCalls


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


@pytest.mark.parametrize("step", range(1, 13))
async def test_a_refused_step_refuses_the_commit_and_a_rollback_makes_all_as_it_was(tmp_path: Path, step: int) -> None:
    root = tmp_path / "data"
    disk = RefusingDisk()
    writer, original = await adopted(root, disk)
    before = writer.store.databases["app.db"].position
    file = writer.open()
    pgnos = [1, 2, 3, 5]
    journal = await writer.change(original, pgnos)
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
    pgnos = [1, 2, 3, 5]
    journal = await writer.change(original, pgnos)
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


@pytest.mark.parametrize("cleanly", [True, False])
async def test_a_journal_that_cannot_be_made_durable_is_played_back_all_the_same(tmp_path: Path, cleanly: bool) -> None:
    root = tmp_path / "data"
    disk = NamedCalls()
    writer, original = await adopted(root, disk)
    before = writer.store.databases["app.db"].position
    pgnos = [1, 2, 3, 5]
    journal = await writer.change(original, pgnos)
    disk.refuses = lambda call, path: call in {"unlink", "fdatasync"} and path.name.endswith("-journal")
    with pytest.raises(OSError, match="Input/output"):
        await writer.end(journal)
    disk.well_again()
    assert writer.access.fenced is not None
    writer.tree.close()
    if cleanly:
        writer.store.stop()
    writer.store.close()
    again = Writer(root, Disk())
    assert again.store.databases["app.db"].position == before
    assert again.exact() == original
    again.close()


class TearingDisk(Disk):
    """Takes ``taken`` bytes of one write to a journal, and as many of the next ``again`` ones."""

    __slots__ = ("again", "taken")

    def __init__(self) -> None:
        self.taken, self.again = -1, 0

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if self.taken < 0 or not str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith("-journal"):
            return super().pwrite(descriptor, data, offset)
        super().pwrite(descriptor, data[: self.taken], offset)
        self.again -= 1
        if self.again < 0:
            self.taken = -1
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("taken", [4, 14, 20])
@pytest.mark.parametrize("again", [0, 1])
async def test_an_end_that_is_written_by_half_is_none(tmp_path: Path, taken: int, again: int) -> None:
    disk = TearingDisk()
    writer, original = await adopted(tmp_path / "data", disk)
    before = writer.store.databases["app.db"].position
    file = writer.open()
    pgnos = [1, 2, 3, 5]
    journal = await writer.change(original, pgnos)
    header = journal.read_now(0, 512)
    disk.taken, disk.again = taken, again
    # PERSIST: the journal ends with zeroes.
    with pytest.raises(OSError, match="Input/output"):
        await journal.write(0, bytes(28))
    if not again:
        assert journal.read_now(0, 512) == header
        assert writer.access.fenced is None
        await file.truncate(len(original))
        for pgno in pgnos:
            await file.write((pgno - 1) * SIZE, original[(pgno - 1) * SIZE : pgno * SIZE])
        await journal.write(0, bytes(28))
        assert writer.exact() == original
    else:
        # What is left of the journal undoes nothing: SQLite's rollback ends it with the pages that were refused.
        assert writer.access.fenced is not None
        with pytest.raises(pyfuse3.FUSEError):
            await journal.write(0, bytes(28))
    assert writer.store.databases["app.db"].position == before
    writer.close()


class BlindDisk(Disk):
    """Reads no whole end of a journal while ``blind``."""

    __slots__ = ("blind",)

    def __init__(self) -> None:
        self.blind = False

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self.blind and size == 28:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(descriptor, size, offset)


async def test_a_journal_that_cannot_be_read_is_ended(tmp_path: Path) -> None:
    disk = BlindDisk()
    writer, original = await adopted(tmp_path / "data", disk)
    writer.open()
    journal = await writer.begin(original, [1])
    disk.blind = True
    await journal.write(0, bytes(28))
    assert not journal.is_live
    writer.close()


class MeetingDisk(Disk):
    """Calls ``meets`` on the loop, once, when the database file is made durable on a thread."""

    __slots__ = ("meets",)

    def __init__(self) -> None:
        self.meets: Callable[[], Awaitable[object]] | None = None

    def fdatasync(self, descriptor: int) -> None:
        meets, path = self.meets, Path(f"/proc/self/fd/{descriptor}").readlink()
        if meets is not None and path.name == "app.db":
            self.meets = None
            trio.from_thread.run(meets)
        super().fdatasync(descriptor)


@pytest.mark.parametrize("mode", ["PERSIST", "DELETE"])
@pytest.mark.parametrize("step", ["roll_back", "forget_cached"])
async def test_the_next_transaction_is_not_that_of_the_dead_writer(tmp_path: Path, step: str, mode: str) -> None:
    disk = MeetingDisk()
    writer, original = await adopted(tmp_path / "data", disk)
    database = writer.store.databases["app.db"]
    before = database.position
    file = writer.open()
    pgnos = [1, 2, 3]
    journal = await writer.change(original, pgnos)
    file.is_torn = True  # as after a COMMIT that was refused
    await journal.make_durable()
    following: list[JournalFile] = []

    async def next_transaction() -> None:
        """Somebody else plays the journal back, and begins."""
        await file.truncate(len(original))
        for pgno in pgnos:
            await file.write((pgno - 1) * SIZE, original[(pgno - 1) * SIZE : pgno * SIZE])
        if mode == "PERSIST":
            await journal.write(0, bytes(28))
        else:
            await writer.end(journal)
        following.append(await writer.begin(original, pgnos))
        for pgno, page in sorted(changed(original, pgnos).items()):
            await file.write((pgno - 1) * SIZE, page)

    forgets: Callable[[], object] = lambda: None  # noqa: E731
    if step == "roll_back":
        disk.meets = next_transaction
    else:
        forgets = partial(trio.from_thread.run, next_transaction)
    assert not await roll_back_abandoned(writer.store, journal, forgets)
    assert following[0].is_live
    assert len(file.held) == len(pgnos) + 1
    await writer.end(following[0])
    assert database.position.txid == before.txid + 1
    assert writer.exact()[SIZE : 2 * SIZE] == bytes([2]) * SIZE
    writer.close()


async def test_what_a_failed_fsync_may_have_lost_is_not_taken_for_durable_later(
    tmp_path: Path,
) -> None:
    disk = NamedCalls()
    writer, original = await adopted(tmp_path / "data", disk)
    database = writer.store.databases["app.db"]
    saved = database.saved_base
    writer.open()
    journal = await writer.change(original, [1, 2, 3])
    await writer.end(journal)
    journal = await writer.change(writer.exact(), [2, 3])
    journal.owner.is_torn = True  # as after a COMMIT that was refused
    await journal.make_durable()
    disk.refuses = lambda call, path: call == "fdatasync" and path.name == "app.db"
    with pytest.raises(NotDurable):
        await roll_back_abandoned(writer.store, journal, lambda: None)
    disk.well_again()
    assert await roll_back_abandoned(writer.store, journal, lambda: None)
    database.checkpointed(database.position.txid)
    with pytest.raises(OSError, match="Input/output"):
        await advance_base(database)
    assert database.saved_base == saved
    writer.close()


async def test_it_is_said_when_the_names_in_a_folder_are_not_made_durable(tmp_path: Path) -> None:
    disk = NamedCalls()
    writer, _ = await adopted(tmp_path / "data", disk)
    operations = Operations(writer.store, writer.access)
    operations.tree = writer.tree
    context: Any = SimpleNamespace(pid=1)
    await operations.unlink(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(b"app.db"), context)
    disk.refuses = lambda call, _path: call == "fsync_directory"
    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(pyfuse3.FUSEError):
                await operations.fsyncdir(pyfuse3.FileHandleT(pyfuse3.ROOT_INODE), False)
    assert [line["event"] for line in lines] == ["folder_not_durable"] * 2
    disk.well_again()
    await operations.fsyncdir(pyfuse3.FileHandleT(pyfuse3.ROOT_INODE), False)
    writer.close()
