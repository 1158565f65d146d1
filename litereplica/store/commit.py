"""A transaction of any size into the log, in pieces, before it counts.

Knows the steps: its record is written behind the log's end; whoever asked then lets it happen and counts it, or cuts it
off again. Does not know where the pages come from, nor what "happen" is.

A crash in between finds a whole record at the end of the log, which recovery counts: by then the transaction may have
happened.
"""

import errno
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.encode import RecordEncoder, block_capacity
from litereplica.ltx.format import Origin, RecordHeader
from litereplica.ltx.position import Position
from litereplica.store.folded import changed_page

if TYPE_CHECKING:
    from litereplica.store.database import Database


class PendingCommit:
    """A transaction whose record is whole in the log and does not count yet."""

    __slots__ = ("_checksum", "_durable", "_entries", "_header", "_length", "_pgnos", "database")

    def __init__(
        self,
        database: "Database",
        header: RecordHeader,
        pgnos: list[int],
        entries: "array[int]",
        checksum: int,
        length: int,
    ) -> None:
        self.database = database
        self._header = header
        self._pgnos = pgnos
        self._entries = entries
        self._checksum = checksum
        self._length = length
        self._durable = False

    @property
    def txid(self) -> int:
        """Its TXID."""
        return self._header.max_txid

    async def make_durable(self) -> None:
        """Bring the record to the disk, before what it stands for happens. OSError: the outcome is unknown."""
        await self.database.log.sync_uncounted()
        self._durable = True

    def count(self) -> None:
        """It has happened."""
        database, header = self.database, self._header
        database.log.count(header.max_txid, self._length, header.timestamp_ms)
        if self._durable:
            database.log.known_durable(header.max_txid)
        if header.page_size != database.page_size:
            database.checksums.clear_from(1)
            database.set_page_size(header.page_size)
        database.advance(Position(header.max_txid, self._checksum), header.commit, header.epoch, header.timestamp_ms)
        entries = zip(reversed(self._pgnos), reversed(self._entries), strict=True)
        database.committed_here(header.max_txid, changed_page(entries, database.checksums.table))
        database.checksums.set_entries(self._pgnos, self._entries)
        if self._pgnos[:1] == [1]:
            database.unlaid.replaced()
        database.applied = header.max_txid
        database.changed()

    def cut(self) -> None:
        """It will not happen, and does not come back after a loss of power. Raises OSError."""
        self.database.log.cut_uncounted()
        # Also if nobody has brought the record to the disk: the kernel may have, at any time.
        self.database.log.make_cut_durable()


async def log_pages(
    database: "Database",
    pgnos: list[int],
    commit: int,
    page_size: int,
    read: "Callable[[int, int], list[tuple[int, bytes]]]",
    origin: Origin | None = None,
) -> PendingCommit:
    """Write the record of a transaction that leaves ``commit`` pages of ``page_size`` bytes.

    ``read(i, j)`` answers (pgno, bytes) of ``pgnos[i:j]``, which must not change until then. Another page size than the
    database has is a new content: ``pgnos`` are all its pages. Raises OSError; nothing has changed then.
    """
    if database.settled:
        database.unsettle()
    checksums, log = database.checksums, database.log
    checksums.reserve(commit)
    if log.uncounted:
        raise OSError(errno.EBUSY, "another transaction of this database is being logged")
    is_new_content = page_size != database.page_size
    checksum = 0 if is_new_content else database.position.checksum
    header = database.next_header(page_size, len(pgnos), commit, origin)
    encoder = RecordEncoder(header)
    entries = array("Q")
    length, step = 0, block_capacity(page_size)
    try:
        piece = encoder.begin()
        for start in range(0, len(pgnos), step):
            log.append_uncounted(piece)
            length += len(piece)
            pages = read(start, min(start + step, len(pgnos)))
            table = checksums.table
            for pgno, page in pages:
                entry = page_checksum(pgno, page)
                checksum ^= entry if is_new_content else entry ^ table[pgno - 1]
                entries.append(entry)
            piece = encoder.block(pages)
            if len(pgnos) > step:
                await trio.lowlevel.checkpoint()
        if not is_new_content and commit < database.page_count:
            checksum ^= checksums.xor_range(commit + 1, database.page_count)
        piece += encoder.end(checksum)
        log.append_uncounted(piece)
        length += len(piece)
    except BaseException:
        log.cut_uncounted()
        raise
    return PendingCommit(database, header, pgnos, entries, checksum, length)
