"""What the disk refuses in the middle of a step leaves what this process knows and what a start would find the same."""

from pathlib import Path

import pytest

from litereplica.ltx.position import Position
from litereplica.store.database import CHECKSUMS_NAME, Database
from litereplica.store.install import end_install
from litereplica.store.meta import META_NAME, load_meta
from tests.store.application import NAME, open_store, rolling
from tests.store.forgetful_disk import ForgetfulDisk
from tests.store.named_calls import NamedCalls
from tests.store.test_install import SNAPSHOT, check, install, started_again, take_record, waiting, with_history


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("commits", [40, 60])
async def test_a_snapshot_that_cannot_be_read_is_refused_before_anything_has_changed(
    tmp_path: Path, commits: int, stops: bool
) -> None:
    disk = NamedCalls()
    store = open_store(tmp_path / "data", disk)
    app = with_history(store, commits)
    await app.checkpoint()
    await store.advance_base(app.database)
    disk.refuses = lambda operation, _path: operation == "pread"
    with pytest.raises(OSError, match="Input/output"):
        install(store)
    disk.well_again()
    store = started_again(store, stops=stops)
    app.go_on(store)
    assert app.acknowledged == commits
    app.check()
    assert waiting(app.database) == []
    store.close()


async def test_a_base_that_the_disk_refused_to_note_is_noted_the_next_time_and_the_log_kept_until_then(
    tmp_path: Path,
) -> None:
    disk = NamedCalls()
    store = open_store(tmp_path / "data", disk)
    app = with_history(store, 40)
    await app.checkpoint()
    database = app.database
    disk.refuses = lambda operation, path: (operation, path.name) == ("rename", META_NAME)
    for _ in range(2):
        await store.maintain(-60, 1 << 40)
        assert database.log.first_txid == 1
        assert database.saved_base == load_meta(database.directory).base == Position.ZERO
    disk.well_again()
    await store.maintain(-60, 1 << 40)
    assert database.log.first_txid > 1
    assert database.saved_base == load_meta(database.directory).base == database.position
    app.commit()
    await app.sync()
    store.close()
    store = open_store(tmp_path / "data")
    app.go_on(store)
    assert app.acknowledged == 41
    app.check()
    store.close()


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("operation", ["rename", "fsync_directory"])
async def test_commits_after_a_snapshot_that_the_disk_refused_are_not_given_up_by_a_start(
    tmp_path: Path, operation: str, stops: bool
) -> None:
    disk = NamedCalls()
    store = open_store(tmp_path / "data", disk)
    app = with_history(store, 60)
    await app.checkpoint()
    await store.advance_base(app.database)
    before = load_meta(app.database.directory)
    _refuse_meta(disk, app.database, operation, times=1)
    with pytest.raises(OSError, match="Input/output"):
        install(store)
    assert load_meta(app.database.directory) == before
    app.commit()
    await app.sync()
    store = started_again(store, stops=stops)
    app.go_on(store)
    assert app.acknowledged == 61
    app.check()
    assert not any(store.diverged.iterdir())
    store.close()


def test_where_nobody_knows_whether_a_snapshot_counts_for_a_start_nothing_is_logged_until_then(tmp_path: Path) -> None:
    disk = NamedCalls()
    store = open_store(tmp_path / "data", disk)
    app = with_history(store, 60)
    _refuse_meta(disk, app.database, "fsync_directory", times=1 << 40)
    with pytest.raises(OSError, match="Input/output"):
        install(store)
    disk.well_again()
    with pytest.raises(OSError, match="restart this node"):
        app.commit()
    with pytest.raises(OSError, match="restart this node"):
        store.stop()
    store.close()
    store = open_store(tmp_path / "data")
    app.go_on(store)
    assert app.acknowledged == 60
    app.check()
    store.close()


def _refuse_meta(disk: NamedCalls, database: Database, operation: str, times: int) -> None:
    """Refuse that the next meta file gets its name, or that this is made durable, and so ``times`` altogether."""
    is_named, left = False, times

    def refuses(asked: str, path: Path) -> bool:
        nonlocal is_named, left
        if asked == "rename" and path == database.directory / META_NAME:
            is_named = True
            refused = operation == "rename"
        else:
            refused = is_named and operation == "fsync_directory" == asked and path == database.directory
        left -= refused
        return refused and left >= 0

    disk.refuses = refuses


def test_page_checksums_that_a_failed_fdatasync_may_have_lost_are_written_again(tmp_path: Path) -> None:
    disk = ForgetfulDisk()
    store = open_store(tmp_path / "data", disk)
    with_history(store, 60)
    disk.refuses = lambda path: path.name == CHECKSUMS_NAME
    database = install(store)
    assert database.install_failure is not None
    path = database.directory / CHECKSUMS_NAME
    assert disk.lost_bytes(path) == path.stat().st_size
    disk.well_again()
    end_install(database)
    assert disk.lost_bytes(path) == 0
    database.installed()
    take_record(database, {3: bytes(512)}, 11)
    content = {**SNAPSHOT, 3: bytes(512)}
    at = database.position
    assert at == Position(51, rolling(content))
    store.close()
    store = open_store(tmp_path / "data")
    check(store.databases[NAME], content, at)
    store.close()
