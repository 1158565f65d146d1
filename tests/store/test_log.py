"""Reading and retention of one database's log."""

import errno
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from litereplica.ltx.decode import RecordDecoder, decode_record
from litereplica.ltx.format import RecordTrailer
from litereplica.store.log import Log, Trimmed
from litereplica.store.store import Store
from tests.store.application import Application, open_store
from tests.store.faulty_disk import FaultyDisk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path / "data")
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
    app.database.file_complete()
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
    for number, (start, end) in enumerate(pairwise(ends), 1):
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


@pytest.mark.parametrize("done", [0, 1])
async def test_a_segment_that_could_not_be_deleted_is_deleted_the_next_time(tmp_path: Path, done: int) -> None:
    disk = FaultyDisk(tmp_path / "data", tmp_path / "graves")
    store = open_store(tmp_path / "data", disk)
    app = Application(store)
    app.start()
    log = app.database.log
    await filled(app, log)
    disk.fail["unlink"] = (done, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        log.trim(40, 0, 0, NOW_S)
    disk.fail.clear()
    assert log.first_txid == 1
    assert log.summary(1).header.min_txid == 1
    log.trim(40, 0, 0, NOW_S)
    assert len(list(log.segments())) == 1
    assert len(list(log.directory.glob("*.idx"))) <= 1
    store.close()


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
    with structlog.testing.capture_logs() as lines:
        await store.maintain(0, 0)
        disk.fail.clear()
        await store.maintain(0, 0)
        await store.maintain(0, 0)
    # Nothing but a restart helps, and that is said once of each.
    said = [(line["event"], line["database"], "restart" in line["advice"]) for line in lines]
    assert said == [("maintenance_failed", "a.db", True), ("maintenance_failed", "b.db", True)]
    # The kernel reports a lost write once: a later success would mean nothing, so the base stays.
    assert [each.database.saved_base.txid for each in apps] == [0, 0]
    store.close()
    store = open_store(tmp_path / "data", disk)
    for app in apps:
        app.go_on(store)
        app.check()
    store.close()
