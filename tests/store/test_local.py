"""Records of transactions that another node has to commit: the same as the log would have, and nothing is left."""

import errno
import random
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from litereplica.errors import Corrupt
from litereplica.ltx.decode import Record, decode_record
from litereplica.ltx.position import Position
from litereplica.store.adopt import log_file, record_file
from litereplica.store.commit import log_pages
from litereplica.store.database import Database, Pages
from litereplica.store.local import LocalTransaction, Stale, record_local
from litereplica.store.spool import MEMORY_BYTES, Spool
from litereplica.store.store import Store
from tests.store.application import NAME, Application, open_store
from tests.store.faulty_disk import FaultyDisk
from tests.store.pair import ORIGIN, file_names


@pytest.fixture
def disk(tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(tmp_path / "data", tmp_path / "graves")


@pytest.fixture
def store(tmp_path: Path, disk: FaultyDisk) -> Iterator[Store]:
    store = open_store(tmp_path / "data", disk)
    yield store
    store.close()


@pytest.fixture
def app(store: Store) -> Application:
    app = Application(store)
    app.start()
    return app


def whole(transaction: LocalTransaction, step: int = 1000) -> bytes:
    return b"".join(transaction.read(offset, step) for offset in range(0, transaction.length, step))


def same_but_for_the_time(one: Record, other: Record) -> bool:
    return one.header._replace(timestamp_ms=0) == other.header._replace(timestamp_ms=0) and (
        one.pages,
        one.trailer.post_checksum,
    ) == (other.pages, other.trailer.post_checksum)


async def compare_and_commit(
    database: Database, pages: Pages, commit: int, page_size: int
) -> tuple[LocalTransaction, Record]:
    """The record, compared with what the log makes of the same transaction a moment later."""
    pgnos = [pgno for pgno, _ in pages]
    before = (database.position, database.page_count, bytes(database.checksums.table), database.log.size_bytes)
    transaction = await record_local(database, pgnos, commit, page_size, lambda i, j: pages[i:j], ORIGIN)
    assert (database.position, database.page_count, bytes(database.checksums.table), database.log.size_bytes) == before
    data = whole(transaction)
    assert len(data) == transaction.length
    made = decode_record(data)
    pending = await log_pages(database, pgnos, commit, page_size, lambda i, j: pages[i:j], ORIGIN)
    pending.count()
    log = database.log
    start, end = log.bounds(log.segment_of(log.last_txid), log.last_txid)
    logged = decode_record(log.read(log.segment_of(log.last_txid), start, end - start))
    assert same_but_for_the_time(made, logged)
    assert (transaction.origin, transaction.base, transaction.commit) == (ORIGIN, before[0], commit)
    assert (transaction.post_checksum, transaction.page_size) == (database.position.checksum, page_size)
    assert (transaction.database, transaction.name) == (database, NAME)
    return transaction, made


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_the_record_is_the_one_that_the_log_would_have(tmp_path: Path, compression: str) -> None:
    store = open_store(tmp_path / "data", compression=compression, segment_bytes=1 << 20)
    database = store.create(NAME)
    chance = random.Random(compression)
    sizes = [512] * 12 + [4096] * 4 + [512] * 4
    pages_now = 0
    for page_size in sizes:
        if page_size != database.page_size or not database.exists:
            commit = chance.randint(1, 40)
            pgnos = list(range(1, commit + 1))
        else:
            commit = chance.randint(1, pages_now + 20)
            grown = set(range(pages_now + 1, commit + 1))
            pgnos = sorted({1} | grown | {chance.randint(1, commit) for _ in range(5)})
        pages = [(pgno, chance.randbytes(page_size)) for pgno in pgnos]
        transaction, made = await compare_and_commit(database, pages, commit, page_size)
        assert made.header.node == "node-1"
        assert made.header.min_txid == made.header.max_txid == transaction.base.txid + 1
        transaction.close()
        pages_now = commit
        if chance.random() < 0.2:
            database.drop()
            pages_now = 0
    assert file_names(store) == []
    store.close()


async def test_a_new_database_begins_at_position_zero(store: Store) -> None:
    database = store.create(NAME)
    pages = [(pgno, bytes([pgno]) * 512) for pgno in range(1, 9)]
    transaction, _ = await compare_and_commit(database, pages, 8, 512)
    assert transaction.base == Position.ZERO
    transaction.close()


async def test_beyond_the_lock_page(store: Store) -> None:
    app = Application(store, page_size=65536)
    app.start()
    pages = [(pgno, app.page()) for pgno in (1, 16384, 16386)]
    transaction, made = await compare_and_commit(app.database, pages, 16386, 65536)
    assert made.header.page_count == 3
    transaction.close()


async def test_a_long_transaction_takes_a_file_and_little_memory(store: Store) -> None:
    app = Application(store, page_size=4096)
    app.start()
    count = 6000
    image = app.page()

    def read(start: int, end: int) -> Pages:
        return [(pgno, image[:-4] + pgno.to_bytes(4, "big")) for pgno in range(start + 1, end + 1)]

    tracemalloc.start()
    try:
        transaction = await record_local(app.database, list(range(1, count + 1)), count, 4096, read, ORIGIN)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEMORY_BYTES
    finally:
        tracemalloc.stop()
    assert transaction.length > count * 4096
    assert len(file_names(store)) == 1
    record = decode_record(whole(transaction, 1 << 20))
    assert record.pages == read(0, count)
    assert transaction.read(transaction.length - 3, 100) == whole(transaction)[-3:]
    transaction.close()
    transaction.close()
    assert file_names(store) == []


async def test_a_transaction_is_stale_when_another_one_comes_while_its_record_is_made(app: Application) -> None:
    app.commit()
    store = app.store
    pages = [(pgno, app.page()) for pgno in range(1, 6001)]

    async def commit_meanwhile() -> None:
        app.commit()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit_meanwhile)
        with pytest.raises(Stale, match="begin it again"):
            await record_local(app.database, [pgno for pgno, _ in pages], 6000, 512, lambda i, j: pages[i:j], ORIGIN)
    assert file_names(store) == []
    app.check(file=False)


