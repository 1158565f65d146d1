import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.ltx.decode import decode_record
from litereplica.store.store import Store
from tests.store.application import Application, open_store, rolling
from tests.store.faulty_disk import FaultyDisk


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


def log_bytes(app: Application) -> bytes:
    return b"".join(each.path.read_bytes()[: each.length] for each in app.database.log.segments())


def accepted(app: Application) -> bool:
    try:
        app.commit()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


async def accepted_stream(app: Application) -> bool:
    try:
        await app.commit_stream()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def state(app: Application) -> tuple[object, ...]:
    database = app.database
    log = database.log
    return (
        database.position, database.page_count, database.applied, database.base, bytes(database.checksums.table),
        log.first_txid, log.last_txid, log.size_bytes, log.durable, log_bytes(app),
        [each.path.stat().st_size for each in log.segments() if each.length],
    )  # fmt: skip


def refuse() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_position_is_what_the_pages_of_file_and_records_add_up_to(app: Application) -> None:
    for _ in range(60):
        app.commit()
        app.check(file=False)


def test_page_checksums_follow_growth_and_shrinking(app: Application) -> None:
    app.commit({pgno: app.page() for pgno in range(1, 30)})
    app.commit({1: app.page(), 28: app.page()}, commit=5)
    app.check(file=False)
    app.commit({pgno: app.page() for pgno in (1, *range(6, 12))})
    app.check(file=False)


def test_the_lock_page_is_neither_logged_nor_counted(store: Store) -> None:
    app = Application(store, page_size=65536)
    app.start()
    database = app.database
    pages = [(pgno, app.page()) for pgno in (1, 16384, 16385, 16386)]
    database.commit(pages, 16386, lambda: None)
    assert database.position.checksum == rolling(dict(pages), 65536)
    assert database.checksums.table[16384] == 0
    record = decode_record(log_bytes(app))
    assert [pgno for pgno, _ in record.pages] == [1, 16384, 16386]


def test_a_refused_write_leaves_everything_as_before(app: Application) -> None:
    for _ in range(40):
        app.commit()
        before = state(app)
        with pytest.raises(OSError, match="No space"):
            app.commit(write=refuse)
        assert state(app) == before
    app.commit()
    app.check(file=False)


async def test_a_refused_write_of_a_streamed_commit_leaves_everything_as_before(app: Application) -> None:
    for _ in range(20):
        await app.commit_stream()
        before = state(app)
        with pytest.raises(OSError, match="No space"):
            await app.commit_stream(write=refuse)
        assert state(app) == before
    app.check(file=False)


@pytest.mark.parametrize("wants_durable", [False, True])
async def test_a_full_disk_refuses_commits_and_takes_them_when_there_is_room(
    app: Application, disk: FaultyDisk, wants_durable: bool
) -> None:
    for room in range(0, 9000, 173):
        app.commit()
        if wants_durable:
            await app.sync()
        before = state(app)
        disk.room_bytes = room
        while accepted(app):
            before = state(app)
        assert state(app)[:10] == before[:10]
        app.go_on(app.store)
        while await accepted_stream(app):
            before = state(app)
        assert state(app)[:10] == before[:10]
        disk.room_bytes = None
        app.go_on(app.store)
        app.commit()
        app.check(file=False)


async def test_streamed_commits_equal_small_ones(app: Application, tmp_path: Path) -> None:
    other = open_store(tmp_path / "other")
    twin = Application(other)
    twin.start()
    for seed in range(30):
        app.random = random.Random(seed)
        twin.random = random.Random(seed)
        app.commit()
        await twin.commit_stream()
        assert app.database.position == twin.database.position
    small, streamed = ([decode_record(log_bytes(each), start)[1:2] for start in starts(each)] for each in (app, twin))
    assert small == streamed
    other.close()


def starts(app: Application) -> list[int]:
    found, data, offset = [], log_bytes(app), 0
    while offset < len(data):
        found.append(offset)
        offset += decode_record(data, offset).length
    return found


def test_a_dropped_database_comes_again_with_the_next_txid(app: Application) -> None:
    app.commit()
    app.drop()
    assert not app.database.exists
    assert app.database.position.checksum == 0
    app.commit()
    app.check(file=False)
    assert app.database.position.txid == 3


