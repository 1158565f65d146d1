"""What is kept is the database as its last transaction left it, whatever an application has open meanwhile."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from litereplica.store.disk import Disk
from litereplica.store.diverged import ENTRY_NAME, Entry, entries, export_entry, forget_kept_logs
from litereplica.store.keep import NotKept, keep
from litereplica.store.reopen import segment_files
from litereplica.store.rewind import Unreachable, content_at
from litereplica.store.store import Store
from tests.store.application import Application, open_store
from tests.store.journals import OpenTransaction, write_journal
from tests.store.test_rewind import data_of, history, position_at

COMMON = 25


async def keep_from(app: Application, common: int = COMMON) -> Entry:
    at = position_at(app, common)
    return await keep(app.database, at, common=True, primary="b", primary_epoch=2, reason="test")


def check(store: Store, entry: Entry, app: Application, folder: Path) -> None:
    assert list(entries(store.diverged)) == [entry]
    assert entry.whole
    export_entry(store.diverged, entry, folder / "export.db")
    assert (folder / "export.db").read_bytes() == data_of(app.oracle[app.acknowledged])


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("fold_at", [20, 40])
async def test_pages_of_a_transaction_that_is_open_are_not_kept(tmp_path: Path, fold_at: int, grows: bool) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, 3, fold_at=fold_at)
    pages = min(len(app.oracle[fold_at]), len(app.oracle[40]))
    transaction = OpenTransaction(app.database, list(range(1, pages + 1, 2)), grows=grows)
    entry = await keep_from(app)
    check(store, entry, app, tmp_path)
    # Going back, begun anew after its end, takes the same entry.
    transaction.roll_back()
    assert await keep_from(app) == entry
    store.close()


async def test_a_transaction_that_has_cut_the_file_is_undone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, 3, fold_at=40)
    pages = len(app.oracle[40])
    OpenTransaction(app.database, list(range(2, pages + 1)), grows=False)
    app.database.open_pages.cut(1)
    os.truncate(app.database.file_path, 512)
    check(store, await keep_from(app), app, tmp_path)
    store.close()


async def test_a_journal_that_nothing_was_written_under_protects_nothing(tmp_path: Path) -> None:
    """Its magic is not in its backing file, and what that holds was not made durable."""
    store = open_store(tmp_path / "data")
    app = await history(store, 3, fold_at=40)
    journal = write_journal(app.database.file_path, 1, {1: b"\xaa" * 512})
    with journal.open("r+b") as file:
        file.write(bytes(8))
    check(store, await keep_from(app), app, tmp_path)
    store.close()


class EventfulDisk(Disk):
    """Something happens just after the database file was read for the first time."""

    __slots__ = ("path", "then")

    def __init__(self) -> None:
        self.path = Path()
        self.then: Callable[[], object] = lambda: None

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        data = super().pread(descriptor, size, offset)
        if data and Path(f"/proc/self/fd/{descriptor}").readlink() == self.path:
            then, self.then = self.then, lambda: None
            then()
        return data


@pytest.mark.parametrize("journal_mode", ["DELETE", "TRUNCATE"])
async def test_a_transaction_that_is_rolled_back_while_the_file_is_copied(tmp_path: Path, journal_mode: str) -> None:
    disk = EventfulDisk()
    store = open_store(tmp_path / "data", disk)
    app = await history(store, 3, fold_at=40)
    transaction = OpenTransaction(app.database, [1, 2, 3])
    disk.path, disk.then = app.database.file_path, lambda: transaction.roll_back(journal_mode)
    check(store, await keep_from(app), app, tmp_path)
    store.close()


@pytest.mark.parametrize("under_a_journal", [False, True])
async def test_a_page_that_is_not_what_the_log_says_is_not_called_kept(tmp_path: Path, under_a_journal: bool) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, 3, fold_at=40)
    transaction = OpenTransaction(app.database, [2, 3], grows=False) if under_a_journal else None
    with app.database.file_path.open("r+b") as file:
        file.seek(0)
        file.write(b"\xdd" * 512)
    with pytest.raises(NotKept, match="first one is page 1") as failure:
        await keep_from(app)
    # While something lives that may yet end, it may be another page then.
    assert failure.value.lasting == (not under_a_journal)
    assert not list(store.diverged.iterdir())
    if transaction is not None:
        transaction.before = data_of(app.oracle[40])
        transaction.roll_back()
        check(store, await keep_from(app), app, tmp_path)
    store.close()


async def test_to_go_back_under_an_open_transaction_a_snapshot_is_needed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = Application(store)
    app.start()
    app.commit({pgno: app.page() for pgno in range(1, 30)}, 29)
    await app.checkpoint()
    await store.advance_base(app.database)
    app.commit({1: app.page()}, 29)
    await store.maintain(age_s=-60, size_bytes=1 << 40)
    app.commit({2: app.page()}, 29)
    OpenTransaction(app.database, [20])
    entry = await keep_from(app, 2)
    check(store, entry, app, tmp_path)
    with pytest.raises(Unreachable):
        await content_at(app.database, position_at(app, 2))
    store.close()


class UnsyncedDisk(Disk):
    """``refuses``: no directory becomes durable. ``unsynced``: those of whose names some may not be."""

    __slots__ = ("refuses", "unsynced")

    def __init__(self) -> None:
        self.refuses = False
        self.unsynced: set[Path] = set()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.unsynced |= {source.parent, target.parent}
        self.refuses = self.refuses or target.name == ENTRY_NAME

    def fsync_directory(self, path: Path) -> None:
        if self.refuses:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync_directory(path)
        self.unsynced.discard(path)


async def test_an_entry_whose_name_could_not_be_made_durable_is_so_before_it_is_taken_for_kept(tmp_path: Path) -> None:
    disk = UnsyncedDisk()
    store = open_store(tmp_path / "data", disk)
    app = await history(store, 3, fold_at=20)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            await keep_from(app)
    disk.refuses = False
    entry = await keep_from(app)
    assert not {each for each in disk.unsynced if each.is_relative_to(store.diverged)}
    check(store, entry, app, tmp_path)
    store.close()


async def test_a_log_that_was_set_aside_goes_only_when_the_entry_that_has_it_all_is_durable(tmp_path: Path) -> None:
    disk = UnsyncedDisk()
    store = open_store(tmp_path / "data", disk)
    app = await history(store, 3, fold_at=20)
    with pytest.raises(OSError, match="Input/output"):
        await keep_from(app)
    # As an install that was killed has left it.
    aside = store.diverged / f"{app.database.directory.name}@aside"
    shutil.copytree(app.database.directory, aside, ignore=lambda _, names: [n for n in names if ".ltx" not in n])
    with pytest.raises(OSError, match="Input/output"):
        forget_kept_logs(store)
    assert segment_files(aside)
    disk.refuses = False
    forget_kept_logs(store)
    assert not aside.exists()
    check(store, await keep_from(app), app, tmp_path)
    store.close()
