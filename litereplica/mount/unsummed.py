"""Frames of a WAL without salts and checksums, which SQLite completes later or (older versions) forgets to.

Knows where such frames are in the open transaction. Does not know what is done about them (mount.wal_file).

SQLite writes them while a spilled transaction goes on, and completes them at its commit (walRewriteChecksums). Older
versions (3.40) forget to after a ROLLBACK TO of a spilled savepoint: readers see the transaction, but neither SQLite's
own recovery nor we can tell it from one that was never committed. Refused while it is written, it is rolled back
cleanly.
"""

import errno
from typing import Final

from litereplica.sqlite.detector import CommitDetector
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES

NO_SUMS: Final = bytes(16)
_NO_COMMIT: Final = bytes(4)
_NO_FRAME: Final = 1 << 62


class UnsummedFrames:
    """``end``: of a commit frame that was written without sums and waits for its completion; 0 for none.

    Or (``is_rest``) where a transaction begins that takes the place of a refused one: what is written behind it before
    that is the rest of the refused one, and is refused with ``rest_code``.
    """

    __slots__ = ("_detector", "_overwritten", "_unsummed", "end", "is_rest", "rest_code")

    def __init__(self, detector: CommitDetector) -> None:
        self._detector = detector
        self.end = 0
        self.is_rest = False
        self.rest_code = errno.EIO
        # Of the open transaction: the lowest frame that was overwritten in place, the lowest written without sums.
        self._overwritten = self._unsummed = _NO_FRAME

    @property
    def any(self) -> bool:
        """Whether a frame of the open transaction was overwritten, or written without sums."""
        return self._overwritten != _NO_FRAME or self._unsummed != _NO_FRAME

    def note_header(self, offset: int, data: bytes) -> bool:
        """Look at a frame header that completes nothing; False for one that nothing will ever complete."""
        header = self._detector.header
        if header is None:
            return True
        step = FRAME_HEADER_BYTES + header.page_size
        frame, rest = divmod(offset - WAL_HEADER_BYTES, step)
        if rest:
            return True  # a piece of a page that happens to have a header's length
        if data[8:] != NO_SUMS:
            if frame == self._detector.committed_frames:
                self.forget()  # a new transaction
            return True
        self._unsummed = min(self._unsummed, frame)
        if data[4:8] == _NO_COMMIT:
            return True
        if self._unsummed < self._overwritten != _NO_FRAME:
            # SQLite completes frames from the lowest that it has overwritten in place; some lie below it.
            return False
        self.end = offset + step
        return True

    def note_overwriting(self, offset: int) -> None:
        """Remember the lowest frame of the open transaction whose page alone is written again (SQLite's iReCksum)."""
        header = self._detector.header
        if header is not None:
            frame, rest = divmod(offset - WAL_HEADER_BYTES, FRAME_HEADER_BYTES + header.page_size)
            if rest == FRAME_HEADER_BYTES and frame >= self._detector.committed_frames:
                self._overwritten = min(self._overwritten, frame)

    def forget(self) -> None:
        """A transaction has ended."""
        self._overwritten = self._unsummed = _NO_FRAME

    def refuse_rest(self, begins_at: int, code: int = errno.EIO) -> None:
        """A transaction is refused whose first frame is at ``begins_at``; the detector has forgotten it."""
        self.reset()
        self.end = begins_at
        self.is_rest = True
        self.rest_code = code

    def reset(self) -> None:
        """So has what was waited for."""
        self.end = 0
        self.is_rest = False
        self.forget()
