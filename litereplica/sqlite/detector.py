"""Which write to a WAL completes a transaction.

Knows the rule of SQLite's recovery (file-format document, section 4.1 and 4.2: a frame is valid when its salts are the
header's and the checksum chain holds up to it; committed is everything up to the last valid frame with a page count)
and follows an application's writes with it, at a cost per write that does not grow with the WAL.
Does not know who writes, where the bytes go, or what is done with a transaction.

How it stays cheap: only the frame right after the verified ones can change what is valid, and it can become valid only
once each of its bytes was written since the last restart of the WAL. So nearly every write is answered from a few
integers, and a frame is checked once, from the pieces that were just written, without reading the file.

The one write that may be reported late: after a restart the old frames stay in the file behind the new ones. When the
rest of a half-written frame happens to equal the old bytes, the chain holds before its last piece is written; the
transaction is reported with that piece (or with any write further on, or by ``settle``). ``unsettled`` says that such a
frame may exist: it does between two pieces of one frame, or when the writer died between them.
"""

from litereplica.errors import Corrupt, Refused
from litereplica.sqlite.chain import FRAME_HEADER, Chain, Read, Write
from litereplica.sqlite.checksum import WalChecksum
from litereplica.sqlite.frames import HELD_BYTES, FrameRun, Transaction
from litereplica.sqlite.outcome import Examined, Outcome, follow, sums_after, sums_at
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalHeader, parse_wal_header

# No offset: a detector in this state looks at every write in full.
_NOWHERE = -1


class Rewind(Refused):
    """A write or truncation would change committed bytes and is no restart: SQLite forgot a logged transaction."""


