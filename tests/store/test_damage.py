"""What is damage, what is a torn tail, and what is made anew."""

import os
from pathlib import Path

import pytest

from litereplica.errors import Corrupt, Refused
from litereplica.store.meta import META_NAME, decode_meta
from litereplica.store.stopped import verify_stopped
from tests.store.application import NAME, open_store
from tests.store.directory import COMMITS, damage, folder, make, segments, snapshot_of
from tests.store.faulty_disk import FaultyDisk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_a_file_that_somebody_changed_while_the_node_was_stopped_is_refused(root: Path) -> None:
    await make(root, clean=True)
    damage(root / "files" / NAME, 700)
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match="does not hold what its log says"):
        open_store(root)
    assert snapshot_of(root) == before


async def test_a_missing_file_is_refused_and_not_made_anew(root: Path) -> None:
    await make(root, clean=True)
    (root / "files" / NAME).unlink()
    with pytest.raises(Corrupt, match="is missing"):
        open_store(root)
    assert not (root / "files" / NAME).exists()


@pytest.mark.parametrize("change", ["gone", "short", "long", "wrong", "foreign"])
@pytest.mark.parametrize("clean", [False, True])
async def test_page_checksums_are_made_anew_when_their_file_is_no_good(root: Path, change: str, clean: bool) -> None:
    app = await make(root, clean=clean)
    path = folder(root) / "checksums"
    if change == "gone":
        path.unlink()
    elif change == "short":
        os.truncate(path, 100)
    elif change == "long":
        with path.open("ab") as file:
            file.write(b"\7" * 100_000)
    elif change == "wrong":
        damage(path, 64, b"\7" * 8)
    else:
        path.write_bytes(b"what is this" * 10_000)
    store = open_store(root)
    app.go_on(store)
    app.check()
    app.commit()
    app.check(file=False)
    store.close()


async def test_a_torn_tail_is_dropped(root: Path) -> None:
    app = await make(root, clean=False)
    store = open_store(root)
    app.go_on(store)
    app.commit()
    start = app.database.log.bounds(app.database.log.segment_of(COMMITS + 1), COMMITS + 1)[0]
    store.close()
    os.truncate(segments(root)[-1], start + 200)
    store = open_store(root)
    app.go_on(store)
    assert app.acknowledged == COMMITS
    app.check()
    assert segments(root)[-1].stat().st_size == start
    store.close()


async def test_zeroes_written_ahead_are_no_damage(root: Path) -> None:
    app = await make(root, clean=False)
    with segments(root)[-1].open("ab") as file:
        file.write(bytes(600_000))
    store = open_store(root)
    app.go_on(store)
    app.check()
    store.close()


@pytest.mark.parametrize("data", [b"\xff\x01\x02", bytes(3000)])
@pytest.mark.parametrize("clean", [False, True])
async def test_damage_in_the_middle_is_refused_by_name_and_nothing_changes(
    root: Path, data: bytes, clean: bool
) -> None:
    app = await make(root, clean=clean)
    if clean:
        # The sidecar spares the scan after a clean stop: the damage is found when the records are read.
        segments(root)[-1].with_suffix(".idx").unlink()
    newest = segments(root)[-1]
    first = int(newest.stem, 16)
    assert first < COMMITS
    damage(newest, 0 if len(data) > 100 else 300, data)
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match=f"{first:016x}"):
        open_store(root)
    assert snapshot_of(root) == before
    del app


async def test_damage_that_was_durable_is_refused_also_at_the_very_end(root: Path) -> None:
    await make(root, clean=False)
    path = segments(root)[-1]
    end = len(path.read_bytes().rstrip(b"\0"))
    damage(path, end - 50)
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match="durable"):
        open_store(root)
    assert snapshot_of(root) == before


async def test_after_a_power_loss_what_came_after_the_last_sync_may_be_torn_anywhere(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    app = await make(root, clean=False, disk=disk)
    disk.revive()
    store = open_store(root, disk, segment_bytes=1 << 20)
    app.go_on(store)
    await app.sync()
    for _ in range(10):
        app.commit()
    starts = [app.database.log.bounds(app.database.log.segment_of(txid), txid)[0] for txid in range(31, 41)]
    newest = segments(root)[-1]
    store.close()
    disk.lose_power("everything")
    damage(newest, starts[3] + 100)
    store = open_store(root, disk)
    app.go_on(store)
    assert app.acknowledged == COMMITS + 3
    app.check()
    store.close()


async def test_a_missing_segment_is_refused(root: Path) -> None:
    await make(root, clean=False, checkpoint=False)
    found = segments(root)
    assert len(found) > 3
    kept = found[2].read_bytes()
    found[2].unlink()
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match=f"{int(found[2].stem, 16):016x}"):
        open_store(root)
    assert snapshot_of(root) == before
    found[2].write_bytes(kept)
    found[0].unlink()
    with pytest.raises(Corrupt, match="begins at"):
        open_store(root)


