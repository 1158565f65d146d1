"""Snapshots beside rollback journals, and changes of the page size, over TCP."""

from pathlib import Path

import trio

from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.store.commit import log_pages
from tests.replication.nodes import PAGE, Line, Node, old, same, until


async def resize(node: Node, pages: int, page_size: int, *, file: bool = True) -> None:
    """What VACUUM into another page size does: one record with every page, and then the file is as it says."""
    database = node.database()
    content = [(pgno, node.random.randbytes(page_size)) for pgno in range(1, pages + 1)]
    pending = await log_pages(database, [pgno for pgno, _ in content], pages, page_size, lambda i, j: content[i:j])
    if file:
        database.file_path.write_bytes(b"".join(page for _, page in content))
    pending.count()
    if file:
        database.file_complete()


def assert_replayed(node: Node) -> None:
    """The file with the log's records over it is what the position says."""
    database = node.database()
    path: Path = database.file_path
    pages = bytearray(path.read_bytes()) if path.exists() else bytearray()
    cursor = database.log.cursor(database.log.first_txid - 1)
    decoder = RecordDecoder()
    size = 0
    while data := cursor.read(1 << 20):
        for event in decoder.feed(data):
            if isinstance(event, RecordHeader):
                size = event.page_size
                wanted = event.commit * size
                pages[wanted:] = bytes(max(0, wanted - len(pages)))
            elif isinstance(event, PageBlock):
                for pgno, page in event.pages:
                    pages[(pgno - 1) * size : pgno * size] = page
    size = database.page_size
    checksum = 0
    for pgno in range(1, database.page_count + 1):
        checksum ^= page_checksum(pgno, bytes(pages[(pgno - 1) * size : pgno * size]))
    assert checksum == database.position.checksum
    assert database.checksums.xor_range(1, database.page_count) == checksum


async def test_records_change_the_page_size(primary: Node, replica: Node) -> None:
    primary.grow(20)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
        for pages, page_size in ((200, 512), (2, 65536), (30, PAGE)):
            await resize(primary, pages, page_size, file=False)
            primary.commit([1, 2], pages, page_size=page_size)
            await until(lambda: same(primary, replica))
            assert replica.database().page_size == page_size
            assert_replayed(replica)


async def test_the_page_size_changes_under_a_snapshot(primary: Node, replica: Node) -> None:
    await old(primary, 3000)
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        await until(lambda: line.sent_bytes > 2_000_000)
        await resize(primary, 900, 512)
        primary.commit([1, 3, 901], 901, page_size=512)
        await until(lambda: same(primary, replica))
        assert replica.database().page_size == 512
        assert_replayed(replica)


async def test_a_snapshot_that_was_cut_after_the_page_size_changed(primary: Node, replica: Node) -> None:
    """Its pages are gone by then, and needless: the records make the whole."""
    await old(primary, 3000)
    line = Line()
    async with primary.serving(), line.to(primary.port):
        async with replica.following(line.port):
            await until(lambda: line.sent_bytes > 2_000_000)
            await resize(primary, 40, 65536)
            line.cut_after_bytes = 6_000_000  # pages, the change, and some of the records after it
            for _ in range(20):
                primary.commit([1, 30], 40, page_size=65536)
            await until(lambda: line.connections > 1)
            await until(lambda: same(primary, replica))
        assert replica.database().page_size == 65536
        assert_replayed(replica)


async def test_a_snapshot_replaces_a_database_of_another_page_size(primary: Node, replica: Node) -> None:
    replica.commit([1, 2, 3], 3, page_size=512)
    replica.database().file_path.write_bytes(replica.random.randbytes(3 * 512))
    primary.grow(700)
    primary.checkpoint()
    primary.touch(3)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica))
        primary.touch(3)
        await until(lambda: same(primary, replica))
        assert replica.database().page_size == PAGE
        assert_replayed(replica)


async def folded(primary: Node, pages: int) -> bytes:
    """A database that only a snapshot can bring; what its file holds."""
    await old(primary, pages)
    primary.checkpoint()
    return primary.database().file_path.read_bytes()


async def test_pages_under_a_live_journal_are_not_sent(primary: Node, replica: Node) -> None:
    committed = await folded(primary, 1000)
    database = primary.database()
    database.open_pages.add(500, 500)
    with database.file_path.open("r+b") as file:
        file.seek(499 * PAGE)
        file.write(bytes(PAGE))
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        await until(lambda: line.sent_bytes > 256 * PAGE)
        await trio.sleep(0.3)
        assert line.sent_bytes < 512 * PAGE
        database.file_path.write_bytes(committed)
        database.open_pages.close(rolled_back=True)
        await until(lambda: same(primary, replica))
        assert line.sent_bytes < 1100 * PAGE  # nothing was sent twice
        assert_replayed(replica)


async def test_pages_that_a_journal_takes_back_while_they_are_read_are_read_again(primary: Node, replica: Node) -> None:
    """Journals that come and go under the whole snapshot; nothing of what they undo arrives."""
    committed = await folded(primary, 3000)
    database = primary.database()
    line = Line()
    async with primary.serving(), line.to(primary.port), replica.following(line.port):
        turn = 0
        with database.file_path.open("r+b", buffering=0) as file:
            while not same(primary, replica):
                turn += 1
                first = 1 + (turn * 371) % 2900
                database.open_pages.add(first, first + 99)
                file.seek((first - 1) * PAGE)
                file.write(bytes(100 * PAGE))
                await trio.sleep(0.001)
                file.seek((first - 1) * PAGE)
                file.write(committed[(first - 1) * PAGE : (first + 99) * PAGE])
                database.open_pages.close(rolled_back=True)
                await trio.sleep(0.001)
                assert turn < 20_000
        assert line.sent_bytes < 3100 * PAGE
        assert_replayed(replica)


async def test_a_journal_that_stays_open_stalls_no_other_snapshot(primary: Node, replica: Node) -> None:
    committed = await folded(primary, 300)
    await old(primary, 300, "b.db")
    database = primary.database()
    database.open_pages.add(290, 290)
    database.file_path.write_bytes(committed[: 289 * PAGE] + bytes(PAGE) + committed[290 * PAGE :])
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: same(primary, replica, "b.db"), 40)
        assert not same(primary, replica)
        database.file_path.write_bytes(committed)
        database.open_pages.close(rolled_back=True)
        await until(lambda: same(primary, replica), 40)
        assert_replayed(replica)
