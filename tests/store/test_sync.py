"""What is durable, and who is told so, while an fdatasync takes its time or fails."""

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from litereplica.ltx.position import Position
from litereplica.store.disk import Disk
from litereplica.store.log import Log
from litereplica.store.store import Store
from tests.store.application import Application, open_store
from tests.store.gated_disk import GatedDisk, entered, use_threads


@pytest.fixture
def gated() -> GatedDisk:
    return GatedDisk()


@pytest.fixture
def store(tmp_path: Path, gated: GatedDisk) -> Iterator[Store]:
    store = open_store(tmp_path / "data", gated)
    yield store
    store.close()


@pytest.fixture
def app(store: Store) -> Application:
    app = Application(store)
    app.start()
    return app


@pytest.fixture
def log(app: Application) -> Log:
    return app.database.log


async def test_a_checkpoint_during_the_sync_of_the_file_does_not_move_the_saved_base(
    app: Application, store: Store, gated: GatedDisk
) -> None:
    app.commit()
    await app.checkpoint()
    app.commit()
    await app.sync()
    use_threads(store, gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.advance_base, app.database)
        await entered(gated)
        app.database.file_complete()
        gated.gate.set()
    assert app.database.saved_base.txid == 1
    assert app.database.base.txid == 2
    await store.advance_base(app.database)
    assert app.database.saved_base.txid == 2


async def test_a_base_is_not_saved_after_a_later_one(app: Application, store: Store, gated: GatedDisk) -> None:
    app.commit()
    await app.checkpoint()
    app.commit()
    await app.sync()
    use_threads(store, gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.advance_base, app.database)
        await entered(gated)
        # As at a drop or a checkpoint in between; the next one does not wait for the first.
        app.database.file_complete()
        store.calls._mean_s = 0.0
        gated.gate.set()
        await store.advance_base(app.database)
        assert app.database.saved_base.txid == 2
    assert app.database.saved_base.txid == 2


async def test_a_base_whose_file_was_replaced_by_a_snapshot_meanwhile_is_not_saved(
    app: Application, store: Store, gated: GatedDisk
) -> None:
    app.commit()
    await app.checkpoint()
    database = app.database
    use_threads(store, gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.advance_base, database)
        await entered(gated)
        # What the installation of a snapshot does to the log.
        database.log.restart(Position(70, 7))
        database.saved_base = database.base = Position(70, 7)
        gated.gate.set()
    assert database.saved_base == Position(70, 7)


# -- durability --------------------------------------------------------------------------------------------------------


async def test_several_callers_share_a_sync(app: Application, store: Store, gated: GatedDisk, log: Log) -> None:
    app.commit()
    use_threads(store, gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.sync)
        await entered(gated)
        app.commit()
        for _ in range(20):
            nursery.start_soon(log.sync)
        await trio.testing.wait_all_tasks_blocked()
        gated.gate.set()
    assert log.durable
    # One for the first caller, one for all that came while it ran.
    assert gated.syncs == 2


async def test_a_failed_sync_is_told_to_everybody_and_never_taken_back(
    app: Application, store: Store, gated: GatedDisk, log: Log
) -> None:
    app.commit()
    use_threads(store, gated)
    gated.code = errno.EIO
    failures = 0

    async def caller() -> None:
        nonlocal failures
        with pytest.raises(OSError, match="broken"):
            await log.sync()
        failures += 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(caller)
        await entered(gated)
        app.commit()
        nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        gated.gate.set()
    assert failures == 6
    gated.code = 0
    assert not log.durable
    with pytest.raises(OSError, match="broken"):
        await log.sync()
    with pytest.raises(OSError, match="broken"):
        app.commit()
    with pytest.raises(OSError, match="broken"):
        log.sync_blocking()


async def test_a_sync_does_not_cover_what_replaced_a_record_that_was_cut(
    app: Application, store: Store, gated: GatedDisk, log: Log
) -> None:
    app.commit()
    await app.sync()
    app.commit()
    use_threads(store, gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.sync)
        await entered(gated)
        log.cut_last()
        record = b"another record of the same txid"
        log.append(record, 2, 0)
        # The caller's record is gone and another stands for it: only a second round can cover that.
        gated.gate.set()
    assert gated.syncs == 2
    assert log.durable


async def test_bytes_cut_while_a_sync_runs_do_no_harm(
    app: Application, store: Store, gated: GatedDisk, log: Log
) -> None:
    app.commit()
    use_threads(store, gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.sync)
        await entered(gated)
        app.database.append_bytes(b"LRX1 ...")
        app.database.cut_uncounted()
        gated.gate.set()
    assert log.durable
    app.commit()
    app.check(file=False)


