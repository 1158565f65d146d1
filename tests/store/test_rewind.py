"""A database goes back to an earlier position out of its own log and file, wherever it is stopped."""

import random
from pathlib import Path

import pytest
import trio

from litereplica.ltx.position import Position
from litereplica.store.database import Database
from litereplica.store.diverged import Entry, entries, forget_log, logs_set_aside
from litereplica.store.keep import keep
from litereplica.store.regain import OldLog
from litereplica.store.rewind import Unreachable, content_at, remove_content
from litereplica.store.store import Store
from tests.store.application import NAME, Application, Content, assert_file_is, open_store, rolling
from tests.store.faulty_disk import FaultyDisk, Stopped
from tests.store.forgetful_disk import ForgetfulDisk


def position_at(app: Application, txid: int) -> Position:
    return Position(txid, rolling(app.oracle[txid], app.page_size))


def data_of(content: Content) -> bytes:
    return b"".join(content[pgno] for pgno in sorted(content))


async def roll_back(store: Store, common: Position) -> Database:
    """What replication does once the last common position is found."""
    database = store.databases[NAME]
    await keep(database, common, common=True, primary="b", primary_epoch=2, reason="test")
    old_log = OldLog(database, common.txid)
    finished = await content_at(database, common)
    before = logs_set_aside(store, NAME)
    try:
        store.install(
            NAME, finished.pages_file, finished.page_size, finished.page_count, finished.position, finished.checksums,
            finished.epoch, finished.timestamp_ms,
        )  # fmt: skip
    finally:
        remove_content(database)
    for each in logs_set_aside(store, NAME) - before:
        await old_log.take_back(each)
        forget_log(store.disk, each)
    return database


def kept(store: Store) -> list[Entry]:
    return [each for each in entries(store.diverged) if isinstance(each, Entry)]


async def history(store: Store, seed: int, *, fold_at: int | None, commits: int = 40) -> Application:
    app = Application(store, seed=seed)
    app.start()
    for number in range(1, commits + 1):
        app.commit()
        if number == fold_at:
            await app.checkpoint()
    return app


@pytest.mark.parametrize("fold_at", [None, 10, 25, 40])
@pytest.mark.parametrize("seed", range(4))
async def test_content_at_any_position_of_a_whole_log(tmp_path: Path, seed: int, fold_at: int | None) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, seed, fold_at=fold_at)
    for txid in range(1, 41):
        finished = await content_at(app.database, position_at(app, txid))
        assert finished.pages_file.read_bytes() == data_of(app.oracle[txid])
        assert finished.position == position_at(app, txid)
        assert finished.page_count == len(app.oracle[txid])
        remove_content(app.database)
    assert not list(store.incoming.iterdir())
    store.close()


@pytest.mark.parametrize("partial", range(6))
async def test_a_file_in_the_middle_of_a_checkpoint(tmp_path: Path, partial: int) -> None:
    """The file holds the base, and of some pages what came later."""
    store = open_store(tmp_path / "data")
    app = await history(store, partial, fold_at=10)
    app.random.seed(partial)
    await app.checkpoint(whole=False)
    for txid in range(8, 41):
        finished = await content_at(app.database, position_at(app, txid))
        assert finished.pages_file.read_bytes() == data_of(app.oracle[txid])
    store.close()


@pytest.mark.parametrize("seed", range(6))
async def test_where_the_log_was_trimmed_it_is_right_or_unreachable(tmp_path: Path, seed: int) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, seed, fold_at=20)
    await store.advance_base(app.database)
    await store.maintain(age_s=-60, size_bytes=1 << 40)
    first = app.database.log.first_txid
    assert first > 1
    chance = random.Random(seed)
    await app.checkpoint(whole=chance.random() < 0.5)
    outcomes = set()
    for txid in range(first - 1, 41):
        try:
            finished = await content_at(app.database, position_at(app, txid))
        except Unreachable:
            outcomes.add("unreachable")
            assert not list(store.incoming.iterdir())
        else:
            outcomes.add("right")
            assert finished.pages_file.read_bytes() == data_of(app.oracle[txid])
            remove_content(app.database)
    assert "right" in outcomes
    store.close()


async def test_a_wrong_position_is_never_proven(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, 1, fold_at=20)
    with pytest.raises(Unreachable, match="neither in the log"):
        await content_at(app.database, Position(30, 12345))
    assert not list(store.incoming.iterdir())
    store.close()


