"""Transactions of other nodes in a log: where they come from is kept like the rest of a record."""

import random
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.decode import decode_record
from litereplica.ltx.format import Origin
from litereplica.store.cursor import Trimmed
from litereplica.store.store import Store
from tests.store.application import NAME, Application, open_store
from tests.store.directory import segments, snapshot_of
from tests.store.faulty_disk import FaultyDisk
from tests.store.pair import ORIGIN, Pair


def with_transactions(store: Store, count: int) -> Application:
    app = Application(store)
    app.start()
    for _ in range(count):
        app.commit()
    return app


def last_record(store: Store) -> tuple[Path, int, bytes]:
    """(segment, offset, bytes) of the newest record."""
    log = store.databases[NAME].log
    segment = log.segment_of(log.last_txid)
    start, end = log.bounds(segment, log.last_txid)
    return segment.path, start, log.read(segment, start, end - start)


def test_it_is_known_of_every_transaction_that_the_log_has(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = with_transactions(store, 30)
    expected = [None if txid % 2 else Origin("node-2", 1000 + txid) for txid in range(1, 31)]
    for _ in range(2):
        assert [app.database.origin_at(txid) for txid in range(1, 31)] == expected
        # One that is still to come has none.
        assert app.database.origin_at(31) is None
        store.close()
        store = open_store(tmp_path / "data")
        app.go_on(store)
    store.close()


async def test_it_is_not_known_of_what_the_log_does_not_keep(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = with_transactions(store, 40)
    with pytest.raises(Trimmed):
        app.database.origin_at(0)
    await app.checkpoint()
    await store.maintain(age_s=0, size_bytes=1)
    first = app.database.log.first_txid
    assert first > 1
    with pytest.raises(Trimmed):
        app.database.origin_at(first - 1)
    assert app.database.origin_at(first) == app.origins[first]
    store.close()


async def test_a_record_of_any_size_has_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", segment_bytes=1 << 20)
    app = with_transactions(store, 1)
    database = app.database
    pages = [(pgno, app.page()) for pgno in range(1, 7001)]
    await database.commit_stream(list(range(1, 7001)), 7000, lambda i, j: pages[i:j], lambda: None, ORIGIN)
    database.commit(pages, 7000, lambda: None, ORIGIN)
    database.commit(pages[:1], 7000, lambda: None, ORIGIN)
    assert [database.origin_at(txid) for txid in (1, 2, 3, 4)] == [None, ORIGIN, ORIGIN, ORIGIN]
    assert decode_record(last_record(store)[2]).header.origin == ORIGIN
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_takes_the_same_records_in_any_pieces(tmp_path: Path, seed: int) -> None:
    pair = Pair(tmp_path, seed=seed)
    pair.start()
    chance = random.Random(seed)
    for _ in range(20):
        pair.application.commit()
    data = pair.undelivered()
    cuts = [0, *sorted(chance.sample(range(1, len(data)), 30)), len(data)]
    for start, stop in pairwise(cuts):
        pair.deliver(data[start:stop])
    replica, primary = pair.database, pair.application.database
    assert replica.position == primary.position
    for txid in range(1, primary.log.last_txid + 1):
        assert replica.origin_at(txid) == primary.origin_at(txid) == pair.application.origins[txid]
    pair.close()


async def durable_log(root: Path, disk: FaultyDisk, *, sync: bool) -> bytes:
    """A log whose newest record has an origin and, if ``sync``, is durable."""
    store = open_store(root, disk, segment_bytes=1 << 20)
    app = with_transactions(store, 3)
    await app.sync()
    app.commit({1: app.page()})
    if sync:
        await app.sync()
    record = last_record(store)[2]
    assert decode_record(record).header.origin == app.origins[4] == Origin("node-2", 1004)
    store.close()
    return record


def damaged_bytes(record: bytes) -> list[int]:
    """Offsets of everything but the page, of which some."""
    header_end = 8 + struct.unpack_from("<I", record, 4)[0]
    return [*range(header_end + 14), header_end + 200, *range(len(record) - 27, len(record))]


async def test_every_damaged_byte_of_a_durable_one_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    record = await durable_log(root, FaultyDisk(root, tmp_path / "graves"), sync=True)
    path = segments(root)[-1]
    good = path.read_bytes()
    start = good.index(record)
    for at in damaged_bytes(record):
        bad = bytearray(good)
        bad[start + at] ^= 0x14
        path.write_bytes(bad)
        before = snapshot_of(root)
        with pytest.raises((Corrupt, Refused)):
            open_store(root)
        assert snapshot_of(root) == before
    path.write_bytes(good)
    store = open_store(root)
    assert store.databases[NAME].origin_at(4) == Origin("node-2", 1004)
    store.close()


async def test_every_damaged_byte_of_one_that_was_not_durable_is_a_torn_tail(tmp_path: Path) -> None:
    for number in range(2):
        root = tmp_path / str(number)
        disk = FaultyDisk(root, tmp_path / f"graves-{number}")
        record = await durable_log(root, disk, sync=False)
        disk.lose_power("everything")
        path = segments(root)[-1]
        good = path.read_bytes()
        start = good.index(record)
        files = {each: each.read_bytes() for each in root.rglob("*") if each.is_file()}
        for at in damaged_bytes(record)[number::2]:
            for each, data in files.items():
                each.write_bytes(data)
            bad = bytearray(good)
            # The version becomes a lower one: a higher one is never a tear.
            bad[start + at] ^= 0x14 if at != 9 else 2
            path.write_bytes(bad)
            store = open_store(root, disk)
            assert store.databases[NAME].position.txid == 3
            assert path.read_bytes() == good[:start]
            store.close()


async def test_a_record_of_a_newer_version_is_never_taken_for_a_torn_tail(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    record = await durable_log(root, disk, sync=False)
    disk.lose_power("everything")
    path = segments(root)[-1]
    good = path.read_bytes()
    start = good.index(record)
    path.write_bytes(good[: start + 9] + b"\x03" + good[start + 10 :])
    before = snapshot_of(root)
    with pytest.raises(Refused, match="format version 3, this program reads versions 1 to 2"):
        open_store(root, disk)
    assert snapshot_of(root) == before
