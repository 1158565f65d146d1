"""The pages of transactions that are about to be logged, read from the WAL that holds them.

Knows how they are read back in long runs. Does not know where they go.
"""

from litereplica.sqlite.chain import Read
from litereplica.sqlite.detector import CommitDetector
from litereplica.sqlite.frames import Transaction
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES
from litereplica.store.database import Pages


class FramePages:
    """Of ``transactions``, the newest of each page: ``pgnos`` in order, and ``read``. ``commit``: pages after them."""

    __slots__ = ("_detector", "_frames", "_offset", "_read", "commit", "page_size")

    def __init__(
        self, detector: CommitDetector, transactions: list[Transaction], lock_page: int, offset: int, read: Read
    ) -> None:
        """``offset``: what lies there or beyond may be part of the write that commits, which is not in the file yet."""
        newest = transactions[-1]
        commit = newest.commit
        found = newest.page_list
        if len(transactions) > 1:
            found = sorted({pgno: frame for each in transactions for pgno, frame in each.pages}.items())
        self._frames = [(pgno, frame) for pgno, frame in found if pgno <= commit and pgno != lock_page]
        self._detector = detector
        self._offset = offset
        self._read = read
        self.commit = commit
        self.page_size = newest.page_size

    @property
    def pgnos(self) -> list[int]:
        """Page numbers, ascending."""
        return [pgno for pgno, _ in self._frames]

    def read(self, start: int, end: int) -> Pages:
        """(pgno, page) of ``pgnos[start:end]``. Frames that follow each other, as most do, are read at once."""
        frames = self._frames[start:end]
        step = FRAME_HEADER_BYTES + self.page_size
        pages: Pages = []
        position = 0
        while position < len(frames):
            first = frames[position][1]
            count = 1
            while position + count < len(frames) and frames[position + count][1] == first + count:
                count += 1
            if WAL_HEADER_BYTES + (first + count) * step > self._offset:
                found = [self._detector.page(frame, self._read) for _, frame in frames[position : position + count]]
            else:
                data = self._read(WAL_HEADER_BYTES + first * step, count * step)
                found = [data[at + FRAME_HEADER_BYTES : at + step] for at in range(0, count * step, step)]
            pages += [(pgno, page) for (pgno, _), page in zip(frames[position : position + count], found, strict=True)]
            position += count
        return pages
