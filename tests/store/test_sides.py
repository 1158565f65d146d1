"""The WAL and the journal of a content that is gone never come into another one, and never stay for good."""

import errno
import os
from pathlib import Path

import pytest

from litereplica.errors import Corrupt
from litereplica.store.roll_back import journal_of
from tests.store.application import NAME, Application, open_store
from tests.store.faulty_disk import FaultyDisk, Stopped
from tests.store.journals import OpenTransaction, write_journal
from tests.store.test_install import AT, SNAPSHOT, check, install, take_record, waiting, with_history

LOSSES = [None, "nothing", "everything", "random"]


def wal_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


async def folded(root: Path, disk: FaultyDisk, commits: int) -> Application:
    app = with_history(open_store(root, disk), commits)
    await app.checkpoint()
    await app.store.advance_base(app.database)
    return app


@pytest.mark.parametrize("keep", LOSSES)
async def test_stopped_after_any_step_of_an_install_the_old_journal_is_not_played_into_the_new_file(
    tmp_path: Path, keep: str | None
) -> None:
    for step in range(200):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        app = await folded(root, disk, 8)
        path = app.database.file_path
        assert app.database.page_count < len(SNAPSHOT)
        OpenTransaction(app.database, [1, 2])
        wal_beside(path).write_bytes(b"old")
        disk.stop_after = disk.steps + step
        try:
            install(app.store, apart=True)
        except Stopped:
            done = False
        else:
            done = True
            assert not journal_of(path).exists()
            assert not wal_beside(path).exists()
        app.store.close()
        disk.revive()
        if keep is not None:
            disk.lose_power(keep, step)
        store = open_store(root, disk)
        database = store.databases[NAME]
        if database.position == AT:
            check(database, SNAPSHOT, AT)
        else:
            assert not done
            app.go_on(store)
            app.check()
        assert waiting(database) == []
        assert not journal_of(path).exists()
        assert not wal_beside(path).exists()
        store.close()
        if done:
            assert step > 10
            return
    pytest.fail("it does not end")


@pytest.mark.parametrize("keep", LOSSES)
@pytest.mark.parametrize("unlinked", [False, True])
async def test_stopped_after_any_step_of_a_start_the_sides_of_a_dropped_database_go(
    tmp_path: Path, unlinked: bool, keep: str | None
) -> None:
    for step in range(200):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        app = await folded(root, disk, 8)
        path = app.database.file_path
        for side in (journal_of(path), wal_beside(path)):
            side.write_bytes(b"old")
        app.database.drop()
        if unlinked:
            # Who does that removes the sides next.
            disk.unlink(path)
        app.store.close()
        disk.revive()
        disk.stop_after = step
        try:
            store = open_store(root, disk)
        except Stopped:
            disk.revive()
            if keep is not None:
                disk.lose_power(keep, step)
            store, done = open_store(root, disk), False
        else:
            done = True
        assert not store.databases[NAME].exists
        assert [each.name for each in path.parent.iterdir()] == []
        assert not (store.databases[NAME].directory / "dropped").exists()
        store.close()
        if done:
            assert step > 5
            return
    pytest.fail("it does not end")


async def test_a_journal_that_cuts_pages_off_which_no_record_brings_back_is_not_this_files(tmp_path: Path) -> None:
    root = tmp_path / "data"
    app = await folded(root, FaultyDisk(root, tmp_path / "graves"), 20)
    path, pages = app.database.file_path, len(app.oracle[20])
    assert pages > 4
    app.store.close()
    # What it puts back is the same in both, so that its pages alone do not tell.
    write_journal(path, pages - 2, {1: app.oracle[20][1]})
    with pytest.raises(Corrupt, match=f"page {pages - 1} of .*journal"):
        open_store(root)


class RefusingDisk(FaultyDisk):
    """One operation on one path is refused."""

    __slots__ = ("refused",)

    refused: tuple[str, Path] | None

    def revive(self) -> None:
        super().revive()
        self.refused = None

    def _refuse(self, operation: str, path: Path) -> None:
        if self.refused == (operation, path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def rename(self, source: Path, target: Path) -> None:
        self._refuse("rename", target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._refuse("unlink", path)
        super().unlink(path)


@pytest.mark.parametrize("operation", ["rename", "unlink"])
async def test_a_content_that_the_disk_does_not_let_into_place_takes_no_record_until_a_start_has_put_it_there(
    tmp_path: Path, operation: str
) -> None:
    root = tmp_path / "data"
    disk = RefusingDisk(root, tmp_path / "graves")
    app = await folded(root, disk, 8)
    path = app.database.file_path
    OpenTransaction(app.database, [1])
    disk.refused = (operation, path if operation == "rename" else journal_of(path))
    with pytest.raises(OSError, match="Input/output"):
        install(app.store, apart=True)
    disk.refused = None
    # Nor is this node a candidate: it would write to a file that is not at its position.
    assert app.database.log.failure is not None
    with pytest.raises(OSError, match="restart this node"):
        take_record(app.database, {3: bytes(512)}, 11)
    await app.store.maintain(1e9, 1 << 40)
    assert app.database.log.failure is not None
    app.store.close()
    store = open_store(root, disk)
    check(store.databases[NAME], SNAPSHOT, AT)
    assert not journal_of(path).exists()
    store.close()
