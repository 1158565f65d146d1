"""Records from segment files, merged into the pages of one transaction, piece by piece.

Knows how to read spans in bounded memory and how several records become one local commit (the newest page wins).
Does not know the WAL. Segment files are on the plain disk; each is opened per read, because a segment of the same
name may be another file after the log was cut or set aside.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Final

from litereplica.applier.protocol import Apply, Install
from litereplica.applier.whole import read_all
from litereplica.errors import Corrupt, Refused
from litereplica.ltx.decode import Event, PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.sqlite.pages import ROLLBACK_VERSIONS, VERSIONS, WAL_VERSIONS, lock_page

PIECE_BYTES: Final = 1 << 20
"""Pages held before they are written as frames. With one more block of a record on top, twice that is the most."""

_READ_BYTES: Final = 256 << 10
# A compressed block of 1 MiB can be a few hundred bytes, and everything that one read completes is held at once.
_COMPRESSED_READ_BYTES: Final = 1 << 10
_FIRST_READ_BYTES: Final = 8 << 10

Piece = tuple[list[tuple[int, bytes]], int]
"""Pages in the order of their frames, and the page count after the transaction: 0 in every piece but the last."""


class PageSizeChanged(Exception):
    """The record ``txid`` has pages of another size than those before it, and all of them: it makes these needless."""

    def __init__(self, txid: int) -> None:
        super().__init__(txid)
        self.txid = txid


class RecordPieces:
    """The transaction that ``spans``, which follow each other, make together.

    Known once begun: ``page_size``; ``is_whole``, whether the first record makes the whole database by itself. Known at
    the end: ``rollback``, whether page 1 puts the database in rollback mode, None when it is not in the records.
    """

    __slots__ = ("_database", "_record", "_spans", "_starts_at", "is_whole", "page_size", "rollback")

    def __init__(self, database: str, spans: Sequence[Apply], starts_at: int = 0, record: bytes = b"") -> None:
        """``starts_at``: leave records before this TXID out (see PageSizeChanged). TXIDs of 0 stand for any.

        ``record``: what the one span stands for, if that is no file.
        """
        self._database = database
        self._spans = spans
        self._starts_at = starts_at
        self._record = record
        self.page_size = 0
        self.is_whole = False
        self.rollback: bool | None = None

    def __iter__(self) -> Iterator[Piece]:
        """The pieces; the last one comes only after every record's checksum was found right.

        Raises OSError, Corrupt, Refused (something in a record that cannot be applied), PageSizeChanged. No piece at
        all when the records hold no page.
        """
        merged: dict[int, bytes] = {}
        commit = 0
        txid = self._spans[0].first_txid
        for span in self._spans:
            for event in _decoded(self._record) if self._record else _events(span):
                if type(event) is PageBlock:
                    if txid <= self._starts_at:
                        continue
                    if len(merged) * self.page_size >= PIECE_BYTES:
                        yield list(merged.items()), 0
                        merged = {}
                    merged.update(event.pages)
                    if event.pages[0][0] == 1:
                        self._check_first_page(event.pages[0][1])
                elif isinstance(event, RecordHeader):
                    self._check_header(event, txid)
                    if event.commit < commit:
                        # Kept if it leaves nothing: a page beyond the end is harmless, a transaction needs a frame.
                        merged = {pgno: page for pgno, page in merged.items() if pgno <= event.commit} or merged
                    txid, commit = event.max_txid + 1, event.commit
            if span.last_txid and txid != span.last_txid + 1:
                raise Corrupt(
                    f"{span.path} at {span.offset} ends with transaction {txid - 1}, not {span.last_txid}: "
                    f"the log of {self._database} is not what was announced"
                )
        if merged:
            yield list(merged.items()), commit

    def _check_header(self, header: RecordHeader, txid: int) -> None:
        if header.database != self._database or (txid and header.min_txid != txid):
            raise Corrupt(
                f"the log of {self._database} holds transaction {header.min_txid} of {header.database} "
                f"where transaction {txid} has to be"
            )
        if not header.commit:
            raise Refused(f"transaction {txid} drops {self._database}: that is not applied to its pages")
        if txid < self._starts_at:
            return
        if self.page_size in (0, header.page_size):
            self.is_whole = self.is_whole or (not self.page_size and header.holds_every_page)
            self.page_size = header.page_size
        elif header.holds_every_page:
            raise PageSizeChanged(txid)
        else:
            raise Refused(
                f"transaction {txid} changes the page size of {self._database} from {self.page_size} to "
                f"{header.page_size} and does not hold every page: drop the database here, and it will be fetched again"
            )

    def _check_first_page(self, page: bytes) -> None:
        versions = page[VERSIONS]
        if versions not in (ROLLBACK_VERSIONS, WAL_VERSIONS):
            raise Refused(
                f"{self._database} has the format versions {versions[0]} and {versions[1]}, known are 1 (rollback "
                f"mode) and 2 (WAL mode): it cannot be replicated"
            )
        self.rollback = versions == ROLLBACK_VERSIONS


class FilePieces:
    """The transaction that replaces all content by the pages in a file. Fields as those of RecordPieces."""

    __slots__ = ("_install", "is_whole", "page_size", "rollback")

    def __init__(self, install: Install) -> None:
        self._install = install
        self.page_size = install.page_size
        self.is_whole = True
        self.rollback: bool | None = None

    def __iter__(self) -> Iterator[Piece]:
        """The pieces; raises OSError, Corrupt when the file is too short."""
        _, path, page_size, page_count, _ = self._install
        per_piece = PIECE_BYTES // page_size
        skipped = lock_page(page_size)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for first in range(1, page_count + 1, per_piece):
                count = min(per_piece, page_count + 1 - first)
                data = read_all(descriptor, count * page_size, (first - 1) * page_size)
                if len(data) != count * page_size:
                    raise Corrupt(f"{path} ends before page {first + count - 1} of {page_count}")
                pages = [
                    (first + index, data[index * page_size : (index + 1) * page_size])
                    for index in range(count)
                    if first + index != skipped
                ]
                if first == 1:
                    self.rollback = data[VERSIONS] == ROLLBACK_VERSIONS
                yield pages, page_count if first + count > page_count else 0
        finally:
            os.close(descriptor)


def _decoded(record: bytes) -> Iterator[Event]:
    decoder = RecordDecoder()
    yield from decoder.feed(record)
    while decoder.more:
        yield from decoder.feed(b"")
    decoder.finish()


def _events(span: Apply) -> Iterator[Event]:
    descriptor = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        decoder = RecordDecoder()
        position, end = span.offset, span.offset + span.length
        step = _FIRST_READ_BYTES
        while position < end:
            data = os.pread(descriptor, min(step, end - position), position)
            if not data:
                raise Corrupt(f"{span.path} ends at {position}, before the {span.length} bytes from {span.offset}")
            position += len(data)
            for event in decoder.feed(data):
                if isinstance(event, RecordHeader):
                    step = _READ_BYTES if event.compression == "none" else _COMPRESSED_READ_BYTES
                yield event
        decoder.finish()
    finally:
        os.close(descriptor)
