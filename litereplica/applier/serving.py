"""What the applier of a primary does for other nodes: their transactions, and the write lock that they hold.

Knows when a commit is late, and what each end of one and of a hold is answered with. Does not know how one is done
(committer.py), nor the order of the work (worker.py).
"""

import sqlite3
import time
from collections.abc import Callable
from typing import Final

from litereplica.applier.appender import Appender
from litereplica.applier.backlog import Backlog
from litereplica.applier.committer import Committer
from litereplica.applier.pieces import RecordPieces
from litereplica.applier.protocol import (
    REASON_LIMIT,
    Apply,
    Commit,
    CommitRefused,
    Committed,
    Held,
    Hold,
    HoldLost,
    HoldRefused,
    ToDaemon,
)
from litereplica.applier.turns import LOCK_DELAY_S, TimedOut, Turns, Waits
from litereplica.errors import LitereplicaError

HOLD_LOST: Final = "the primary's applier could not keep SQLite's write lock"


class Serving:
    """For one database, whose queue is ``backlog``."""

    __slots__ = ("_appender", "_backlog", "_committer", "_deadlines", "_held", "_name", "_send")

    def __init__(
        self, name: str, path: str, appender: Appender, backlog: Backlog, send: Callable[[ToDaemon], None]
    ) -> None:
        self._name = name
        self._send = send
        self._backlog = backlog
        self._appender = appender
        self._committer = Committer(path, appender, self._lost)
        # Number of the Hold that was answered with Held last.
        self._held = 0
        # Of commits that are not answered, by number: monotonic seconds.
        self._deadlines: dict[int, float] = {}

    @property
    def is_holding(self) -> bool:
        """Whether the write lock is kept for another node."""
        return self._committer.is_holding

    def arrived(self, message: Commit) -> bool:
        """Its time runs from now on, whatever it waits for; False: refused, as made under a lock that is lost."""
        if self._committer.is_lost:
            self.refuse(message, HOLD_LOST, busy=False)
            return False
        self._deadlines[message.number] = time.monotonic() + message.limit_ms / 1000
        return True

    def commit(self, message: Commit) -> Turns[bool]:
        """Commit one transaction; whether that was done. Every failure that is not a bug of ours is a message."""
        limit_s = message.limit_ms / 1000
        waits = Waits.until(self._deadlines[message.number], limit_s, LOCK_DELAY_S)
        # The TXID is the mount's to give; of any other record than the one that it expects it takes nothing.
        span = Apply(self._name, message.path, 0, message.length, 0, 0)
        try:
            yield from self._committer.commit(RecordPieces(self._name, [span], record=message.record), waits)
        except TimedOut as error:
            self.refuse(message, error.message, busy=True)
        except LitereplicaError as error:
            self.refuse(message, error.message, busy=False)
        except OSError as error:
            self.refuse(message, f"the commit was refused: {error}", busy=False)
        except sqlite3.Error as error:
            self._appender.forget_files()
            self.refuse(message, f"SQLite cannot use it: {error}", busy=False)
        else:
            del self._deadlines[message.number]
            self._send(Committed(self._name, message.number))
            return True
        return False

    def refuse(self, message: Commit, reason: str, *, busy: bool) -> None:
        """It is not committed, and will not be."""
        self._deadlines.pop(message.number, None)
        self._send(CommitRefused(self._name, message.number, reason[:REASON_LIMIT], busy))

    def refuse_late(self, reason: str) -> float | None:
        """Refuse what has waited in the queue for too long; seconds until the next may be refused."""
        now = time.monotonic()
        kept = []
        for each in self._backlog.take_commits():
            if self._deadlines[each.number] > now:
                kept.append(each)
                self._backlog.put_back(each)
            else:
                self.refuse(each, reason, busy=True)
        return min((self._deadlines[each.number] - now for each in kept), default=None)

    def hold(self, message: Hold) -> Turns[None]:
        """Take the write lock and keep it; the answer is a message, whatever happens."""
        problem = ""
        try:
            yield from self._committer.hold(Waits(message.limit_ms / 1000, LOCK_DELAY_S))
        except TimedOut:
            problem = self._appender.holder()
        except LitereplicaError as error:
            problem = error.message
        except (OSError, sqlite3.Error) as error:
            self._appender.forget_files()
            problem = f"it cannot be used: {error}"
        if problem:
            self._send(HoldRefused(self._name, message.number, problem[:REASON_LIMIT]))
        else:
            self._held = message.number
            self._send(Held(self._name, message.number))

    def _lost(self) -> None:
        self._send(HoldLost(self._name, self._held, HOLD_LOST))
        for each in self._backlog.take_commits():
            self.refuse(each, HOLD_LOST, busy=False)

    def refuse_holds(self, reason: str, under_way: Hold | None) -> None:
        """What is queued, and what is ``under_way``."""
        for each in (*((under_way,) if under_way else ()), *self._backlog.take_holds()):
            self._send(HoldRefused(self._name, each.number, reason))

    def end_hold(self, *, commits: bool) -> None:
        """Keep the lock no longer; while one ``commits``, that gives it back at its end."""
        if commits:
            self._committer.give_up_after()
        else:
            self._committer.release()
