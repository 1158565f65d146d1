"""Reading a log in order: by bytes for who sends it on, by whole records for who applies it.

Knows what a reader is told when its place is gone. Does not know who reads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from litereplica.errors import Refused
from litereplica.store.segment import Segment

if TYPE_CHECKING:
    from litereplica.store.reading import LogSegments


class Trimmed(Refused):
    """The log does not hold what was asked for (no longer, or it never did): a snapshot is needed."""


@dataclass(frozen=True, slots=True)
class Span:
    """Whole records first_txid..last_txid: ``length`` bytes of ``path`` from ``offset``."""

    path: Path
    offset: int
    length: int
    first_txid: int
    last_txid: int


class LogCursor:
    """Reads a log's bytes in order, across records and segments.

    ``txid``: the last record that has been returned as a whole.
    """

    __slots__ = ("_generation", "_log", "_offset", "_segment", "txid")

    def __init__(self, log: "LogSegments", after_txid: int) -> None:
        self._log = log
        self._generation = log.generation
        self._segment: Segment | None = None
        self._offset = 0
        self.txid = after_txid
        self._check()

    def read(self, max_bytes: int) -> bytes:
        """Return the next bytes, at most ``max_bytes``; b"" at the end. Never bytes that are not yet counted.

        Raises Trimmed when retention (the hard cap) has removed what comes next, or a snapshot has replaced the log.
        """
        log = self._log
        if self._generation != log.generation or self.txid + 1 < log.first_txid:
            self._check()
        segment = self._segment
        if segment is None or self._offset >= segment.length:
            if self.txid >= log.last_txid:
                return b""
            segment = self._segment = log.segment_of(self.txid + 1)
            self._offset = log.bounds(segment, self.txid + 1)[0]
        data = log.read(segment, self._offset, min(max_bytes, segment.length - self._offset))
        self._offset += len(data)
        self.txid = log.last_ending_by(segment, self._offset)
        return data

    def _check(self) -> None:
        log = self._log
        where = f"the log of {log.directory.name}"
        if self._generation != log.generation:
            raise Trimmed(f"{where} was replaced by a snapshot at {log.first_txid - 1:016x}")
        if self.txid > log.last_txid:
            raise Trimmed(f"{where} ends at {log.last_txid:016x}, there is no record {self.txid:016x} in it")
        if self.txid + 1 < log.first_txid:
            raise Trimmed(f"{where} begins at {log.first_txid:016x}, record {self.txid + 1:016x} is no longer kept")