async def test_a_damaged_page_of_the_file_is_not_passed_on(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = Application(store)
    app.start()
    app.commit({pgno: app.page() for pgno in range(1, 30)}, 29)
    await app.checkpoint()
    await store.advance_base(app.database)
    app.commit({1: app.page()}, 29)
    for _ in range(20):
        app.commit({1: app.page(), 2: app.page()}, 29)
    with app.database.file_path.open("r+b") as file:
        file.seek(20 * 512)
        file.write(b"damage")
    with pytest.raises(Unreachable, match="page 21 in the file"):
        await content_at(app.database, position_at(app, 15))
    store.close()


async def test_compressed_records_and_large_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", compression="zstd", segment_bytes=1 << 24)
    app = Application(store, page_size=4096)
    app.start()
    app.commit({pgno: app.page() for pgno in range(1, 2001)}, 2000)
    await app.commit_stream({pgno: app.page() for pgno in range(1, 2001)}, 2000)
    app.commit({7: app.page()}, 2000)
    await app.checkpoint()
    app.commit({pgno: app.page() for pgno in range(1, 1501)}, 1500)
    for txid in (1, 2, 3):
        finished = await content_at(app.database, position_at(app, txid))
        assert finished.pages_file.read_bytes() == data_of(app.oracle[txid])
    store.close()


@pytest.mark.parametrize("common", [1, 7, 25, 39])
async def test_after_going_back_the_log_goes_on_from_its_beginning(tmp_path: Path, common: int) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, 2, fold_at=30)
    bytes_before = app.database.log.cursor(0).read(1 << 20)
    await roll_back(store, position_at(app, common))
    assert not logs_set_aside(store, NAME)
    assert not list(store.incoming.iterdir())
    app.acknowledged = common
    assert app.database.log.first_txid == 1
    assert bytes_before.startswith(app.database.log.cursor(0).read(1 << 20)[:1000])
    app.database.installed()
    app.database.set_applied(common)
    for _ in range(15):
        app.commit()
    await app.checkpoint()
    assert app.database.log.checksum_at(1) == position_at(app, 1).checksum
    assert app.database.log.cursor(0).read(100) == bytes_before[:100]
    # And back again, further.
    await roll_back(store, Position(1, rolling(app.oracle[1])))
    assert app.database.position.txid == 1
    store.stop()
    store.close()
    store = open_store(tmp_path / "data")
    assert_file_is(store.databases[NAME].file_path, app.oracle[1])
    assert store.databases[NAME].log.checksum_at(1) == position_at(app, 1).checksum
    assert len(kept(store)) == 2
    store.close()


@pytest.mark.parametrize("told", ["nothing", "installed", "folded"])
async def test_a_content_that_the_applier_has_not_folded_yet(tmp_path: Path, told: str) -> None:
    """The database file is of another history until then; what was installed is beside it."""
    store = open_store(tmp_path / "data")
    app = await history(store, 4, fold_at=40)
    await roll_back(store, position_at(app, 25))
    app.acknowledged = 25
    if told != "nothing":
        app.database.installed()
        app.database.set_applied(25)
    for _ in range(6):
        app.commit()
    if told == "folded":
        app.database.file_path.write_bytes(data_of(app.oracle[25]))
        app.database.checkpointed(25)
    for txid in range(1, 32):
        finished = await content_at(app.database, position_at(app, txid))
        assert finished.pages_file.read_bytes() == data_of(app.oracle[txid])
        remove_content(app.database)
    entry = await keep(app.database, position_at(app, 28), common=True, primary="b", primary_epoch=2, reason="x")
    assert (store.diverged / entry.id / "database").read_bytes() == data_of(app.oracle[31])
    store.close()


# ----------------------------------------------------------------------------------------------------------- keeping
async def test_what_is_kept_is_the_records_and_the_database_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = await history(store, 3, fold_at=30)
    records = b"".join(each.path.read_bytes()[: each.length] for each in app.database.log.segments())
    segment = app.database.log.segment_of(26)
    before = sum(each.length for each in app.database.log.segments() if each.last_txid < segment.first_txid)
    before += app.database.log.bounds(segment, 26)[0]
    entry = await keep(app.database, position_at(app, 25), common=True, primary="b", primary_epoch=7, reason="why")
    folder = store.diverged / entry.id
    assert (folder / "records").read_bytes() == records[before:]
    assert (folder / "database").read_bytes() == data_of(app.oracle[40])
    assert (entry.records, entry.record_bytes, entry.pages) == (15, len(records) - before, len(app.oracle[40]))
    assert (entry.first_epoch, entry.last_epoch, entry.primary_epoch) == (1, 1, 7)
    assert entry.first_ms <= entry.last_ms <= entry.kept_ms
    assert kept(store) == [entry]
    again = await keep(app.database, position_at(app, 25), common=True, primary="c", primary_epoch=8, reason="again")
    assert again == entry
    store.close()


async def test_a_disk_without_room_for_the_database_keeps_nothing_and_is_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    store = open_store(root, disk, segment_bytes=1 << 20)
    app = await history(store, 3, fold_at=30)
    app.commit({pgno: app.page() for pgno in range(1, 200)}, 199)
    app.commit({1: app.page()}, 199)
    for room_bytes in (199 * 512, 0):
        disk.room_bytes = room_bytes
        with pytest.raises(OSError, match="No space"):
            await keep(app.database, position_at(app, 41), common=True, primary="b", primary_epoch=7, reason="why")
        assert not list(store.diverged.iterdir())
    disk.room_bytes = None
    entry = await keep(app.database, position_at(app, 41), common=True, primary="b", primary_epoch=7, reason="why")
    assert entry.whole
    assert kept(store) == [entry]
    store.close()