@pytest.mark.parametrize("clean", [False, True])
async def test_a_missing_newest_segment_is_refused(root: Path, clean: bool) -> None:
    await make(root, clean=clean)
    segments(root)[-1].unlink()
    with pytest.raises(Corrupt, match="durable"):
        open_store(root)


async def test_a_missing_sidecar_only_costs_time(root: Path) -> None:
    app = await make(root, clean=True)
    for path in folder(root).glob("*.idx"):
        path.unlink()
    store = open_store(root)
    app.go_on(store)
    app.check()
    assert app.database.log.checksum_at(1) is not None
    store.close()


async def test_any_damaged_byte_of_the_meta_file_is_noticed(root: Path) -> None:
    await make(root, clean=True)
    path = folder(root) / META_NAME
    good = path.read_bytes()
    for offset in range(len(good)):
        bad = good[:offset] + bytes([good[offset] ^ 0x41]) + good[offset + 1 :]
        with pytest.raises((Corrupt, Refused)):
            decode_meta(bad, path)
    for size in range(len(good)):
        with pytest.raises(Corrupt):
            decode_meta(good[:size], path)
    path.write_bytes(good[:-1])
    with pytest.raises(Corrupt, match="meta is damaged"):
        open_store(root)


@pytest.mark.parametrize("left", ["segments", "a content on its way", "a dropped file"])
async def test_a_folder_that_has_lost_its_meta_file_is_refused_and_nothing_changes(root: Path, left: str) -> None:
    await make(root, clean=False)
    (folder(root) / META_NAME).unlink()
    if left != "segments":
        for path in folder(root).glob("00*"):
            path.unlink()
        name = "dropped" if left == "a dropped file" else f"install-{7:016x}-{8:016x}"
        (folder(root) / name).write_bytes(b"the only copy")
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match=r"no meta file.*move"):
        open_store(root)
    assert snapshot_of(root) == before
    with pytest.raises(Corrupt, match="no meta file"):
        verify_stopped(root, NAME, lambda _done, _total: None)
    assert snapshot_of(root) == before


async def test_a_database_is_not_begun_in_a_folder_that_has_a_log(root: Path) -> None:
    await make(root, clean=True)
    kept = root.with_name("kept")
    folder(root).rename(kept)
    store = open_store(root)
    kept.rename(folder(root))
    (folder(root) / META_NAME).unlink()
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match="no meta file"):
        store.create(NAME)
    assert NAME not in store.databases
    assert snapshot_of(root) == before
    store.close()


@pytest.mark.parametrize("left", [[], ["checksums"], ["checksums", "meta.new"]])
def test_a_start_goes_on_where_a_crash_came_before_the_first_meta_file(root: Path, left: list[str]) -> None:
    open_store(root).close()
    folder(root).mkdir()
    for name in left:
        (folder(root) / name).write_bytes(b"")
    store = open_store(root)
    assert not folder(root).exists()
    store.create(NAME)
    store.close()


async def test_an_old_record_behind_a_new_one_is_not_taken_for_its_successor(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    app = await make(root, clean=False, disk=disk)
    disk.revive()
    store = open_store(root, disk, segment_bytes=1 << 20)
    app.go_on(store)
    page = {1: app.page()}
    for _ in range(3):
        app.commit(page)
        page = {1: app.page()}
    starts = [app.database.log.bounds(app.database.log.segment_of(txid), txid)[0] for txid in (31, 32)]
    old = segments(root)[-1].read_bytes()
    store.close()
    disk.lose_power("everything")
    damage(segments(root)[-1], starts[0] + 100)
    store = open_store(root, disk, segment_bytes=1 << 20)
    app.go_on(store)
    assert app.acknowledged == COMMITS
    app.commit({1: app.page()})
    store.close()
    # The power fails again, and brings the second of the old records back behind the new one.
    disk.lose_power("everything")
    with segments(root)[-1].open("ab") as file:
        file.write(old[starts[1] :])
    store = open_store(root, disk)
    app.go_on(store)
    assert app.acknowledged == COMMITS + 1
    app.check()
    store.close()
