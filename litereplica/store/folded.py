"""Whether a database file has what its log says, page by page.

Knows how to find the pages that records changed. Does not know who asks, or what follows from the answer.
"""

from collections.abc import Callable, Iterable, Iterator

from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import Event, PageBlock, RecordDecoder
from litereplica.store.log import Log

_READ_BYTES = 256 * 1024


def changed_page(entries: Iterable[tuple[int, int]], table: memoryview) -> tuple[int, int] | None:
    """The first of the (pgno, checksum) that is another one in ``table``.

    ``entries`` end with page 1, which a primary in rollback mode may change by itself.
    """
    for pgno, entry in entries:
        if entry != table[pgno - 1]:
            return pgno, entry
    return None


def decode_all(pieces: Iterator[bytes]) -> Iterator[Event]:
    """The events of whole records that come in pieces. Raises Corrupt, Refused as RecordDecoder does."""
    decoder = RecordDecoder()
    for piece in pieces:
        yield from decoder.feed(piece)
        while decoder.more:
            yield from decoder.feed(b"")
        if decoder.failure is not None:
            raise decoder.failure
    decoder.finish()


def changed_pages(log: Log, after_txid: int) -> set[int]:
    """Page numbers in the records after ``after_txid``. Raises Trimmed, Corrupt, OSError."""
    cursor = log.cursor(after_txid)
    changed: set[int] = set()
    for event in decode_all(iter(lambda: cursor.read(_READ_BYTES), b"")):
        if isinstance(event, PageBlock):
            changed.update(pgno for pgno, _ in event.pages)
    return changed


def has_pages(
    log: Log, after_txid: int, pgnos: range, page_size: int, table: memoryview, read: Callable[[int, int], bytes]
) -> bool:
    """Whether the file behind ``read(offset, size)`` has the newest image of those of ``pgnos`` changed since.

    That is, by a record after ``after_txid``. ``table[pgno - 1]`` are the page checksums that it should have.
    """
    for pgno in changed_pages(log, after_txid):
        if pgno in pgnos:
            page = read((pgno - 1) * page_size, page_size)
            if len(page) != page_size or page_checksum(pgno, page) != table[pgno - 1]:
                return False
    return True
