"""Who may write here, and until when.

Knows this node's role as the mount sees it, the fence, the commits that are under way, and the process that applies
transactions. Does not decide the role.

The fence is an instant on CLOCK_BOOTTIME, which nobody can set and which goes on while the machine sleeps: from then on
no commit is logged, and none that was logged before is let through. Each commit looks at it twice.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyfuse3
import structlog
import trio

log = structlog.get_logger()

# ``.lag`` before the first contact with a primary (LiteFS's format).
UNKNOWN_LAG_MS: Final = 2_147_483_647
FOR_EVER: Final = float("inf")


def fence_clock() -> float:
    """Seconds since the machine was started, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Access:
    """Changed by the node only; read at each open and each commit."""

    __slots__ = (
        "_idle",
        "_open_again",
        "_said",
        "_under_way",
        "accepts_until",
        "applier_pid",
        "fenced",
        "lag_ms",
        "primary",
        "primary_name",
        "told_fenced",
        "wal_removed",
        "wal_restarted",
        "writer_gone",
    )

    def __init__(self) -> None:
        self.primary = False
        # The fence (see the module); for ever where there is no lease.
        self.accepts_until = FOR_EVER
        # Commits that take more than one turn of the scheduler.
        self._under_way = 0
        self._said: str | None = None
        # Set while the primary hands its role over: whoever wants to write waits until it is known who is primary.
        self._open_again: trio.Event | None = None
        self._idle = trio.lowlevel.ParkingLot()
        self.primary_name: str | None = None
        self.applier_pid = 0
        # A reason why no commit is accepted although this node is the primary.
        self.fenced: str | None = None
        self.told_fenced: Callable[[str], None] = lambda _reason: None
        # Told when a WAL begins again from its start: (database, bytes of the file).
        self.wal_restarted: Callable[[str, int], None] = lambda _name, _size: None
        self.wal_removed: Callable[[str], None] = lambda _name: None
        # Told when a process that had a WAL open is dead, or must be: (database, salts of the WAL, committed frames).
        self.writer_gone: Callable[[str, int, int, int], None] = lambda _name, _salt1, _salt2, _frames: None
        self.lag_ms: Callable[[], int] = lambda: UNKNOWN_LAG_MS

    def problem(self) -> str | None:
        """Why no commit is accepted now, or None."""
        if not self.primary:
            return "this node is not the primary: open the database on the primary, or open it again here to read"
        if self.fenced is not None:
            return self.fenced
        if self.accepts_until != FOR_EVER and fence_clock() >= self.accepts_until:
            return "the lease has run out and could not be renewed: whoever is primary next accepts commits"
        return None

    def check(self, name: str) -> None:
        """Raise EIO when no commit of ``name`` is accepted; one log line for each reason, however often it is tried."""
        problem = self.problem()
        if problem != self._said:
            self._said = problem
            if problem is not None:
                log.warning("commits_not_accepted", file=name, reason=problem)
        if problem is not None:
            raise pyfuse3.FUSEError(errno.EIO)

    @contextmanager
    def committing(self, name: str) -> Iterator[None]:
        """A commit that takes more than one turn: ``wait_idle`` waits for it. Raises EIO when none is accepted."""
        self.check(name)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.unpark_all()

    async def wait_idle(self) -> None:
        """Return when no commit is under way; new ones are not accepted any more, or this may never end."""
        while self._under_way:
            await self._idle.park()

    def hold_opens(self) -> None:
        """Until ``let_open`` nobody opens a file for writing: a handoff is under way."""
        if self._open_again is None:
            self._open_again = trio.Event()

    def let_open(self) -> None:
        """It is known again who is primary."""
        if self._open_again is not None:
            self._open_again.set()
            self._open_again = None

    async def wait_open(self, task_id: int) -> None:
        """Return when files may be opened for writing; at once for the applier."""
        while self._open_again is not None and not self.is_applier(task_id):
            await self._open_again.wait()

    def is_applier(self, task_id: int) -> bool:
        """The kernel names the thread that asked; the applier has several."""
        if not self.applier_pid:
            return False
        if task_id == self.applier_pid:
            return True
        try:
            status = Path(f"/proc/{task_id}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        return f"\nTgid:\t{self.applier_pid}\n" in status