async def test_a_full_disk_leaves_nothing(app: Application, disk: FaultyDisk) -> None:
    app.commit()
    pages = [(pgno, app.page()) for pgno in range(1, 12001)]
    before = bytes(app.database.checksums.table)
    for room in range(0, 6_100_000, 700_000):
        disk.room_bytes = room
        with pytest.raises(OSError, match="No space") as raised:
            await record_local(app.database, [pgno for pgno, _ in pages], 12000, 512, lambda i, j: pages[i:j], ORIGIN)
        assert raised.value.errno == errno.ENOSPC
        assert file_names(app.store) == []
    disk.room_bytes = None
    assert bytes(app.database.checksums.table) == before
    app.commit()
    app.check(file=False)


async def test_pages_that_cannot_be_read_leave_nothing(app: Application) -> None:
    app.commit()

    def read(start: int, end: int) -> Pages:
        if start > 4096:
            raise OSError(errno.EIO, "Input/output error")
        return [(pgno, bytes(512)) for pgno in range(start + 1, end + 1)]

    with pytest.raises(OSError, match="Input/output"):
        await record_local(app.database, list(range(1, 9001)), 9000, 512, read, ORIGIN)
    assert file_names(app.store) == []


# -- a whole file -----------------------------------------------------------------------------------------------------


def make_file(store: Store, rows: int = 100) -> Path:
    path = store.file_path(NAME)
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (randomblob(300))", [()] * rows)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("rows", [1, 9000])
async def test_a_new_file_is_the_transaction_that_the_primary_would_make_of_it(store: Store, rows: int) -> None:
    make_file(store, rows)
    transaction = await record_file(store, NAME, ORIGIN)
    made = decode_record(whole(transaction, 1 << 20))
    assert transaction.base == Position.ZERO
    database = store.databases[NAME]
    assert not database.exists
    (await log_file(store, NAME, ORIGIN)).count()
    assert database.position == Position(1, transaction.post_checksum)
    assert database.origin_at(1) == ORIGIN
    assert b"".join(page for _, page in made.pages) == store.file_path(NAME).read_bytes()
    transaction.close()


async def test_a_file_that_is_no_database_is_no_transaction(store: Store) -> None:
    path = make_file(store)
    path.write_bytes(b"something else" * 100)
    with pytest.raises(Corrupt):
        await record_file(store, NAME, ORIGIN)
    assert NAME not in store.databases


# -- what is on its way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [0, 10, 1000])
def test_a_spool_gives_back_what_was_put_in(store: Store, memory_bytes: int) -> None:
    chance = random.Random(memory_bytes)
    spools = [Spool(store, memory_bytes) for _ in range(3)]
    contents = [b""] * 3
    for _ in range(40):
        number = chance.randrange(3)
        data = chance.randbytes(chance.randrange(20))
        spools[number].append(data)
        contents[number] += data
        at = chance.randrange(30)
        assert spools[number].read(at, 7) == contents[number][at : at + 7]
    for spool, content in zip(spools, contents, strict=True):
        assert (spool.length, b"".join(spool.pieces(6))) == (len(content), content)
        assert (spool.path is None) == (len(content) <= memory_bytes)
        if spool.path is None:
            assert spool.whole(len(content)) == content
            assert spool.path is None
        if content:
            found = spool.whole(len(content) - 1)
            assert isinstance(found, Path)
            assert found.read_bytes() == content
        assert spool.to_file().read_bytes() == content
        assert spool.read(0, 5) == content[:5]
        spool.close()
    assert file_names(store) == []


def fill(spool: Spool) -> None:
    for _ in range(3):
        spool.append(b"0123456789")


def test_a_spool_on_a_full_disk_is_gone(store: Store, disk: FaultyDisk) -> None:
    for memory_bytes in (0, 5, 15):
        spool = Spool(store, memory_bytes)
        disk.room_bytes = 12
        with pytest.raises(OSError, match="No space"):
            fill(spool)
        assert file_names(store) == []
        spool = Spool(store, 100)
        spool.append(b"0123456789abcdef")
        disk.room_bytes = 12
        with pytest.raises(OSError, match="No space"):
            spool.to_file()
        assert file_names(store) == []


def test_a_start_removes_what_was_on_its_way_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "data"
    store = open_store(root)
    spool = Spool(store, 0)
    spool.append(b"never sent")
    folder = store.forwarded
    unknown = ["notes.txt", "0000000000000001.spool.bak", "000000000000000G.spool", "1.spool"]
    for name in unknown:
        (folder / name).write_bytes(b"somebody's")
    (folder / "00000000000000aa.spool").symlink_to(folder / "notes.txt")
    (folder / "0000000000000001.spool").unlink()
    (folder / "0000000000000001.spool").mkdir()
    (folder / "0000000000000002.spool").symlink_to(folder / "missing")
    kept = sorted([*unknown, "00000000000000aa.spool", "0000000000000001.spool", "0000000000000002.spool"])
    for _ in range(2):
        (folder / "0000000000000009.spool").write_bytes(b"of the process before")
        store.close()
        store = open_store(root)
        assert file_names(store) == kept
    spool = Spool(store, 0)
    spool.append(b"a name that nothing has yet")
    assert file_names(store) == sorted([*kept, "0000000000000003.spool"])
    spool.close()
    assert (folder / "notes.txt").read_bytes() == b"somebody's"
    store.close()
