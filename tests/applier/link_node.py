"""What the daemon's node does around a link, as the tests drive it.

Knows the window of spans, the resend after trouble, and keeps the answers. Does not know the store.
"""

from pathlib import Path

import trio

from litereplica.applier.link import ApplierLink
from litereplica.applier.protocol import (
    Apply,
    CommitRefused,
    Committed,
    Held,
    HoldLost,
    HoldRefused,
    Locked,
    LockRefused,
    Looked,
    Message,
    Released,
    ReleaseFailed,
    Reported,
)
from tests.applier.support import ANSWER_TIMEOUT_S


class Node:
    """What the daemon's node does around a link: a window of spans, and a resend after trouble."""

    WINDOW = 8

    def __init__(self, folder: Path) -> None:
        self.link = ApplierLink(folder / "mount", self)
        (folder / "mount").mkdir(exist_ok=True)
        self.spans: list[Apply] = []
        self.applied = 0
        self.reports = 0
        self.checkpointed: list[tuple[int, bool]] = []
        self.failures: list[tuple[int, str, bool]] = []
        self.restarts = self.closed = 0
        self.answers: list[Message] = []
        self._sent = 0
        self.changed = trio.Event()

    def add(self, span: Apply) -> None:
        """A record arrived."""
        self.spans.append(span)
        self.pump()

    def pump(self) -> None:
        """Send what the window allows."""
        while self._sent < len(self.spans) and self._sent - self.applied < self.WINDOW:
            span = self.spans[self._sent]
            self._sent += 1
            self.link.apply(span.database, Path(span.path), span.offset, span.length, span.first_txid, span.last_txid)

    async def wait_applied(self, txid: int) -> None:
        """Until then; too slow for ANSWER_TIMEOUT_S."""
        with trio.fail_after(ANSWER_TIMEOUT_S):
            while self.applied < txid:
                await self.changed.wait()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def on_applied(self, database: str, txid: int) -> None:
        assert database == self.spans[0].database
        self.reports += 1
        self.applied = max(self.applied, txid)
        self.pump()
        self._notify()

    def on_checkpointed(self, database: str, txid: int, *, truncated: bool) -> None:
        assert database == self.spans[0].database
        self.checkpointed.append((txid, truncated))
        self._notify()

    def on_failed(self, database: str, txid: int, reason: str, *, retry: bool) -> None:
        assert database == self.spans[0].database
        self.failures.append((txid, reason, retry))
        self._notify()

    def on_closed(self, database: str) -> None:
        assert database == self.spans[0].database
        self.closed += 1
        self._notify()

    def on_released(self, database: str, salt1: int, salt2: int, frames: int) -> None:
        self.answers.append(Released(database, salt1, salt2, frames))
        self._notify()

    def on_release_failed(self, database: str, reason: str) -> None:
        self.answers.append(ReleaseFailed(database, reason))
        self._notify()

    def on_locked(self, database: str) -> None:
        self.answers.append(Locked(database))
        self._notify()

    def on_lock_refused(self, database: str, holder: str) -> None:
        self.answers.append(LockRefused(database, holder))
        self._notify()

    def on_committed(self, database: str, number: int) -> None:
        self.answers.append(Committed(database, number))
        self._notify()

    def on_commit_refused(self, database: str, number: int, reason: str, *, busy: bool) -> None:
        self.answers.append(CommitRefused(database, number, reason, busy))
        self._notify()

    def on_held(self, database: str, number: int) -> None:
        self.answers.append(Held(database, number))
        self._notify()

    def on_hold_refused(self, database: str, number: int, holder: str) -> None:
        self.answers.append(HoldRefused(database, number, holder))
        self._notify()

    def on_hold_lost(self, database: str, number: int, reason: str) -> None:
        self.answers.append(HoldLost(database, number, reason))
        self._notify()

    def on_reported(self, database: str, number: int) -> None:
        self.answers.append(Reported(database, number))
        self._notify()

    def on_looked(self, database: str, number: int, *, shown: bool, writes: bool) -> None:
        self.answers.append(Looked(database, number, shown, writes))
        self._notify()

    async def answer(self) -> Message:
        """The next answer to ``release`` or ``lock``."""
        with trio.fail_after(ANSWER_TIMEOUT_S):
            while not self.answers:
                await self.changed.wait()
        return self.answers.pop(0)

    def on_restarted(self) -> None:
        self.restarts += 1
        self.resend()
        self._notify()

    def resend(self) -> None:
        """From the last applied one."""
        self._sent = self.applied
        self.pump()
