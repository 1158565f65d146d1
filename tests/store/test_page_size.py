"""VACUUM into another page size: one record with every page, after which nothing of the old pages is left."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.encode import encode_record
from litereplica.ltx.format import RecordHeader
from litereplica.ltx.position import Position
from litereplica.store.apply import write_span
from litereplica.store.database import ROLLBACK_MODE, WAL_MODE, Database
from litereplica.store.disk import Disk
from litereplica.store.install import install_path
from litereplica.store.receive import Diverged, LogReceiver
from litereplica.store.store import Store
from tests.store.application import Content, open_store, rolling

NAME = "app.db"


class History:
    """Records of a database whose page size changes; ``contents[txid]`` is (page size, pages)."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.contents: list[tuple[int, Content]] = [(512, {})]
        self.records: list[bytes] = []

    def page(self, size: int, versions: bytes = b"\1\1") -> bytes:
        page = bytearray(self.random.randbytes(size))
        page[18:20] = versions
        return bytes(page)

    def add(self, changes: Content, commit: int, size: int, *, checksum: int | None = None) -> bytes:
        before, old = self.contents[-1]
        kept = old if size == before else {}
        content = {pgno: page for pgno, page in {**kept, **changes}.items() if pgno <= commit}
        txid = len(self.contents)
        after = rolling(content, size) if checksum is None else checksum
        header = RecordHeader(NAME, size, commit, len(changes), txid, txid, 1, "a", 0, rolling(old, before), "none")
        data = encode_record(header, sorted(changes.items()), after)
        self.contents.append((size, content))
        self.records.append(data)
        return data

    def whole(self, pages: int, size: int, versions: bytes = b"\1\1") -> bytes:
        return self.add({pgno: self.page(size, versions) for pgno in range(1, pages + 1)}, pages, size)

    def touch(self) -> bytes:
        size, content = self.contents[-1]
        return self.add(
            {pgno: self.page(size) for pgno in {1, self.random.randint(1, len(content))}}, len(content), size
        )

    def file(self, txid: int = -1) -> bytes:
        _, content = self.contents[txid]
        return b"".join(content[pgno] for pgno in sorted(content))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data")
    yield opened
    opened.close()


def check(database: Database, history: History) -> None:
    size, content = history.contents[-1]
    assert (database.page_size, database.page_count) == (size, len(content))
    assert database.position.checksum == rolling(content, size)
    table = database.checksums.table
    assert [table[pgno - 1] for pgno in range(1, len(content) + 1)] == [
        page_checksum(pgno, content[pgno]) for pgno in range(1, len(content) + 1)
    ]
    assert not any(table[len(content) :])


def sizes(seed: int = 0) -> History:
    """4096, then 512 (many more pages), then 65536 (fewer), then 1024."""
    history = History(seed)
    history.whole(20, 4096)
    history.touch()
    for pages, size in ((170, 512), (2, 65536), (90, 1024)):
        history.whole(pages, size)
        history.touch()
        history.touch()
    return history


@pytest.mark.parametrize("step", [100, 7777, 1 << 30])
def test_a_received_record_with_every_page_changes_the_page_size(store: Store, step: int) -> None:
    history = sizes()
    database = store.create(NAME)
    receiver = LogReceiver(database)
    data = b"".join(history.records)
    for start in range(0, len(data), step):
        receiver.feed(data[start : start + step], 1)
    check(database, history)


def test_the_journal_mode_is_that_of_the_newest_first_page(store: Store) -> None:
    history = History()
    database = store.create(NAME)
    receiver = LogReceiver(database)
    for versions, mode in ((b"\1\1", ROLLBACK_MODE), (b"\2\2", WAL_MODE), (b"\1\1", ROLLBACK_MODE)):
        receiver.feed(history.whole(3, 512, versions), 1)
        assert database.journal_mode == mode


def test_a_record_without_every_page_does_not_change_the_page_size(store: Store) -> None:
    history = History()
    database = store.create(NAME)
    receiver = LogReceiver(database)
    receiver.feed(history.whole(5, 4096), 1)
    position = database.position
    with pytest.raises(Diverged, match="not all of them"):
        receiver.feed(history.add({1: history.page(512)}, 30, 512), 1)
    assert database.position == position
    assert database.page_size == 4096


def test_a_wrong_checksum_leaves_the_old_pages_in_place(store: Store) -> None:
    history = History()
    database = store.create(NAME)
    receiver = LogReceiver(database)
    receiver.feed(history.whole(5, 4096), 1)
    table = list(database.checksums.table[:10])
    with pytest.raises(Diverged, match="leads to checksum"):
        receiver.feed(history.add({pgno: history.page(512) for pgno in range(1, 9)}, 8, 512, checksum=1), 1)
    assert (database.page_size, database.page_count, database.position.txid) == (4096, 5, 1)
    assert list(database.checksums.table[:10]) == table


@pytest.mark.parametrize("seed", range(12))
def test_redo_makes_the_newest_file_of_whatever_a_crash_has_left(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    history = sizes(seed)
    store = open_store(tmp_path / "data")
    database = store.create(NAME)
    receiver = LogReceiver(database)
    for record in history.records:
        receiver.feed(record, 1)
    one, other = (history.file(chance.randrange(1, len(history.contents))) for _ in range(2))
    cut = chance.randrange(len(one))
    database.file_path.write_bytes(one[:cut] + other[cut:])
    store.close()  # and not stop: as a kill leaves it
    store = open_store(tmp_path / "data")
    check(store.databases[NAME], history)
    assert database.file_path.read_bytes() == history.file()
    store.stop()
    store.close()
    store = open_store(tmp_path / "data")
    check(store.databases[NAME], history)
    store.close()


def test_a_new_file_from_records_of_several_sizes(store: Store, tmp_path: Path) -> None:
    history = sizes()
    database = store.create(NAME)
    LogReceiver(database).feed(b"".join(history.records), 1)
    target, after = tmp_path / "new", 0
    while (span := database.log.spans(after, 1 << 20, 3)) is not None:
        write_span(Disk(), target, span)
        after = span.last_txid
    assert target.read_bytes() == history.file()


def test_a_snapshot_with_another_page_size_goes_through_the_applier(store: Store) -> None:
    """Whoever has the old content open would never see a file that is merely renamed into its place."""
    history = History()
    database = store.create(NAME)
    LogReceiver(database).feed(history.whole(5, 4096), 1)
    database.file_path.write_bytes(history.file())
    database.set_applied(1)
    pages = {pgno: history.page(512) for pgno in range(1, 8)}
    path = store.incoming / "pages"
    path.write_bytes(b"".join(pages.values()))
    position = Position(50, rolling(pages, 512))
    checksums = memoryview(b"".join(page_checksum(*each).to_bytes(8, "little") for each in pages.items())).cast("Q")
    store.install(NAME, path, 512, 7, position, checksums, 1, 0)
    assert database.pending_install == install_path(database.directory, position)
    assert (database.page_size, database.page_count) == (512, 7)
    assert database.file_path.read_bytes() == history.file()