# ---------------------------------------------------------------------------------------------------------- stopping
@pytest.mark.parametrize("keep_bytes", [None, "nothing", "random"])
@pytest.mark.parametrize("fold_at", [None, 20])
def test_stopped_after_any_step_it_is_there_or_diverged_still(
    tmp_path: Path, fold_at: int | None, keep_bytes: str | None
) -> None:
    common = 12
    for step in range(300):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk)
        app = trio.run(prepared, store, fold_at)
        at = position_at(app, common)
        lost = data_of(app.oracle[20])
        disk.stop_after = disk.steps + step
        done = stops(store, at)
        store.close()
        disk.revive()
        if keep_bytes is not None:
            disk.lose_power(keep_bytes, step)
        store = open_store(root, disk)
        database = store.databases[NAME]
        assert database.position in (at, position_at(app, 20))
        if database.position == at:
            assert_kept(store, lost)
        else:
            assert not done
            app.go_on(store)
            app.check()
            trio.run(roll_back, store, at)
            assert_kept(store, lost)
            store.close()
            store = open_store(root, disk)
            database = store.databases[NAME]
        assert database.position == at
        assert_file_is(database.file_path, app.oracle[common])
        assert_log_is(database, app, done=done)
        table = database.checksums.table
        assert rolling(app.oracle[common]) == database.checksums.xor_range(1, len(app.oracle[common]))
        assert not any(table[len(app.oracle[common]) :])
        store.close()
        if done:
            assert step > 25
            return
    pytest.fail("it does not end")


async def prepared(store: Store, fold_at: int | None) -> Application:
    app = await history(store, 5, fold_at=fold_at, commits=20)
    if fold_at is not None:
        await store.advance_base(app.database)
    app.database.log.sync_blocking()
    return app


def assert_log_is(database: Database, app: Application, *, done: bool) -> None:
    """A log that ends at the position, as far back as the crash has let it."""
    records = database.log
    assert records.last_txid == database.position.txid
    for txid in range(records.first_txid, records.last_txid + 1):
        assert records.checksum_at(txid) == position_at(app, txid).checksum
    if done:
        assert records.first_txid == 1


def stops(store: Store, at: Position) -> bool:
    try:
        trio.run(roll_back, store, at)
    except Stopped:
        return False
    return True


def assert_kept(store: Store, lost: bytes) -> None:
    """Exactly one whole entry, and it is right."""
    [entry] = [each for each in kept(store) if not each.log_only]
    assert entry.records == 8
    assert (store.diverged / entry.id / "database").read_bytes() == lost


async def test_after_a_restart_records_of_the_epoch_that_it_went_back_to_may_follow(tmp_path: Path) -> None:
    """What is remembered of the epoch is that of the common position, not of what was given up."""
    store = open_store(tmp_path / "data")
    app = await history(store, seed=3, fold_at=10)
    common = app.database.position
    store.epoch = 9
    for _ in range(3):
        app.commit()
    assert app.database.epoch == 9
    database = await roll_back(store, common)
    assert database.epoch == 1
    store.close()
    again = open_store(tmp_path / "data")
    assert again.databases[NAME].position == common
    assert again.databases[NAME].epoch == 1
    again.close()


async def test_what_of_the_log_comes_back_is_durable(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path / "data", tmp_path / "graves")
    store = open_store(tmp_path / "data", disk)
    app = await history(store, 3, fold_at=None)
    database = await roll_back(store, position_at(app, 30))
    assert (database.log.first_txid, database.log.durable_txid) == (1, 30)
    store.close()
    disk.lose_power("nothing")
    store = open_store(tmp_path / "data", disk)
    log = store.databases[NAME].log
    assert (log.first_txid, log.last_txid) == (1, 30)
    for txid in range(1, 31):
        assert log.checksum_at(txid) == position_at(app, txid).checksum
    store.close()


async def test_segments_that_a_failed_fdatasync_may_have_lost_are_written_again_when_they_come_back(
    tmp_path: Path,
) -> None:
    disk = ForgetfulDisk()
    store = open_store(tmp_path / "data", disk)
    app = await history(store, 3, fold_at=10)
    disk.refuses = lambda path: path.suffix == ".ltx"
    with pytest.raises(OSError, match="Input/output"):
        await app.sync()
    disk.well_again()
    assert any(disk.lost_bytes(each.path) for each in app.database.log.segments())
    database = await roll_back(store, position_at(app, 35))
    found = [each.path for each in database.log.segments()]
    assert len(found) > 1
    assert database.log.durable_txid == 35
    assert [disk.lost_bytes(path) for path in found] == [0] * len(found)
    store.close()
