"""Database files that the log does not know, and how they come into it."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import structlog

from litereplica.ltx.decode import decode_record
from litereplica.ltx.position import Position
from litereplica.sqlite.journal import encode_journal_header, encode_original
from litereplica.store.adopt import adopt, is_wal_database
from litereplica.store.store import Store, folder_name
from tests.store.application import NAME, assert_file_is, open_store
from tests.store.faulty_disk import FaultyDisk
from tests.store.pair import Pair
from tests.store.test_install import AT, SNAPSHOT, check, install


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


def test_a_file_whose_path_is_too_long_for_sqlite_is_kept_and_in_nobodys_way(root: Path, tmp_path: Path) -> None:
    make_database(tmp_path / "s.db", "WAL")
    target = root / "files" / ("d" * 200) / ("e" * 200) / ("f" * 180 + ".db")
    target.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "s.db", target)
    before = target.read_bytes()
    with structlog.testing.capture_logs() as lines:
        open_store(root).close()
    assert [line["file"] for line in lines if line["event"] == "unknown_file_unreadable"] == [str(target)]
    assert target.read_bytes() == before


SUPER_NAME = "app.db-mj0123AB9CD"


@pytest.mark.parametrize("content", [b"", bytes(700), b"/mnt/app.db-journal\0/mnt/b.db-journal\0"])
def test_a_super_journal_goes(root: Path, content: bytes) -> None:
    path = root / "files" / SUPER_NAME
    path.write_bytes(content)
    open_store(root).close()
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"SQLite format 3\0" + bytes(4080),
        b"notes",
        b"/mnt/app.db-journal",
        b"/mnt/app.db-journal\0/mnt/notes\0",
        b"app.db-journal\0",
        b"/mnt/app.db-journal\0" * 100_000,
    ],
)
def test_a_file_that_only_has_the_name_of_a_super_journal_is_left_alone(root: Path, content: bytes) -> None:
    path = root / "files" / "dir" / SUPER_NAME
    path.parent.mkdir()
    path.write_bytes(content)
    with structlog.testing.capture_logs() as lines:
        open_store(root).close()
    assert path.read_bytes() == content
    assert [line["path"] for line in lines if line["event"] == "unknown_file_left_alone"] == [str(path)]


# ---------------------------------------------------------------------- another node makes a database of the same name
def put(store: Store, name: str = NAME) -> dict[str, bytes]:
    """An unknown database with a WAL that SQLite has not folded in; what it is made of."""
    path = store.file_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"SQLite format 3\0" + b"the only copy")
    path.with_name(path.name + "-wal").write_bytes(b"and its WAL")
    path.with_name(path.name + "-journal").write_bytes(b"")
    return {path.name: path.read_bytes(), path.name + "-wal": b"and its WAL", path.name + "-journal": b""}


def kept(store: Store, number: int = 1, name: str = NAME) -> dict[str, bytes]:
    place = store.root / "unknown" / f"{folder_name(name)}.{number}"
    return {path.name: path.read_bytes() for path in place.iterdir()} if place.is_dir() else {}


def test_a_snapshot_of_its_name_sets_an_unknown_file_aside(root: Path) -> None:
    store = open_store(root)
    for number in (1, 2):
        expected = put(store)
        with structlog.testing.capture_logs() as lines:
            install(store, at=Position(50 * number, AT.checksum))
        assert kept(store, number) == expected
        [line] = [line for line in lines if line["event"] == "unknown_file_set_aside"]
        assert line["path"] == str(root / "unknown" / f"{folder_name(NAME)}.{number}")
        check(store.databases[NAME], SNAPSHOT, Position(50 * number, AT.checksum))
        assert not list(store.file_path(NAME).parent.glob("*-*"))
        store.databases[NAME].drop()
        store.file_path(NAME).unlink()
    store.close()
    open_store(root).close()
    assert kept(store, 1)
    assert kept(store, 2)


def test_a_snapshot_of_a_known_database_sets_nothing_aside(root: Path) -> None:
    store = open_store(root)
    install(store)
    install(store, at=Position(51, AT.checksum), apart=True)
    assert not (root / "unknown").exists()
    store.close()


@pytest.mark.parametrize("stops", [False, True])
def test_a_record_of_its_name_sets_an_unknown_file_aside(tmp_path: Path, stops: bool) -> None:
    pair = Pair(tmp_path)
    expected = put(pair.replica)
    pair.application.start()
    pair.application.commit()
    pair.deliver()
    if stops:
        # Before the file is made: redo makes it.
        pair.replica.close()
        pair.replica = open_store(tmp_path / "replica")
        assert_file_is(pair.replica.file_path(NAME), pair.application.oracle[1])
    assert kept(pair.replica) == expected
    pair.close()


def test_a_drop_of_its_name_takes_no_unknown_file_with_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    expected = put(pair.replica)
    pair.application.start()
    pair.application.commit()
    pair.application.drop()
    pair.deliver()
    assert kept(pair.replica) == expected
    assert not (pair.database.directory / "dropped").exists()
    pair.close()


def test_the_dropped_file_of_before_is_not_unknown(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.application.start()
    pair.application.commit()
    pair.deliver()
    pair.replica.file_path(NAME).parent.mkdir(exist_ok=True)
    pair.replica.file_path(NAME).write_bytes(b"".join(pair.application.oracle[1].values()))
    pair.database.set_applied(1)
    pair.application.drop()
    pair.application.commit()
    pair.deliver()
    assert not (pair.replica.root / "unknown").exists()
    pair.close()


@pytest.mark.parametrize("pages", [0, 3])
def test_what_an_application_was_making_is_not_kept_and_what_it_was_changing_is(root: Path, pages: int) -> None:
    store = open_store(root)
    put(store)
    path = store.file_path(NAME)
    before, changed = b"SQLite format 3\0".ljust(3 * 512, b"1"), b"SQLite format 3\0".ljust(4 * 512, b"2")
    path.write_bytes(changed)
    journal = encode_journal_header(pages, 512, 7)
    for pgno in range(1, pages + 1):
        journal += encode_original(pgno, before[(pgno - 1) * 512 : pgno * 512], 7)
    path.with_name(path.name + "-journal").write_bytes(journal)
    install(store)
    found = kept(store)
    assert found.get(path.name) == (before if pages else None)
    assert bool(found) == bool(pages)
    check(store.databases[NAME], SNAPSHOT, AT)
    store.close()


@pytest.mark.parametrize("content", [bytes(1536), b"SQLite format 3\0".ljust(1536, b"1")])
def test_so_it_is_while_the_magic_of_its_journal_is_kept_from_the_disk(root: Path, content: bytes) -> None:
    """Room was made for the pages, and none of them is there; or the journal was another one's."""
    store = open_store(root)
    put(store)
    path = store.file_path(NAME)
    path.write_bytes(content)
    path.with_name(path.name + "-journal").write_bytes(bytes(8) + encode_journal_header(0, 512, 7)[8:])
    install(store)
    assert kept(store).get(path.name) == (content if any(content) else None)
    check(store.databases[NAME], SNAPSHOT, AT)
    store.close()


def test_an_unknown_file_that_cannot_be_set_aside_is_not_replaced(root: Path) -> None:
    store = open_store(root)
    expected = put(store)
    (root / "unknown").write_bytes(b"in the way")
    with pytest.raises(OSError, match="unknown"):
        install(store)
    place = store.file_path(NAME).parent
    assert {path.name: path.read_bytes() for path in place.iterdir()} == expected
    (root / "unknown").unlink()
    install(store)
    assert kept(store) == expected
    store.close()


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