async def test_descriptors_stay_open_under_a_sync(app: Application, store: Store, gated: GatedDisk, log: Log) -> None:
    for _ in range(20):
        app.commit()
    use_threads(store, gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.sync)
        await entered(gated)
        for _ in range(20):
            app.commit()
        log.close()
        gated.gate.set()
    assert log.durable_txid >= 20


async def test_a_cancelled_caller_does_not_stop_the_others(
    app: Application, store: Store, gated: GatedDisk, log: Log
) -> None:
    app.commit()
    use_threads(store, gated)
    with trio.CancelScope() as scope:
        scope.cancel()
        await log.sync()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.sync)
        await entered(gated)
        nursery.start_soon(log.sync)
        gated.gate.set()
    assert log.durable


class ToldOnce(Disk):
    """The kernel reports a lost write to one call of an open file, whichever ends first (fsync(2), NOTES)."""

    __slots__ = ("entered", "left", "lost", "takes_s")

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.left = threading.Event()
        self.lost = False
        self.takes_s = 0.0

    def fdatasync(self, descriptor: int) -> None:
        in_thread = threading.current_thread() is not threading.main_thread()
        if in_thread:
            self.entered.set()
            time.sleep(self.takes_s)
        lost, self.lost = self.lost, False
        if in_thread:
            self.left.set()
        if lost:
            raise OSError(errno.EIO, "broken")
        super().fdatasync(descriptor)


@pytest.mark.parametrize("first", ["loop", "thread"])
@pytest.mark.parametrize("what", ["cut", "drop", "commit"])
async def test_a_lost_write_is_told_to_both_of_two_syncs_at_once(tmp_path: Path, what: str, first: str) -> None:
    disk = ToldOnce()
    store = open_store(tmp_path / "data", disk)
    app = Application(store)
    app.start()
    app.commit()
    await app.sync()
    app.commit()
    database, log = app.database, app.database.log
    store.calls._mean_s = 1.0
    disk.takes_s = 0.2 if first == "loop" else 0.0
    disk.lost = True
    told = 0
    if what == "cut":
        database.append_bytes(b"LRX1 ...")

    def refuse() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def sync() -> None:
        nonlocal told
        with pytest.raises(OSError, match="broken"):
            await log.sync()
        told += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync)
        await trio.testing.wait_all_tasks_blocked()
        # Not with trio: the loop does not hear of the thread's outcome before.
        assert (disk.entered if first == "loop" else disk.left).wait(10)
        time.sleep(0.05 if first == "thread" else 0)  # noqa: ASYNC251
        if what == "cut":
            database.cut_uncounted()
            with pytest.raises(OSError, match="broken"):
                log.make_cut_durable()
        elif what == "drop":
            with pytest.raises(OSError, match="broken"):
                database.drop()
        else:
            with pytest.raises(OSError, match="broken"):
                app.commit(write=refuse)
    assert told == 1
    assert (log.durable_txid, database.checksums.durable_txid) == (1, 1)
    assert log.failure is not None
    assert log.lost is not None
    store.close()


async def test_a_drop_during_a_sync_is_durable_and_the_sync_promises_no_more_than_it_covers(tmp_path: Path) -> None:
    disk = ToldOnce()
    store = open_store(tmp_path / "data", disk)
    app = Application(store)
    app.start()
    app.commit()
    store.calls._mean_s = 1.0
    disk.takes_s = 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.database.log.sync)
        await trio.to_thread.run_sync(disk.entered.wait, 10)
        app.drop()
        assert app.database.log.durable_txid == 2
        app.commit()
    assert app.database.log.durable_txid == 2
    store.close()


class LosingDisk(Disk):
    """Once, a sync of the database file fails, and what was to become durable is gone (fsync(2), NOTES)."""

    loses: Path | None = None

    def sync_file(self, path: Path) -> None:
        if path == self.loses:
            self.loses = None
            path.write_bytes(bytes(path.stat().st_size))
            raise OSError(errno.EIO, "Input/output error")
        super().sync_file(path)


async def test_what_a_failed_sync_of_the_file_has_lost_is_written_again_by_a_clean_stop(tmp_path: Path) -> None:
    disk = LosingDisk()
    store = open_store(tmp_path / "data", disk)
    app = Application(store)
    app.start()
    for _ in range(9):
        app.commit()
    await app.checkpoint()
    app.commit()
    disk.loses = app.database.file_path
    with pytest.raises(OSError, match="Input/output"):
        await store.advance_base(app.database)
    store.stop()
    store.close()
    again = open_store(tmp_path / "data")
    app.go_on(again)
    app.check()
    again.close()
