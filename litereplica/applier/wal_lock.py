"""SQLite's WRITE lock on a database that is open here, and the wal-index as it has to be under it.

Knows how the lock is taken in turns, beside applications that want it too (in_line.py), how it is kept between two
transactions, and what makes a wal-index one to write on. Does not know what is written (appender.py).
"""

from collections.abc import Callable
from typing import Final

from litereplica.applier import holders, locks
from litereplica.applier.in_line import Line, Place
from litereplica.applier.opened import OpenDatabase
from litereplica.applier.protocol import Republish
from litereplica.applier.republish import shows
from litereplica.applier.turns import Turns, Waits
from litereplica.errors import Corrupt, Unavailable
from litereplica.sqlite.shm import WRITE_LOCK, WalIndexHeader, invalidate_header, read_checkpoint_info, read_header

# Calls of a microsecond each, in one turn: a busy writer leaves the lock free for a few of them only.
_ATTEMPTS: Final = 20
_RECOVERIES: Final = 3

_End = tuple[int, int, int]
"""Salts of a WAL, and how many of its frames are committed."""


class WalLock:
    """For the database called ``name`` at ``path``; whoever closes its files gives the lock back before.

    ``claim``: what the daemon knows to be committed, until it was compared with the wal-index. ``keeps``: the lock is
    not given back after a transaction. ``lost`` is called when it was all the same.
    """

    __slots__ = ("_invalidated", "_is_locked", "_line", "_name", "_path", "_place", "claim", "keeps", "lost")

    def __init__(self, name: str, path: str, line: Line, invalidated: Callable[[], None]) -> None:
        """``invalidated`` is called when the wal-index did not show all that is committed, and is rebuilt."""
        self.claim: Republish | None = None
        self.keeps = False
        self.lost: Callable[[], None] = lambda: None
        self._name = name
        self._path = path
        self._line = line
        self._place: Place | None = None
        self._is_locked = False
        self._invalidated = invalidated

    def take(self, opened: OpenDatabase, waits: Waits, *, in_line: bool = True) -> Turns[WalIndexHeader]:
        """Take ``gate`` and the lock; the value is the header read under them. Raises Unavailable, Corrupt, OSError.

        The header shows what ``claim`` says. Not ``in_line``: whoever takes the turns looks at something else in each.
        """
        ends = self._ends(opened) if self._is_locked else None
        recoveries = 0
        try:
            while True:
                if not self._is_locked:
                    yield from self._acquire(opened, waits, in_line=in_line)
                if (header := self._compared(opened, rebuilt=recoveries > 0)) is not None:
                    break
                # Also one that is kept: nobody can rebuild the wal-index before.
                self._unlock(opened)
                if recoveries < _RECOVERIES and opened.recover():
                    recoveries += 1
                else:
                    yield waits.next_delay(f"the wal-index of {self._path} cannot be recovered")
        except BaseException:
            if ends is not None and not self._is_locked:
                self._say_lost()
            raise
        if ends is not None and _end(header) not in ends:
            self.give_back(opened)
            raise Unavailable(f"others have written to {self._path} while its wal-index was rebuilt")
        return header

    @property
    def is_locked(self) -> bool:
        """Whether the lock is held here."""
        return self._is_locked

    def look_closely(self) -> None:
        """An application that has the lock is about to give it up for a moment."""
        if self._place is not None:
            self._place.look_closely()

    def unlock(self, opened: OpenDatabase) -> None:
        """After a transaction."""
        if not self.keeps:
            self.give_back(opened)

    def give_back(self, opened: OpenDatabase) -> None:
        """Also if it ``keeps``."""
        if self._is_locked:
            self._unlock(opened)
            self._say_lost()

    def _unlock(self, opened: OpenDatabase) -> None:
        self._is_locked = False
        locks.release(opened.shm, WRITE_LOCK)
        opened.gate.release()

    def _say_lost(self) -> None:
        if self.keeps:
            self.keeps = False
            self.lost()

    def _ends(self, opened: OpenDatabase) -> set[_End]:
        """What the wal-index may show when it is rebuilt, if nobody has written since; under the WRITE lock."""
        return {_end(known) for known in (read_header(opened.memory.blocks[0]), self.claim) if known is not None}

    def _acquire(self, opened: OpenDatabase, waits: Waits, *, in_line: bool) -> Turns[None]:
        """Who is in line keeps ``gate``: our TRUNCATE, which wants the same lock of the same descriptor, cannot run."""

        def problem() -> str:
            return f"{holders.write_lock_holder(opened.shm)} holds SQLite's write lock on {self._path}"

        has_gate = False
        try:
            while True:
                if (place := self._place) is not None:
                    if place.is_served:
                        break
                    yield waits.next_delay(problem, in_line=True)
                    place.look_closely()
                    continue
                if not (has_gate := opened.gate.acquire(blocking=False)):
                    yield waits.next_delay(f"a checkpoint of {self._path} does not end")
                    continue
                if any(locks.try_exclusive(opened.shm, WRITE_LOCK) for _ in range(_ATTEMPTS)):
                    break
                if in_line:
                    self._place = self._line.enter(self._name, opened.shm, WRITE_LOCK)
                if self._place is None:
                    opened.gate.release()
                    has_gate = False
                    yield waits.next_delay(problem)
            self._is_locked = True
            opened.revive()
        finally:
            if not self._is_locked:
                if self._place is not None:
                    self._place.leave()
                if has_gate:
                    opened.gate.release()
            self._place = None

    def _compared(self, opened: OpenDatabase, *, rebuilt: bool) -> WalIndexHeader | None:
        """The header, once it shows what ``claim`` says; None when it has to be recovered first. Under the WRITE lock.

        ``rebuilt``: it has been, so the file has no more. Raises Corrupt when transactions that are logged are in
        neither: what came after them would not fit.
        """
        block = opened.memory.blocks[0]
        header = read_header(block)
        claim = self.claim
        if header is not None and read_checkpoint_info(block).backfilled > header.max_frame:
            # Who began the WAL anew died between two stores (wal.c, walRestartHdr).
            if rebuilt:
                self.give_back(opened)
                raise Corrupt(f"the wal-index of {self._path} claims more frames copied than there are")
            invalidate_header(block)
            return None
        if header is None or claim is None or shows(header, claim):
            if header is not None:
                self.claim = None
            return header
        if not rebuilt:
            invalidate_header(block)
            self._invalidated()
            return None
        if (header.salt1, header.salt2) != (claim.salt1, claim.salt2):
            self.claim = None
            return header  # the WAL was begun again since: all of the old one is in the database file
        self.give_back(opened)
        raise Corrupt(
            f"{self._path}-wal has {header.max_frame} committed frames, but {claim.frames} are in the log: "
            f"restart litereplica, which brings them in again"
        )


def _end(known: WalIndexHeader | Republish) -> _End:
    frames = known.frames if isinstance(known, Republish) else known.max_frame
    return known.salt1, known.salt2, frames
