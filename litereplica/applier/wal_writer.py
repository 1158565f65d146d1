"""One transaction appended to a database's WAL and published in its wal-index, as a SQLite writer would do it.

Knows the order of the steps and what SQLite expects of each. Does not know where pages come from, nor how locks are
waited for: the caller holds the WRITE lock from before the header was read until after ``publish``.

The steps (wal.c, walFrames and walIndexAppend): frames into the -wal behind the last committed one, their numbers into
the wal-index's hash, then the header, copy 2 before copy 1. Readers see the transaction with the last store, and until
then nothing of it. A writer that dies before leaves frames that nobody sees and that the next one overwrites.

What a death can leave in doubt: once the commit frame is in the file, a reader that finds the header torn runs
recovery, and recovery publishes the transaction although nobody ever reported it. Its records are then sent again.
Page images make that idempotent, but only as a whole: if the records a, b had been one transaction and a were now
applied alone, a reader would see pages of a beside pages of b. So after a failure or a death everything that had been
handed out is put into one transaction again (``Apply.redo_until``). It may be a writer among the applications who runs
that recovery: its own transaction is refused, because what it was shown is not reported as applied.

A new generation of the WAL starts here only where the wal-index says that it is empty (max_frame 0). Restarting a WAL
that is merely backfilled (walRestartLog) is left to SQLite's own TRUNCATE: that one holds the CHECKPOINT lock, and so
it cannot meet a running PASSIVE checkpoint, which is the bug that SQLite 3.7.0 to 3.51.2 have.
"""

import os
from collections.abc import Sequence
from struct import Struct
from typing import Final

from litereplica.applier.shared_memory import SharedMemory
from litereplica.applier.whole import write_all
from litereplica.sqlite.checksum import WalChecksum
from litereplica.sqlite.shm import WalIndexHeader, append_frames, block_of, write_header
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalHeader

_PAIR = Struct(">II")
_QUARTET = Struct(">4I")
_MASK: Final = 0xFFFFFFFF


class WalWriter:
    """A transaction on top of what ``header`` shows; ``frames`` is how many the WAL has with it."""

    __slots__ = ("_checksum", "_descriptor", "_header", "_memory", "_start", "_wal", "commit", "frames")

    def __init__(
        self, descriptor: int, memory: SharedMemory, header: WalIndexHeader, *, page_size: int, sequence: int
    ) -> None:
        """``descriptor``: the -wal. ``sequence``: checkpoint sequence number if a new generation starts here."""
        self._descriptor = descriptor
        self._memory = memory
        self._header = header
        self.frames = header.max_frame
        self.commit = 0
        if header.max_frame:
            assert header.page_size == page_size, (header.page_size, page_size)
            self._wal = WalHeader(
                header.big_endian, page_size, sequence, header.salt1, header.salt2, header.s0, header.s1
            )
            self._start = b""
        else:
            # New salts always, as walRestartHdr makes them: what an old generation left in the file never fits them.
            self._wal = WalHeader.build(
                page_size=page_size,
                checkpoint_sequence=sequence & _MASK,
                salt1=(header.salt1 + 1) & _MASK,
                salt2=int.from_bytes(os.urandom(4)),
            )
            self._start = self._wal.encode()
        self._checksum = self._wal.s0, self._wal.s1

    def append(self, pages: Sequence[tuple[int, bytes]], commit: int) -> None:
        """Write frames; ``commit`` is the page count after the transaction with its last pages, else 0. OSError."""
        data, s0, s1 = _frames(self._wal, self._checksum, pages, commit)
        self._checksum = s0, s1
        frame_bytes = FRAME_HEADER_BYTES + self._wal.page_size
        first = self.frames + 1
        # Before the commit frame, which is the commit: what is committed has to be shown.
        self._memory.reach(block_of(self.frames + len(pages)) + 1)
        if self._start:
            write_all(self._descriptor, self._start + data, 0)
            self._start = b""
        else:
            write_all(self._descriptor, data, WAL_HEADER_BYTES + self.frames * frame_bytes)
        self.frames += len(pages)
        self.commit = commit
        append_frames(self._memory.blocks, first, [pgno for pgno, _ in pages])

    def publish(self) -> None:
        """Make the transaction visible; ``append`` was called with its ``commit``."""
        assert self.commit, "a transaction is published after its commit frame"
        s0, s1 = self._checksum
        write_header(
            self._memory.blocks[0],
            WalIndexHeader.of(
                self._wal,
                change=(self._header.change + 1) & _MASK,
                max_frame=self.frames,
                page_count=self.commit,
                s0=s0,
                s1=s1,
            ),
        )


def _frames(
    wal: WalHeader, checksum: tuple[int, int], pages: Sequence[tuple[int, bytes]], commit: int
) -> tuple[bytes, int, int]:
    """The bytes of the frames and the checksum after them."""
    s0, s1 = checksum
    frame = WalChecksum(wal.page_size, wal.big_endian).frame
    salt1, salt2 = wal.salt1, wal.salt2
    last = len(pages) - 1
    parts: list[bytes] = []
    for index, (pgno, page) in enumerate(pages):
        header8 = _PAIR.pack(pgno, commit if index == last else 0)
        s0, s1 = frame(header8, page, s0, s1)
        parts += (header8, _QUARTET.pack(salt1, salt2, s0, s1), page)
    return b"".join(parts), s0, s1
