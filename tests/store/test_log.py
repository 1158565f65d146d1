"""Reading, retention and durability of one database's log."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from litereplica.ltx.decode import RecordDecoder, decode_record
from litereplica.ltx.format import RecordTrailer
from litereplica.store.disk import Disk
from litereplica.store.log import Log, Trimmed
from litereplica.store.store import Store
from tests.store.application import Application, open_store
from tests.store.faulty_disk import FaultyDisk


class GatedDisk(Disk):
    """An fdatasync that takes as long as the test wants, and then fails if it wants."""

    __slots__ = ("code", "entered", "gate", "syncs")

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.syncs = 0
        self.code = 0

    def fdatasync(self, descriptor: int) -> None:
        self.syncs += 1
        self.entered.set()
        assert self.gate.wait(10)
        if self.code:
            raise OSError(self.code, "broken")
        super().fdatasync(descriptor)


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


def use_threads(store: Store, gated: GatedDisk) -> None:
    """As on a disk whose fdatasync is slow; the next one waits for the gate."""
    store.calls._mean_s = 1.0
    gated.gate.clear()
    gated.entered.clear()
    gated.syncs = 0


async def entered(gated: GatedDisk) -> None:
    assert await trio.to_thread.run_sync(gated.entered.wait, 10)


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 600, 5000, 1 << 20])
def test_a_cursor_reads_every_byte_across_segments_and_while_records_are_added(
    app: Application, log: Log, piece: int
) -> None:
    cursor = log.cursor(0)
    data = b""
    for _ in range(25):
        app.commit()
        for _ in range(3):
            data += cursor.read(piece)
    while more := cursor.read(piece):
        data += more
    assert data == b"".join(each.path.read_bytes() for each in log.segments())
    assert cursor.txid == app.database.position.txid
    decoder = RecordDecoder()
    decoder.feed(data)
    decoder.finish()


def test_a_cursor_knows_the_last_record_that_it_gave_whole(app: Application, log: Log) -> None:
    for _ in range(25):
        app.commit()
    cursor = log.cursor(3)
    decoder = RecordDecoder()
    whole = 3
    while data := cursor.read(701):
        whole += sum(isinstance(event, RecordTrailer) for event in decoder.feed(data))
        assert cursor.txid == whole
    assert whole == 25


def test_a_cursor_never_gives_uncounted_bytes(app: Application, log: Log) -> None:
    app.commit()
    app.database.append_bytes(b"LRX1 the beginning")
    cursor = log.cursor(0)
    assert decode_record(cursor.read(1 << 20)).header.min_txid == 1
    assert cursor.read(100) == b""
    app.database.cut_uncounted()


def test_a_cursor_beyond_the_log_or_before_what_is_kept_is_trimmed(app: Application, log: Log) -> None:
    for _ in range(25):
        app.commit()
    log.cursor(25)
    with pytest.raises(Trimmed):
        log.cursor(26)
    slow = log.cursor(0)
    slow.read(100)
    app.database.wal_restarted()
    trio.run(log.sync)
    assert log.trim(25, 0, 1)
    with pytest.raises(Trimmed):
        slow.read(100)
    with pytest.raises(Trimmed):
        log.cursor(0)
    with pytest.raises(Trimmed):
        log.summary(1)
    log.cursor(log.first_txid - 1)


def test_spans_are_whole_records_of_one_segment_within_the_limits(app: Application, log: Log) -> None:
    for _ in range(40):
        app.commit()
    for max_bytes in (1, 2000, 4000, 1 << 20):
        for max_records in (1, 3, 1000):
            after = 0
            while span := log.spans(after, max_bytes, max_records):
                assert span.first_txid == after + 1
                count = span.last_txid - after
                assert count == 1 or (count <= max_records and span.length <= max_bytes)
                data = span.path.read_bytes()[span.offset : span.offset + span.length]
                offset = 0
                for txid in range(span.first_txid, span.last_txid + 1):
                    record = decode_record(data, offset)
                    assert record.header.min_txid == txid
                    offset += record.length
                assert offset == len(data)
                after = span.last_txid
            assert after == 40


def test_the_checksum_of_every_kept_position_is_known(app: Application, log: Log) -> None:
    checksums = [0]
    assert log.checksum_at(0) == 0
    for _ in range(20):
        app.commit()
        checksums.append(app.database.position.checksum)
    assert [log.checksum_at(txid) for txid in range(21)] == checksums
    assert log.checksum_at(21) is None
    trio.run(log.sync)
    log.trim(20, 0, 1)
    assert log.checksum_at(log.first_txid - 1) == checksums[log.first_txid - 1]
    assert log.checksum_at(log.first_txid - 2) is None


def test_readers_of_the_past_do_not_use_up_descriptors(app: Application, log: Log) -> None:
    for _ in range(60):
        app.commit()
    trio.run(log.sync)
    for txid in range(1, 61):
        log.checksum_at(txid)
    assert sum(each.descriptor >= 0 for each in log.segments()) <= 4


def test_received_bytes_that_never_pause_at_a_records_end_do_not_make_one_endless_segment(
    app: Application, log: Log, tmp_path: Path
) -> None:
    for _ in range(60):
        app.commit()
    data = b"".join(each.path.read_bytes() for each in log.segments())
    ends = [0]
    while ends[-1] < len(data):
        ends.append(ends[-1] + decode_record(data, ends[-1]).length)
    other = open_store(tmp_path / "other")
    copy = other.create("copy.db").log
    appended = counted = 0
    for number, (start, end) in enumerate(zip(ends, ends[1:], strict=False), 1):
        upto = min(len(data), end + 100)
        copy.append_uncounted(data[appended:upto])
        appended = upto
        copy.count(number, end - start, 0)
        counted = end
    assert counted == len(data)
    assert len(list(copy.segments())) > 5
    assert b"".join(each.path.read_bytes()[: each.length] for each in copy.segments()) == data
    assert copy.cursor(0).read(1) == b"L"
    other.close()


# -- retention ---------------------------------------------------------------------------------------------------------

NOW_S = 2_000_000_000.0


async def filled(app: Application, log: Log) -> None:
    for _ in range(40):
        app.commit()
    await log.sync()
    for number, segment in enumerate(log.segments()):
        segment.newest_timestamp_ms = int((NOW_S - 100 + number) * 1000)


async def test_retention_by_age(app: Application, log: Log) -> None:
    await filled(app, log)
    kept = [each.first_txid for each in log.segments()]
    assert log.trim(40, 98, 1 << 40, NOW_S) > 0
    assert [each.first_txid for each in log.segments()] == kept[2:]
    assert log.first_txid == kept[2]
    assert log.size_bytes == sum(each.length for each in log.segments())


async def test_age_does_not_take_what_a_pin_needs_and_the_hard_cap_does(app: Application, log: Log) -> None:
    await filled(app, log)
    log.pin("replica", 20)
    log.trim(40, 0, 1 << 40, NOW_S)
    assert 1 < log.first_txid <= 21
    log.pin("replica", 25)
    log.trim(40, 0, 1 << 40, NOW_S)
    assert 21 < log.first_txid <= 26
    log.trim(40, 1000, 7000, NOW_S)
    assert log.first_txid > 26
    log.unpin("replica")
    log.trim(40, 0, 1 << 40, NOW_S)
    assert len(list(log.segments())) == 1
    assert log.last_txid == 40


async def test_nothing_after_the_base_goes(app: Application, log: Log) -> None:
    await filled(app, log)
    log.trim(20, 0, 0, NOW_S)
    assert log.first_txid <= 21


def test_what_is_not_durable_is_not_trimmed(app: Application, log: Log) -> None:
    for _ in range(40):
        app.commit()
    assert log.trim(40, 0, 0) == 0


async def test_maintenance_moves_the_base_trims_and_survives_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = Application(store)
    app.start()
    for _ in range(40):
        app.commit()
    await app.checkpoint()
    await store.maintain(0, 0)
    assert app.database.log.first_txid > 30
    app.commit()
    store.close()
    store = open_store(tmp_path / "data")
    app.go_on(store)
    app.check()
    store.close()


async def test_maintenance_goes_on_with_the_other_databases_when_one_is_refused(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path / "data", tmp_path / "graves")
    store = open_store(tmp_path / "data", disk)
    apps = [Application(store, name=name) for name in ("a.db", "b.db")]
    for app in apps:
        app.start()
        app.commit()
        await app.checkpoint()
    disk.fail["fdatasync"] = (0, errno.EIO)
    await store.maintain(0, 0)
    disk.fail.clear()
    await store.maintain(0, 0)
    # The kernel reports a lost write once: a later success would mean nothing, so the base stays.
    assert [each.database.saved_base.txid for each in apps] == [0, 0]
    store.close()
    store = open_store(tmp_path / "data", disk)
    for app in apps:
        app.go_on(store)
        app.check()
    store.close()


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
        app.database.wal_restarted()
        gated.gate.set()
    assert app.database.saved_base.txid == 1
    assert app.database.base.txid == 2
    await store.advance_base(app.database)
    assert app.database.saved_base.txid == 2


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
