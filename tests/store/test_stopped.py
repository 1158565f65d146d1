"""Verification of a data directory whose node does not run: it finds damage and changes nothing."""

import os
from pathlib import Path

import pytest

from litereplica.errors import Corrupt, Refused, Unavailable
from litereplica.store.stopped import verify_stopped
from litereplica.store.verify import Verified
from tests.store.application import NAME, Application, open_store
from tests.store.directory import damage, folder, make, segments, snapshot_of


def verify(root: Path) -> Verified:
    """Verify, and see that nothing was changed."""
    before = snapshot_of(root)
    try:
        return verify_stopped(root, NAME, lambda _done, _total: None)
    finally:
        assert snapshot_of(root) == before


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("checkpoint", [True, False])
async def test_a_sound_directory_is_sound(tmp_path: Path, clean: bool, checkpoint: bool) -> None:
    app = await make(tmp_path, clean=clean, checkpoint=checkpoint)
    found = verify(tmp_path)
    assert found.sound
    assert found.position.txid == app.acknowledged
    assert found.page_count == len(app.oracle[app.acknowledged])


async def test_a_flipped_byte_in_the_file_is_found(tmp_path: Path) -> None:
    await make(tmp_path, clean=True)
    path = tmp_path / "files" / NAME
    damage(path, 512 + 77, bytes((path.read_bytes()[512 + 77] ^ 1,)))
    found = verify(tmp_path)
    assert found.damaged == (2,)
    assert not found.sound


async def test_a_file_that_is_too_short_or_missing_is_damage(tmp_path: Path) -> None:
    await make(tmp_path, clean=True)
    path = tmp_path / "files" / NAME
    os.truncate(path, path.stat().st_size - 512)
    assert not verify(tmp_path).sound
    path.unlink()
    with pytest.raises(Corrupt):
        verify(tmp_path)


async def test_a_wrong_table_of_page_checksums_alone_is_no_damage(tmp_path: Path) -> None:
    await make(tmp_path, clean=False)
    damage(folder(tmp_path) / "checksums", 64)
    assert verify(tmp_path).sound


async def test_damage_in_the_log_after_base_is_not_passed_over(tmp_path: Path) -> None:
    await make(tmp_path, clean=False, checkpoint=False)
    segment = segments(tmp_path)[0]
    damage(segment, 900)
    with pytest.raises(Refused, match="not whole"):
        verify(tmp_path)


async def test_a_live_journal_wants_a_start(tmp_path: Path) -> None:
    await make(tmp_path, clean=True)
    journal = tmp_path / "files" / f"{NAME}-journal"
    magic = bytes.fromhex("d9d505f920a163d7")
    numbers = (0, 5, 1, 512, 512)
    journal.write_bytes(magic + b"".join(each.to_bytes(4, "big") for each in numbers) + bytes(484))
    with pytest.raises(Refused, match="journal"):
        verify(tmp_path)
    journal.write_bytes(bytes(512))
    assert verify(tmp_path).sound


async def test_a_running_node_keeps_the_directory(tmp_path: Path) -> None:
    await make(tmp_path, clean=True)
    store = open_store(tmp_path)
    try:
        with pytest.raises(Unavailable, match="in use"):
            verify_stopped(tmp_path, NAME, lambda _done, _total: None)
    finally:
        store.close()


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no data directory"):
        verify_stopped(tmp_path, NAME, lambda _done, _total: None)
    open_store(tmp_path).close()
    with pytest.raises(Refused, match="no database"):
        verify(tmp_path)


async def test_a_database_that_was_made_again_after_a_drop(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    app = Application(store)
    app.start()
    for _ in range(5):
        app.commit()
    await app.checkpoint()
    app.drop()
    await app.sync()
    app.start()
    app.commit({1: app.page(), 2: app.page()}, 2)
    await app.sync()
    store.close()
    found = verify(tmp_path)
    assert found.sound
    assert found.page_count == 2


async def test_a_database_that_is_dropped_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    app = Application(store)
    app.start()
    app.commit()
    await app.checkpoint()
    app.drop()
    await app.sync()
    store.close()
    with pytest.raises(Refused, match="dropped"):
        verify(tmp_path)


@pytest.mark.parametrize("name", ["00000001.left", "00000001.new"])
async def test_a_group_that_no_start_reads_is_no_reason_to_refuse(tmp_path: Path, name: str) -> None:
    await make(tmp_path, clean=True)
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / name).write_bytes(b"half of it")
    assert verify(tmp_path).sound


async def test_a_group_that_a_crash_has_left_is_refused(tmp_path: Path) -> None:
    await make(tmp_path, clean=False)
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "00000001").write_bytes(b"")
    with pytest.raises(Refused, match="over several databases"):
        verify(tmp_path)