class CommitDetector:
    """Follows the writes to one WAL file, which is empty when it starts, or as ``resume`` says.

    For each write: ``examine`` it before it is applied. None: apply it (and ``forget`` it should that fail). Otherwise
    decide, and call ``accept`` before the next ``examine`` when it will be applied, ``refuse`` when it will never be.
    """

    __slots__ = (
        "_chain",
        "_committed",
        "_committed_sums",
        "_fast_sums",
        "_fill_end",
        "_frame_end",
        "_frame_start",
        "_outcome",
        "_pending",
        "_pieces",
        "_recheck",
        "_run",
        "_s0",
        "_s1",
        "_size",
        "_written",
    )

    def __init__(self, page_size_hint: int | None = None) -> None:
        if page_size_hint is not None:
            WalChecksum(page_size_hint, big_endian=False)  # builds the shared tables before the first commit needs them
        self._size = 0  # of the file, when the WAL was last restarted
        self._written = 0  # end of the last byte written since then
        self._pending: Examined | None = None
        self._outcome: Outcome | None = None  # of the pending write, unless it only completed one frame
        self._fast_sums = (0, 0)  # the checksum after that frame
        self._recheck = False  # a failed write left unknown bytes behind the verified frames
        self._no_header()

    def _no_header(self) -> None:
        self._chain: Chain | None = None
        self._committed = 0
        self._committed_sums = (0, 0)
        self._run = FrameRun(0, HELD_BYTES)
        self._pieces: list[bytes] = []  # what was written of the next frame, from its start to _fill_end
        self._s0 = self._s1 = 0
        self._frame_start = self._frame_end = WAL_HEADER_BYTES
        self._fill_end = _NOWHERE

    # ------------------------------------------------------------------------------------------------ what is known

    @property
    def header(self) -> WalHeader | None:
        """The header in force, None while the file has no valid one."""
        return self._chain.header if self._chain else None

    @property
    def committed_frames(self) -> int:
        """Frames up to the last accepted commit."""
        return self._committed

    @property
    def committed_bytes(self) -> int:
        """Where they end in the file; behind the WAL's header without one in force."""
        return WAL_HEADER_BYTES + self._committed * (self._chain.frame_bytes if self._chain else 0)

    @property
    def verified_frames(self) -> int:
        """Frames up to which the checksum chain holds; those after ``committed_frames`` belong to no commit yet."""
        # Not the run's end, which already has a frame that waits for accept.
        return (self._frame_start - WAL_HEADER_BYTES) // self._chain.frame_bytes if self._chain else 0

    @property
    def committed_checksum(self) -> tuple[int, int]:
        """``(s0, s1)`` after the last committed frame: the header's own without one, zeros without a header."""
        return self._committed_sums

    @property
    def unsettled(self) -> bool:
        """Whether a frame may be valid that no write completed (see the module's text); ``settle`` tells."""
        if self._recheck:
            return True
        return self._frame_start < self._written < self._frame_end <= self._size

    @property
    def between_frames(self) -> bool:
        """Whether nothing is written of the frame after the verified ones."""
        return self._fill_end == self._frame_start >= self._written

    def resume(self, frames: int, size: int, read: Read, *, trusted: bool = False) -> None:
        """Begin with a file of ``size`` bytes that others have written; ``frames`` of it are committed.

        ``read`` as in ``examine``. Corrupt when the file does not have them: then nothing is known. ``trusted``: who
        wrote them has verified them, so only the last one is looked at; a header without frames counts as well.
        """
        assert self._pending is None, "accept or refuse comes first"
        self._no_header()
        self._recheck = False
        self._size, self._written = size, 0
        if not frames and not (trusted and size >= WAL_HEADER_BYTES):
            return
        chain = Chain(parse_wal_header(read(0, WAL_HEADER_BYTES)))
        self._committed_sums = self._s0, self._s1 = (sums_at if trusted else sums_after)(chain, frames, read)
        self._chain, self._committed = chain, frames
        self._run = FrameRun(frames, chain.header.page_size)
        self._stand_after_run()
        self._written = self._frame_start

    # ------------------------------------------------------------------------------------------------- the hot path

    def examine(self, offset: int, data: bytes, read: Read) -> Examined | None:
        """Say what writing ``data`` at ``offset`` would bring about; the file does not have it yet.

        ``read(offset, size)`` returns the file's present bytes, short at its end. None when the write neither commits
        nor restarts the WAL. Raises ``Rewind`` and changes nothing when committed bytes would change.
        """
        assert self._pending is None, "accept or refuse comes before the next write"
        if offset == self._fill_end:
            end = offset + len(data)
            if end < self._frame_end:
                if self._written < self._frame_end:
                    self._pieces.append(data)
                    self._fill_end = end
                    if end > self._written:  # noqa: PLR1730 (a call of max costs more than the rest of this path)
                        self._written = end
                    return None
            elif end == self._frame_end and self._written <= end:
                return self._complete(data)
        return self._examine_any(offset, data, read)

    def _complete(self, data: bytes) -> Examined | None:
        """The last piece of the next frame is ``data``, and nothing was written after that frame."""
        pieces = self._pieces
        frame = b"".join((*pieces, data)) if pieces else data
        pgno, commit, salts, sum0, sum1 = FRAME_HEADER.unpack_from(frame)
        chain = self._chain
        assert chain is not None
        if salts == chain.salts and pgno and chain.checksum(frame, self._s0, self._s1) == (sum0, sum1):
            page = data if len(data) == len(frame) - FRAME_HEADER_BYTES else frame[FRAME_HEADER_BYTES:]
            self._run.append(pgno, sum0, sum1, page)
            if commit:
                self._fast_sums = (sum0, sum1)
                self._pending = Examined([Transaction(self._run, commit)], False)  # noqa: FBT003 (hot path)
                return self._pending
            self._next_frame(sum0, sum1)
            return None
        self._written = self._frame_end
        self._pieces = []
        self._fill_end = self._frame_start
        return None

    def _next_frame(self, s0: int, s1: int) -> None:
        end = self._frame_end
        self._s0, self._s1 = s0, s1
        self._pieces = []
        self._written = self._frame_start = self._fill_end = end
        assert self._chain is not None
        self._frame_end = end + self._chain.frame_bytes

    # ---------------------------------------------------------------------------------------------------- decisions

    def accept(self) -> None:
        """The write of the last ``examine`` (or ``settle``) that returned something will be applied."""
        assert self._pending is not None, "nothing to accept"
        self._pending = None
        outcome = self._outcome
        if outcome is None:
            self._next_frame(*self._fast_sums)
            self._committed_sums = self._fast_sums
            self._committed = end = self._run.end
            self._run = FrameRun(end, self._run.page_size)
        else:
            self._outcome = None
            self._apply(outcome)

    def refuse(self) -> None:
        """The write of the last ``examine`` will never reach the file: everything is as before it."""
        assert self._pending is not None, "nothing to refuse"
        self._pending = None
        if self._outcome is None:
            self._run.pop()
        self._outcome = None

    def page(self, frame: int, read: Read) -> bytes:
        """Return the page bytes of a verified frame or of one that waits for ``accept``.

        From memory, else from the file with the waiting write laid over it. ``Corrupt`` when the file is too short.
        """
        outcome = self._outcome
        chain, write = (outcome.chain, outcome.write) if outcome else (self._chain, Write(0, b"", read))
        assert chain is not None
        for transaction in self._pending.transactions if self._pending else ():
            page = transaction.held_page(frame)
            if page is not None:
                return page
        size = chain.header.page_size
        start = WAL_HEADER_BYTES + frame * chain.frame_bytes + FRAME_HEADER_BYTES
        page = write._replace(read=read).after(start, size)
        if len(page) < size:
            raise Corrupt(f"WAL frame {frame} was verified and is no longer in the file")
        return page

    # -------------------------------------------------------------------------------------- truncation, failed writes

    def truncate(self, size: int) -> None:
        """The file will be cut (or grown) to ``size`` bytes; ``Rewind`` when committed frames would be lost.

        0 is always allowed: SQLite empties a WAL only when all of it is in the database file.
        """
        assert self._pending is None, "accept or refuse comes before a truncation"
        chain = self._chain
        if size == 0:
            self._no_header()
            self._size = self._written = 0
            self._recheck = False
            return
        if self._committed and chain and size < self.committed_bytes:
            raise Rewind(f"truncation of the WAL to {size} bytes would lose {self._committed} committed frames")
        grown = size > max(self._size, self._written)
        self._size = size
        # A hole reads as zeros, and zeros may be what a frame was waiting for.
        self._written = size if grown else min(self._written, size)
        if chain is None:
            return
        if size < WAL_HEADER_BYTES:
            self._no_header()
            return
        self._cut(min(self._run.end, (size - WAL_HEADER_BYTES) // chain.frame_bytes))
        if grown:
            self._unknown()

    def forget(self, offset: int) -> None:
        """A write at ``offset`` that ``examine`` answered with None failed: drop what rests on its bytes.

        They are verified again, from the file, at the next write. Committed frames stay.
        """
        assert self._pending is None, "a write that waits is refused, not forgotten"
        chain = self._chain
        if chain is not None and offset < WAL_HEADER_BYTES and not self._committed:
            self._no_header()
        elif chain is not None:
            frame = max(offset - WAL_HEADER_BYTES, 0) // chain.frame_bytes
            self._cut(max(self._committed, min(frame, self._run.end)))
        self._unknown()

    def settle(self, read: Read) -> Examined | None:
        """Check the file as it is, without a write: for when its writer died, or before a checkpoint goes on.

        Like ``examine``; ``accept`` what it returns (its bytes are in the file, so refusing it only puts it off).
        """
        assert self._pending is None, "accept or refuse comes first"
        nothing = Write(0, b"", read)
        if self._chain is None:
            return self._examine_header(nothing) if self._recheck else None
        limit = max(self._size, self._written)
        return self._follow(self._chain, self._run.end, nothing, self._written, limit)

    def _cut(self, frame: int) -> None:
        """Keep the verified frames before ``frame``, at least the committed ones."""
        if frame < self._run.end:
            self._s0, self._s1 = self._committed_sums if frame == self._run.first else self._run.sum_before(frame)
            self._run.truncate(frame)
        self._stand_after_run()

    def _stand_after_run(self) -> None:
        assert self._chain is not None
        self._frame_start = self._fill_end = WAL_HEADER_BYTES + self._run.end * self._chain.frame_bytes
        self._frame_end = self._frame_start + self._chain.frame_bytes
        self._pieces = []

    def _unknown(self) -> None:
        self._recheck = True
        self._pieces = []
        self._fill_end = _NOWHERE

    # --------------------------------------------------------------------------------------------- any write at all

    def _examine_any(self, offset: int, data: bytes, read: Read) -> Examined | None:
        if not data:
            return None
        write = Write(offset, data, read)
        if offset < WAL_HEADER_BYTES:
            return self._examine_header(write)
        chain = self._chain
        if chain is None:
            self._written = max(self._written, write.end)
            return self._examine_header(write) if self._recheck else None
        return self._examine_frames(chain, write)

    def _examine_header(self, write: Write) -> Examined | None:
        """Look at a write that touches the header, or at a header of unknown bytes."""
        chain = self._chain
        encoded = write.after(0, WAL_HEADER_BYTES)
        if chain is not None and encoded == chain.encoded:
            if write.end <= WAL_HEADER_BYTES:
                return None
            rest = write.data[WAL_HEADER_BYTES - write.offset :]
            return self._examine_frames(chain, Write(WAL_HEADER_BYTES, rest, write.read))
        try:
            header = parse_wal_header(encoded)
        except Corrupt:
            header = None
        new = Chain(header) if header else None
        if self._committed and chain and (new is None or new.salts == chain.salts):
            raise Rewind(f"write to the WAL header would lose {self._committed} committed frames")
        if new is None:
            self._no_header()
            self._written = max(self._written, write.end)
            self._recheck = False
            return None
        if chain is not None and new.header.salt1 == (chain.header.salt1 + 1) & 0xFFFFFFFF:
            # SQLite's own restart (walRestartHdr): salt1 rises, so no frame left in the file can have these salts.
            written = write.end
        else:
            written = max(self._size, self._written, write.end)
        sums = (new.header.s0, new.header.s1)
        return self._decide(follow(new, None, 0, write, written=written, limit=written, sums=sums))

    def _examine_frames(self, chain: Chain, write: Write) -> Examined | None:
        """Look at a write behind the header, at any place."""
        verified = self._run.end
        for frames in (self._committed, verified):
            boundary = WAL_HEADER_BYTES + frames * chain.frame_bytes
            if write.offset >= boundary:
                continue
            old = write.read(write.offset, min(write.end, boundary) - write.offset)
            if old == write.data[: len(old)] and len(old) == min(write.end, boundary) - write.offset:
                # The identical bytes again: only what comes after them is news.
                if write.end <= boundary:
                    return None
                write = Write(boundary, write.data[len(old) :], write.read)
            elif frames == self._committed:
                raise Rewind(f"write at {write.offset} of the WAL would change a committed frame (of {frames})")
        first = min(verified, (write.offset - WAL_HEADER_BYTES) // chain.frame_bytes)
        written = max(self._written, write.end)
        if first == verified and not self._recheck:
            if written < self._frame_end:
                self._fill(write, written)
                return None
            if write.offset >= self._frame_end <= self._written:
                self._written = written
                return None
        return self._follow(chain, first, write, written, written)

    def _fill(self, write: Write, written: int) -> None:
        """Part of the next frame was written, and the rest of it not yet since the restart."""
        if write.offset == self._frame_start:
            self._pieces = [write.data]
            self._fill_end = write.end
        elif write.offset == self._fill_end:
            self._pieces.append(write.data)
            self._fill_end = write.end
        elif write.offset < self._fill_end:
            self._pieces = []
            self._fill_end = self._frame_start
        self._written = written

    def _follow(self, chain: Chain, first: int, write: Write, written: int, limit: int) -> Examined | None:
        sums = self._run.sum_before(first) if first > self._run.first else self._committed_sums
        return self._decide(follow(chain, self._run, first, write, written=written, limit=limit, sums=sums))

    def _decide(self, outcome: Outcome) -> Examined | None:
        """Apply an outcome that needs nobody's decision, keep the others until it comes."""
        if not outcome.transactions and not outcome.restart:
            self._apply(outcome)
            return None
        self._outcome = outcome
        self._pending = Examined(outcome.transactions, outcome.restart)
        return self._pending

    def _apply(self, outcome: Outcome) -> None:
        if outcome.restart:
            self._size = max(self._size, self._written)
            self._chain = outcome.chain
        if outcome.restart or outcome.transactions:
            self._committed = outcome.run.first
            self._committed_sums = outcome.committed_sums
            self._run = outcome.run
        else:
            self._run.truncate(outcome.first)
            self._run.extend(outcome.run)
        self._s0, self._s1 = outcome.sums
        self._recheck = False
        self._stand_after_run()
        self._written = max(outcome.written, self._frame_start)
        offset, data, _read = outcome.write
        start, end = self._frame_start, outcome.write.end
        if offset <= start < end < self._frame_end:
            # The write goes on into the next frame: the hot path takes it from there.
            self._pieces = [data[start - offset :]]
            self._fill_end = end
