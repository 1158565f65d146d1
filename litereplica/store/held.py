"""A database of a replica as it is in one instant, for who copies it or goes back in it while readers go on.

Knows where every page image is: in the file up to ``base``, in the log after it. Does not know why somebody wants them.

The file may change while it is read: a checkpoint writes newer pages into it, which are all in the log after ``base``.
Whoever lays those records over what was read has the end exactly; whoever wants less compares checksums.
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
from litereplica.store.verify import is_settled

SPAN_BYTES: Final = 4 * 1024 * 1024
"""Log bytes (or one record) that one step reads: what a cancellation waits for, and memory."""
_SPAN_RECORDS: Final = 1 << 20


class Held:
    """Position, file and log of a database, which nobody writes to meanwhile. Close it.

    ``table``: page checksums at ``end``. ``cut``: no span holds records on both sides of this TXID (nor of ``base``).
    """

    __slots__ = (
        "_database", "_key", "base", "base_pages", "cut", "descriptor", "disk", "end", "name", "page_count",
        "page_size", "spans", "table",
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.log.unpin(self._key)
        if self.descriptor >= 0:
            self.disk.close(self.descriptor)
            self.descriptor = -1

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
