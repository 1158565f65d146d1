"""Who may write here, and until when; and which transactions of other nodes the applier may commit here.

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
from typing import TYPE_CHECKING, Final

import pyfuse3
import structlog
import trio

from litereplica.ltx.position import Position

if TYPE_CHECKING:
    from litereplica.ltx.format import Origin
    from litereplica.mount.elsewhere import Elsewhere

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
        "elsewhere",
        "expected",
        "fenced",
        "halt_text",
        "lag_ms",
        "lost_locks",
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
        # Where a replica's applications commit; None: they only read. On the primary it only says who may write
        # (DB-halt).
        self.elsewhere: Elsewhere | None = None
        # Of the primary: the transaction of another node that the applier is about to commit, and upon what.
        self.expected: dict[str, tuple[Position, Origin]] = {}
        # Databases whose lock was lost here while DB-halt is still open, and why: no application here commits to them,
        # because it may believe that nobody else has written. The node fills it.
        self.lost_locks: dict[str, str] = {}
        # What DB-halt of a database reads as: who may write it now.
        self.halt_text: Callable[[str], str] = lambda _name: ""

    @property
    def forwards(self) -> bool:
        """This node is a replica whose applications write: their transactions are committed elsewhere."""
        return not self.primary and self.elsewhere is not None

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
        self._refuse(name, self.problem())

    def check_lock(self, name: str) -> None:
        """Raise EIO when applications of this node may not commit to ``name``, though the node may."""
        if (problem := self.lost_locks.get(name)) is not None:
            self._refuse(name, problem)

    def check_elsewhere(self, name: str) -> None:
        """The same for a commit that is to be made by the primary."""
        self._refuse(name, self.elsewhere.problem(name) if self.elsewhere is not None else self.problem())

    def _refuse(self, name: str, problem: str | None) -> None:
        if problem != self._said:
            self._said = problem
            if problem is not None:
                log.warning("commits_not_accepted", file=name, reason=problem)
        if problem is not None:
            raise pyfuse3.FUSEError(errno.EIO)

    def take_expected(self, name: str, position: Position) -> "Origin":
        """What the applier commits to ``name``, which is at ``position``: once, and nothing else. Raises EIO."""
        expected = self.expected.get(name)
        if expected is None or expected[0] != position:
            # Nothing unusual: another transaction came first, and the replica was told so already.
            log.debug(
                "commit_refused",
                file=name,
                reason="the applier was about to commit what nobody expects"
                if expected is None
                else f"a transaction of {expected[1].node} was made at {expected[0]}, the database is at {position}",
            )
            raise pyfuse3.FUSEError(errno.EIO)
        del self.expected[name]
        return expected[1]

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