def test_a_drop_that_the_log_refuses_has_not_happened(app: Application, disk: FaultyDisk) -> None:
    app.commit()
    before = state(app)
    disk.fail["pwrite"] = (0, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        app.drop()
    assert state(app) == before


async def test_a_drop_that_could_not_be_made_durable_has_not_happened(
    app: Application, disk: FaultyDisk, tmp_path: Path
) -> None:
    for _ in range(3):
        app.commit()
    await app.checkpoint()
    before = state(app)
    disk.fail["fdatasync"] = (0, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        app.database.drop()
    assert state(app) == before
    assert app.database.log.last_txid == 3
    assert app.database.log.cursor(3).read(1 << 20) == b""
    app.store.close()
    disk.revive()
    store = open_store(tmp_path / "data", disk)
    app.go_on(store)
    assert app.acknowledged == 3
    app.check()
    store.close()


async def test_a_database_cannot_be_dropped_or_changed_while_a_streamed_commit_is_under_way(app: Application) -> None:
    app.commit()
    app.database.append_bytes(b"LRX1 the beginning of a record")
    with pytest.raises(OSError, match="being logged"):
        app.drop()
    app.go_on(app.store)
    with pytest.raises(OSError, match="being logged"):
        await app.commit_stream()
    app.database.cut_uncounted()
    app.go_on(app.store)
    app.commit()
    app.check(file=False)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refused_commit_whose_record_was_on_the_disk_does_not_come_back(
    app: Application, disk: FaultyDisk, tmp_path: Path, streamed: bool
) -> None:
    app.commit()
    app.database.log.sync_blocking()
    txid = app.database.position.txid

    def written_back_and_refused() -> None:
        # As the kernel may at any time.
        disk.fdatasync([*app.database.log.segments()][-1].descriptor)
        refuse()

    async def commit() -> None:
        if streamed:
            await app.commit_stream(write=written_back_and_refused)
        else:
            app.commit(write=written_back_and_refused)

    with pytest.raises(OSError, match="No space"):
        await commit()
    app.store.close()
    disk.lose_power("nothing")
    store = open_store(tmp_path / "data", disk)
    assert store.databases[app.name].position.txid == txid
    store.close()


def test_a_log_that_could_not_be_cut_takes_nothing_more(app: Application, disk: FaultyDisk) -> None:
    app.commit()
    disk.fail["truncate"] = (0, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        app.commit(write=refuse)
    disk.fail.clear()
    with pytest.raises(OSError, match="restart this node"):
        app.commit()


def test_listeners_hear_of_every_change(app: Application, store: Store) -> None:
    heard: list[str] = []
    store.listeners.append(lambda database: heard.append(str(database.position)))
    app.commit()
    app.drop()
    assert heard == sorted(set(heard))
    assert len(heard) == 2


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_large_compressible_transactions_come_back_after_a_crash(tmp_path: Path, compression: str) -> None:
    store = open_store(tmp_path / "data", compression=compression)
    app = Application(store, page_size=4096)
    app.start()
    await app.commit_stream({pgno: bytes([pgno % 251]) * 4096 for pgno in range(1, 3000)})
    app.commit({1: app.page()})
    await app.checkpoint(whole=False)
    store.close()
    store = open_store(tmp_path / "data")
    app.go_on(store)
    app.check()
    store.close()


async def test_a_file_is_folded_when_it_has_every_page_of_the_wal(app: Application) -> None:
    for _ in range(5):
        app.commit()
    await app.checkpoint()
    for _ in range(20):
        app.commit()
    database = app.database
    content = dict(app.oracle[app.acknowledged])

    def read(offset: int, size: int) -> bytes:
        return content.get(offset // 512 + 1, b"")[:size]

    assert database.is_folded(read)
    content[1] = bytes(512)
    assert not database.is_folded(read)
    del content[1]
    assert not database.is_folded(read)
    database.file_complete()
    assert database.is_folded(read)


async def test_one_page_tells_whether_the_newest_transaction_is_in_the_file(app: Application) -> None:
    app.commit()
    database = app.database
    content = dict(app.oracle[app.acknowledged])

    def read(offset: int, size: int) -> bytes:
        return content.get(offset // 512 + 1, b"")[:size]

    assert not database.lacks_newest(read)
    for change in ({2: app.page()}, {1: app.page()}, {1: app.page(), len(content) + 1: app.page()}):
        app.commit(change)
        assert database.lacks_newest(read)
        content.update(change)
        assert not database.lacks_newest(read)
    app.commit({3: content[3]})
    assert not database.lacks_newest(lambda _offset, _size: b""), "it has changed nothing"
