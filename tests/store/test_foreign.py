"""Database files that the log does not know, and how they come into it."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from litereplica.ltx.decode import decode_record
from litereplica.store.adopt import adopt, is_wal_database
from litereplica.store.store import Store
from tests.store.application import open_store
from tests.store.faulty_disk import FaultyDisk


def make_database(path: Path, mode: str, rows: int = 50) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * rows)
    connection.close()


def copy_in_use(source: Path, target: Path) -> None:
    for each in source.parent.glob(source.name + "*"):
        if not each.name.endswith("-shm"):
            shutil.copy(each, target.with_name(target.name + each.name.removeprefix(source.name)))


def rows_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    found: int = connection.execute("SELECT count(*) FROM t").fetchone()[0]
    connection.close()
    return found


def opened(root: Path) -> Store:
    open_store(root).close()
    return open_store(root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    open_store(tmp_path / "data").close()
    return tmp_path / "data"


def test_frames_that_were_not_checkpointed_are_folded_in(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "s.db"
    make_database(source, "WAL")
    connection = sqlite3.connect(source)
    connection.execute("INSERT INTO t VALUES (1)")
    connection.commit()
    target = root / "files" / "app.db"
    copy_in_use(source, target)
    connection.close()
    assert target.with_name("app.db-wal").stat().st_size > 0
    open_store(root).close()
    assert not target.with_name("app.db-wal").exists()
    assert rows_of(target) == 51


def test_a_hot_journal_is_rolled_back(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "s.db"
    make_database(source, "DELETE")
    connection = sqlite3.connect(source, isolation_level=None)
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE t SET x = randomblob(500)")
    target = root / "files" / "app.db"
    copy_in_use(source, target)
    connection.execute("ROLLBACK")
    connection.close()
    assert target.with_name("app.db-journal").stat().st_size > 0
    open_store(root).close()
    assert not target.with_name("app.db-journal").exists()
    assert target.read_bytes() == source.read_bytes()


def test_a_rollback_database_is_left_as_it_is_at_every_start(root: Path) -> None:
    target = root / "files" / "app.db"
    make_database(target, "DELETE")
    before = target.read_bytes()
    for _ in range(2):
        store = open_store(root)
        assert not store.databases
        store.stop()
        store.close()
    assert target.read_bytes() == before


def test_a_file_that_sqlite_cannot_read_is_kept_and_in_nobodys_way(root: Path) -> None:
    target = root / "files" / "app.db"
    make_database(target, "DELETE")
    with target.open("r+b") as file:
        file.seek(50)
        file.write(b"\xff" * 200)
    before = target.read_bytes()
    store = open_store(root)
    assert not store.databases
    store.close()
    assert target.read_bytes() == before


async def test_an_adopted_file_is_the_first_transaction(root: Path) -> None:
    store = open_store(root)
    path = store.file_path("app.db")
    make_database(path, "WAL")
    assert is_wal_database(path)
    database = await adopt(store, "app.db")
    assert (database.position.txid, database.base, database.applied) == (1, database.position, 1)
    [segment] = database.log.segments()
    record = decode_record(segment.path.read_bytes())
    assert b"".join(page for _, page in record.pages) == path.read_bytes()
    store.close()


async def test_after_a_crash_between_log_and_journal_the_log_is_right(root: Path, tmp_path: Path) -> None:
    store = open_store(root)
    path = store.file_path("app.db")
    make_database(path, "WAL")
    await adopt(store, "app.db")
    content = path.read_bytes()
    path.with_name("app.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    store.close()
    store = open_store(root)
    assert path.read_bytes() == content
    assert not path.with_name("app.db-journal").exists()
    store.close()


@pytest.mark.parametrize("keep", ["nothing", "everything", "random"])
async def test_a_power_loss_that_takes_the_record_does_not_take_the_file(tmp_path: Path, keep: str) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    store = open_store(root, disk)
    path = store.file_path("app.db")
    make_database(path, "WAL")
    await adopt(store, "app.db")
    content = path.read_bytes()
    store.close()
    disk.lose_power(keep)
    for _ in range(2):
        store = open_store(root, disk)
        assert path.read_bytes() == content
        found = store.get("app.db")
        if found is None or not found.exists:
            assert keep != "everything"
        store.stop()
        store.close()


async def test_a_new_file_under_the_name_of_a_dropped_database_is_kept(root: Path) -> None:
    store = open_store(root)
    path = store.file_path("app.db")
    make_database(path, "WAL")
    database = await adopt(store, "app.db")
    database.drop()
    path.unlink()
    make_database(path, "DELETE", rows=7)
    store.close()
    for clean in (False, True, True):
        store = open_store(root)
        assert rows_of(path) == 7
        if clean:
            store.stop()
        store.close()


async def test_the_file_of_a_dropped_database_goes_when_a_crash_came_before_its_unlink(root: Path) -> None:
    store = open_store(root)
    path = store.file_path("app.db")
    make_database(path, "WAL")
    database = await adopt(store, "app.db")
    database.drop()
    store.close()
    store = open_store(root)
    assert not path.exists()
    assert not store.databases["app.db"].exists
    store.close()


async def test_a_drop_is_durable_before_its_name_is_free_for_another_file(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    store = open_store(root, disk)
    path = store.file_path("app.db")
    make_database(path, "WAL")
    database = await adopt(store, "app.db")
    await store.maintain(1e9, 1 << 40)
    database.drop()
    path.unlink()
    store.close()
    disk.lose_power("nothing")
    store = open_store(root, disk)
    assert store.databases["app.db"].position.txid == 2
    assert not store.databases["app.db"].exists
    assert not path.exists()
    store.close()
