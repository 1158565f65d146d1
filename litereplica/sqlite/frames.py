"""Runs of verified WAL frames, kept compactly, and the transactions cut from them.

Knows which pages the frames of a transaction hold and keeps the newest page bytes within a fixed bound.
Does not know how a frame is verified (detector.py), nor where the bytes of an older frame are read back from.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

# Page bytes kept in memory of an open transaction, so that a small one never has to be read back from the file;
# of a larger one the newest frames stay. One number for every database with an open transaction.
HELD_BYTES = 1 << 20
# Up to so many frames a dict is faster than numpy.
FEW_FRAMES = 64


class FrameRun:
    """Consecutive valid frames from frame ``first`` (0-based) on, none of them committed.

    12 bytes a frame (page number, checksum after it), because a transaction may have 250,000 of them, and the page
    bytes of the newest frames, ``held_first`` and after.
    """

    __slots__ = ("_held_limit", "first", "held", "held_first", "page_size", "pgnos", "sums")

    def __init__(self, first: int, page_size: int) -> None:
        self.first = first
        self.page_size = page_size
        self.pgnos = array("I")
        self.sums = array("Q")
        self.held: list[bytes] = []
        self.held_first = first
        self._held_limit = HELD_BYTES // page_size

    @property
    def end(self) -> int:
        """Number of the frame after the run."""
        return self.first + len(self.pgnos)

    def append(self, pgno: int, s0: int, s1: int, page: bytes | None) -> None:
        """Add the next frame; ``s0, s1`` is the checksum after it. A page that is not given is not held."""
        self.pgnos.append(pgno)
        self.sums.append(s0 << 32 | s1)
        held = self.held
        if page is None:
            held.clear()
            self.held_first = self.end
            return
        held.append(page)
        if len(held) > self._held_limit:
            # Half of them at a time: dropping one by one would move the list at every frame.
            dropped = (len(held) + 1) // 2
            del held[:dropped]
            self.held_first += dropped

    def pop(self) -> None:
        """Take back the last append."""
        self.truncate(self.end - 1)

    def truncate(self, frame: int) -> None:
        """Drop ``frame`` and everything after it."""
        count = frame - self.first
        assert count >= 0, (frame, self.first)
        del self.pgnos[count:]
        del self.sums[count:]
        if frame > self.held_first:
            del self.held[frame - self.held_first :]
        else:
            self.held.clear()
            self.held_first = frame

    def extend(self, run: "FrameRun") -> None:
        """Add a run that starts where this one ends."""
        assert run.first == self.end, (run.first, self.end)
        if run.held_first > run.first:
            self.held.clear()
            self.held_first = run.held_first
        self.held += run.held
        self.pgnos += run.pgnos
        self.sums += run.sums
        surplus = len(self.held) - self._held_limit
        if surplus > 0:
            del self.held[:surplus]
            self.held_first += surplus

    def copy(self, end: int) -> "FrameRun":
        """Return a run of its own with the frames before ``end``."""
        other = FrameRun(self.first, self.page_size)
        count = end - self.first
        other.pgnos = self.pgnos[:count]
        other.sums = self.sums[:count]
        other.held_first = min(self.held_first, end)
        other.held = self.held[: end - other.held_first]
        return other

    def sum_before(self, frame: int) -> tuple[int, int]:
        """Return the checksum after ``frame - 1``, which must be in the run."""
        total: int = self.sums[frame - 1 - self.first]
        return total >> 32, total & 0xFFFFFFFF


class PageFrames(Sequence[tuple[int, int]]):
    """``(pgno, frame)`` of every page of a transaction, sorted by page number; the newest frame of a page wins.

    Eight bytes a page instead of a tuple each: a transaction of 1 GB has 250,000.
    """

    __slots__ = ("_frames", "_pgnos")

    def __init__(self, pgnos: "array[int]", first_frame: int) -> None:
        # np.unique gives the first place of each value, so the newest frames have to come first.
        unique, places = np.unique(np.frombuffer(pgnos, np.uint32)[::-1], return_index=True)
        self._pgnos = unique
        self._frames: npt.NDArray[np.int64] = first_frame + len(pgnos) - 1 - places

    def __len__(self) -> int:
        return len(self._pgnos)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        if isinstance(index, slice):
            return list(zip(self._pgnos[index].tolist(), self._frames[index].tolist(), strict=True))
        return int(self._pgnos[index]), int(self._frames[index])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self), 1024):
            yield from self[start : start + 1024]

    def __contains__(self, pair: object) -> bool:
        if not isinstance(pair, tuple) or len(pair) != 2:
            return False
        place = bisect_left(self._pgnos, pair[0])
        return place < len(self) and self[place] == pair


class Transaction:
    """A committed transaction: frames ``first_frame`` … ``last_frame`` (0-based, both included) of the WAL.

    ``commit`` is the page count of the database after it, ``page_size`` in bytes. Never changed once built; a plain
    class because a frozen dataclass costs more than the rest of a small commit's bookkeeping.
    """

    __slots__ = ("_run", "commit", "last_frame")

    def __init__(self, run: FrameRun, commit: int) -> None:
        self._run = run
        self.commit = commit
        self.last_frame = run.end - 1

    @property
    def first_frame(self) -> int:
        """The first frame of the transaction, 0-based."""
        return self._run.first

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self._run.page_size

    @property
    def pages(self) -> PageFrames:
        """``(pgno, frame)`` sorted by page number, newest frame wins. Built at each call."""
        return PageFrames(self._run.pgnos, self._run.first)

    @property
    def page_list(self) -> list[tuple[int, int]]:
        """The same as a list. Built at each call: quickly when there are few."""
        run = self._run
        if len(run.pgnos) > FEW_FRAMES:
            return list(self.pages)
        return sorted(dict(zip(run.pgnos, range(run.first, run.end), strict=True)).items())

    @property
    def small_pages(self) -> list[tuple[int, bytes]] | None:
        """``(pgno, page)`` sorted by page number when every page is still in memory, else None. Built at each call."""
        run = self._run
        if run.held_first > run.first:
            return None
        return sorted(dict(zip(run.pgnos, run.held, strict=True)).items())

    def held_page(self, frame: int) -> bytes | None:
        """Return the page bytes of ``frame`` when they are in memory."""
        run = self._run
        place = frame - run.held_first
        return run.held[place] if 0 <= place < len(run.held) else None
