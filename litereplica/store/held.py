"""A database of a replica as it is in one instant, for who copies it or goes back in it while readers go on.

Knows where every page image is: in the file up to ``base``, in the log after it. Does not know why somebody wants them.

The file may change while it is read: a checkpoint writes newer pages into it, which are all in the log after ``base``;
and a transaction that is open may have written its own, which the live rollback journal protects. Whoever lays the
journal over what was read, and then those records, has the end exactly; whoever wants less compares checksums.
"""

import contextlib
import os
from array import array
from collections.abc import Iterator
from typing import Final, Self

import trio

from litereplica.ltx.decode import Event
from litereplica.store.apply import span_bytes
from litereplica.store.database import Database
from litereplica.store.folded import decode_all
from litereplica.store.log import Log, Span
from litereplica.store.roll_back import journal_of, live_header, put_back
from litereplica.store.verify import is_settled

SPAN_BYTES: Final = 4 * 1024 * 1024
"""Log bytes (or one record) that one step reads: what a cancellation waits for, and memory."""
_SPAN_RECORDS: Final = 1 << 20
_STEP_PAGES: Final = 256
"""Of a journal, put back in one step."""


class Held:
    """Position, file and log of a database, which nobody writes to meanwhile. Close it.

    ``table``: page checksums at ``end``. ``cut``: no span holds records on both sides of this TXID (nor of ``base``).
    """

    __slots__ = (
        "_database", "_journal", "_journal_path", "_key", "base", "base_pages", "cut", "descriptor", "disk", "end",
        "name", "page_count", "page_size", "spans", "table",
    )  # fmt: skip

    def __init__(self, database: Database, cut: int) -> None:
        """``cut``: a TXID of its log, or of the position before that. Raises Corrupt (the log), OSError."""
        self._database = database
        self.disk = database.store.disk
        self.name = database.name
        self.cut = cut
        self.page_size, self.page_count = database.page_size, database.page_count
        self.end, self.base, self.base_pages = database.position, database.base, database.base_pages
        self.table = array("Q", bytes(database.checksums.table[: self.page_count].cast("B")))
        self._key = f"held {id(self)}"
        # Nothing is awaited in here: file, base and log are those of one instant.
        self.spans = list(_spans(database.log, sorted({cut, self.base.txid})))
        self.descriptor = self._open()
        # What is installed, and not in the file yet, has no journal.
        self._journal_path = journal_of(database.file_path) if is_settled(database) else None
        self._journal = self._open_journal()
        database.log.pin(self._key, database.log.first_txid - 1)

    def _open(self) -> int:
        """A file that holds all of ``base``; -1 when that is nothing, or nowhere."""
        database = self._database
        path = database.file_path
        if not is_settled(database) and database.kept_install is not None:
            path = database.kept_install
        if self.base_pages:
            with contextlib.suppress(FileNotFoundError):
                return self.disk.open(path, os.O_RDONLY)
        return -1

    def _open_journal(self) -> int:
        """The rollback journal of the database file, live or not; -1: there is none."""
        if self._journal_path is not None and self.descriptor >= 0:
            with contextlib.suppress(FileNotFoundError):
                return self.disk.open(self._journal_path, os.O_RDONLY)
        return -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.log.unpin(self._key)
        for descriptor in (self.descriptor, self._journal):
            if descriptor >= 0:
                self.disk.close(descriptor)
        self.descriptor = self._journal = -1

    def after(self, txid: int) -> list[Span]:
        """The spans after ``cut`` or ``base``, oldest first."""
        return [span for span in self.spans if span.first_txid > txid]

    def up_to_cut(self) -> list[Span]:
        """The spans up to ``cut``, newest first."""
        return [span for span in reversed(self.spans) if span.last_txid <= self.cut]

    def pieces(self, span: Span) -> Iterator[bytes]:
        """The bytes of a span. Raises FileNotFoundError when the log's hard cap has removed it."""
        return span_bytes(self.disk, span)

    def events(self, span: Span) -> Iterator[Event]:
        """What is in the records of a span. Raises Corrupt."""
        return decode_all(self.pieces(span))

    def put_back(self, target: int) -> Iterator[None]:
        """Lay what the live journal protects over ``target``, into which the file was read before.

        An uncommitted page is in the file only after its original was in the journal. One that was there at the
        beginning may have been removed since: a rollback, or else what it has is older than the commit.
        """
        found = [self._journal, newer := self._open_journal()]
        try:
            if min(found) >= 0 and os.path.sameopenfile(*found):
                del found[0]
            for journal in found:
                if journal >= 0 and (header := live_header(self.disk, journal)) is not None:
                    for number, _ in enumerate(put_back(self.disk, journal, header, target), 1):
                        if number % _STEP_PAGES == 0:
                            yield
        finally:
            if newer >= 0:
                self.disk.close(newer)

    def has_live_journal(self) -> bool:
        """Whether pages of the file are those of a transaction that is open, or was at the beginning."""
        newer = self._open_journal()
        try:
            return any(each >= 0 and live_header(self.disk, each) for each in (self._journal, newer))
        finally:
            if newer >= 0:
                self.disk.close(newer)

    def read_file(self, first_pgno: int, count: int) -> bytes:
        """Pages of the file; fewer at its end."""
        if self.descriptor < 0:
            return b""
        return self.disk.pread(self.descriptor, count * self.page_size, (first_pgno - 1) * self.page_size)


def _spans(log: Log, cuts: list[int]) -> Iterator[Span]:
    after = log.first_txid - 1
    while True:
        most = next((cut - after for cut in cuts if cut > after), _SPAN_RECORDS)
        span = log.spans(after, SPAN_BYTES, min(most, _SPAN_RECORDS))
        if span is None:
            return
        yield span
        after = span.last_txid


async def in_steps(steps: Iterator[None]) -> None:
    """Go through ``steps`` in worker threads; whoever cancels waits for one of them, not for all."""
    ended = object()
    try:
        while await trio.to_thread.run_sync(next, steps, ended) is not ended:
            pass
    finally:
        # Its descriptors are closed now, not when it is collected.
        close = getattr(steps, "close", None)
        if close is not None:
            close()
