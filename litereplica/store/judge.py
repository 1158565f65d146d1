"""Which pages of a database file cannot be what they should be.

Knows why a page of a live file may rightly differ from its newest image: a record after a position that is wholly in
the file changes it, so that its newest image may still be in the WAL only, or be on its way into the file just now. The
log has that image, and its own checksums. Every other page must have the checksum that the table says. Does not know
how pages are read, nor about live rollback journals (store.open_pages): whoever reads does.
"""

from array import array
from typing import Final

import numpy as np
import trio

from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.position import Position
from litereplica.store.database import Database

# Decoded between two turns of other tasks: about a millisecond.
_READ_BYTES: Final = 256 * 1024


def page_checksums(data: bytes | memoryview, first_pgno: int, page_size: int, lock_page: int) -> "array[int]":
    """The checksums of whole pages in ``data``, the first of which is ``first_pgno``; 0 for the lock page."""
    entries = array("Q")
    with memoryview(data) as view:
        for number in range(len(view) // page_size):
            pgno = first_pgno + number
            page = view[number * page_size : (number + 1) * page_size]
            entries.append(0 if pgno == lock_page else page_checksum(pgno, page))
    return entries


async def logged_images(database: Database, pgnos: list[int]) -> dict[int, set[int]]:
    """Checksums of every image that the records after ``base`` have of some pages: what a checkpoint may write.

    Raises Trimmed, Corrupt, OSError.
    """
    images: dict[int, set[int]] = {pgno: set() for pgno in pgnos}
    cursor, decoder = database.log.cursor(database.base.txid), RecordDecoder()
    while data := cursor.read(_READ_BYTES):
        events = decoder.feed(data)
        while decoder.more:
            events += decoder.feed(b"")
        if decoder.failure is not None:
            raise decoder.failure
        for event in events:
            if isinstance(event, PageBlock):
                for pgno, page in event.pages:
                    if pgno in images:
                        images[pgno].add(page_checksum(pgno, page))
        await trio.lowlevel.checkpoint()
    return images


class Judge:
    """``newest[pgno]``: checksum of the newest image of each page in the records after ``base``, as far as read.

    What is judged must have been read from the file while ``base`` was wholly in it, or later. ``explained``: how many
    pages so far were not what the table says because the log has them newer. Belongs to the loop.
    """

    __slots__ = ("_cursor", "_database", "_decoder", "base", "explained", "newest")

    def __init__(self, database: Database, base: Position) -> None:
        """Raises Trimmed when the log no longer has what follows ``base``."""
        self._database = database
        self._cursor = database.log.cursor(base.txid)
        self._decoder = RecordDecoder()
        self.base = base
        self.newest: dict[int, int] = {}
        self.explained = 0

    async def catch_up(self) -> None:
        """Read the log to its end, as it is when this returns. Raises Trimmed, Corrupt (the log is damaged), OSError.

        Nothing is awaited after the last look at the log.
        """
        while data := self._cursor.read(_READ_BYTES):
            self._take(data)
            while self._decoder.more:
                self._take(b"")
            await trio.lowlevel.checkpoint()

    def _take(self, data: bytes) -> None:
        newest = self.newest
        for event in self._decoder.feed(data):
            if isinstance(event, PageBlock):
                for pgno, page in event.pages:
                    newest[pgno] = page_checksum(pgno, page)
        if self._decoder.failure is not None:
            raise self._decoder.failure

    async def wrong_pages(self, first_pgno: int, count: int, entries: "array[int]") -> list[int]:
        """Those of ``count`` pages from ``first_pgno`` that are not what they should be.

        ``entries`` are the checksums of what was read of them; pages that the file ended before are missing there.
        Raises as ``catch_up`` does; what that promises about awaiting holds here too.
        """
        differing = self._differing(first_pgno, count, entries)
        wrong = [pgno for pgno in differing if pgno not in self.newest]
        if wrong:
            await self.catch_up()
            page_count = self._database.page_count
            wrong = [pgno for pgno in wrong if pgno not in self.newest and pgno <= page_count]
        self.explained += len(differing) - len(wrong)
        return wrong

    def _differing(self, first_pgno: int, count: int, entries: "array[int]") -> list[int]:
        """Pages whose checksum is not the table's now. One that no record ever held (entry 0) may hold anything."""
        count = min(count, self._database.page_count + 1 - first_pgno)
        if count <= 0:
            return []
        found = np.zeros(count, dtype=np.uint64)
        read = min(count, len(entries))
        found[:read] = np.array(entries[:read], dtype=np.uint64)
        table = np.frombuffer(self._database.checksums.table[first_pgno - 1 : first_pgno - 1 + count], dtype=np.uint64)
        return [int(index) + first_pgno for index in np.flatnonzero((table != found) & (table != 0))]
