"""What is asked for one database, done in turns.

Knows the order of the work, how each kind of it ends, and that only one of it is under way: everything that opens a
file of the database or closes one happens here, one after the other, because a close drops the POSIX locks of this
process's connection (fcntl(2)). At any time the worker has the files open (appender.py), or SQLite's write lock
(write_lock.py; serving.py for another node), or looks after the wal-index of others (republish.py), or none of it.
Does not know the socket.

A turn never waits: one that cannot go on says when to try again, so that a database whose lock is held stalls no other.

Interleavings with the checkpoint thread, with applications that write here, and with readers, and why each is harmless:

- PASSIVE checkpoint beside an apply: it needs neither the WRITE lock nor ``gate``. It took CHECKPOINT, then read the
  header once; frames appended later are not its business. Frames up to there are never rewritten by us while it runs:
  we begin a WAL anew only where the wal-index says that it is empty, and our TRUNCATE needs CHECKPOINT too. Writers
  among the applications may (walRestartLog), with the care and the bugs of their SQLite, as beside any checkpoint.
- An application's write transaction, its checkpoint, its restart of the WAL: each is over before we have WRITE, or
  begins after we have given it back; also where a thread gets WRITE for us, under ``gate`` (in_line.py). An open
  transaction is waited for, said once, and then waited for with patience (appender.py); on a replica the application
  finds at its commit that it is stale, unless nothing was to be applied.
- An application that dies with WRITE leaves frames that the next writer overwrites; if they were logged, the daemon
  says so first (Republish).
- An application that takes every lock and keeps it (PRAGMA locking_mode=EXCLUSIVE) is in the way like an open
  transaction. It cannot begin while we have the files open.
- TRUNCATE beside an apply: both want WRITE. Within this process ``gate`` decides first, so neither finds the other
  half way: the apply's turn ends with "try again", the checkpoint thread skips its TRUNCATE. Without ``gate`` they
  would still be safe (our OFD lock conflicts with the POSIX lock of our own connection), only slower.
- The TXID of a Checkpointed is read before the statement runs. Whatever was published then is in the WAL, so a
  checkpoint that moved everything moved at least that.
- A reader that runs recovery holds WRITE, CHECKPOINT and RECOVER: the apply's turn ends with "try again". A reader
  that only reads holds none of them: nobody waits for it, and it waits for nobody.
- A transaction with another page size waits until the WAL is empty (``_lock_empty``): one WAL has one page size. The
  checkpoint thread folds it and starts it anew; readers inside a transaction are waited for, all others go on.
- The wal-index header is read anew under WRITE for each transaction; nothing about it is remembered between two. Is
  it torn (a writer died in publish), SQLite recovers it through the connection, and it is read again.
- Before the first transaction after a Republish it is compared with what the daemon knows to be committed; no
  checkpoint of ours comes before that, because they begin only after a transaction of the same opening.
- A release reads the header under ``gate``, and no checkpoint of ours comes after it (``retire``). The files stay open
  for LET_GO_S: a close of the -wal waits for a commit that is held there, which may wait for this very promotion. An
  application that is in a transaction then has committed none of its frames beyond what the header shows, unless it
  has died or has not published yet: that is logged, and said by a Republish before the Release.
- What is visible and is to be laid over once more (store.unlaid) is given up when a Release comes while others have
  WRITE: they may keep it until the promotion is over. If we have WRITE it ends first.
- Commits (of a primary) are never under way beside a Release, a Lock or a Close: they are given up at the turn where
  these arrive, before their commit point, which no turn ends behind. So no frame of theirs is written in a role that
  does not capture it.
"""

import itertools
import sqlite3
import time
from collections.abc import Callable
from typing import Final

from litereplica.applier.appender import Appender
from litereplica.applier.backlog import Backlog, Request, Work, is_overlay
from litereplica.applier.in_line import Line
from litereplica.applier.opened import OpenDatabase
from litereplica.applier.protocol import (
    REASON_LIMIT,
    Applied,
    Apply,
    Commit,
    Failed,
    Hold,
    HoldRefused,
    Install,
    Invalidated,
    Lock,
    Locked,
    LockRefused,
    Look,
    Looked,
    Release,
    Released,
    ReleaseFailed,
    Republish,
    ToDaemon,
)
from litereplica.applier.republish import republish
from litereplica.applier.serving import Serving
from litereplica.applier.turns import LOCK_DELAY_S, Turns, Waits
from litereplica.applier.wal_lock import WalLock
from litereplica.applier.write_lock import WriteLock, take_lock
from litereplica.errors import LitereplicaError, Unavailable

KEEP_OPEN_S: Final = 5.0
"""After a commit of another node's transaction the files stay open: opening them costs more than the commit. Not for
ever: as long as they are, no application of the primary can change the journal mode."""
LET_GO_S: Final = 1.0
"""After a Release: a promotion is over by then."""

_HISTORIES: Final = itertools.count(1)
"""Numbers that no other opening or content of a database in this process has."""
_RELEASED: Final = "the database is being released: this node's role changes"
_LOCKED: Final = "the write lock is held for a handoff"
_DROPPED: Final = "the database was dropped"


class DatabaseWorker:
    """One database of the mount. All of it belongs to the apply thread; the checkpoint thread reads some fields.

    ``applied``: the TXID that new readers see, 0 while unknown. ``published_at``: monotonic seconds of the last
    publication. The others are those of Appender.
    """

    __slots__ = (
        "_appender", "_backlog", "_close_at", "_forget", "_job", "_lock", "_on_published", "_send", "_serving",
        "_work", "name", "path", "published_at", "visible",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        path: str,
        line: Line,
        send: Callable[[ToDaemon], None],
        on_published: Callable[["DatabaseWorker"], None],
        forget: Callable[["DatabaseWorker"], None],
        make_room: Callable[[], None],
    ) -> None:
        """``path``: of the database file. ``send`` sends to the daemon; ``on_published`` is told of each commit.

        ``forget`` is told when the database is no longer ours to fold; ``make_room`` is Appender's.
        """
        self.name = name
        self.path = path
        # History and TXID, in one: the checkpoint thread reads them, and an Install changes both.
        self.visible = (next(_HISTORIES), 0)
        self.published_at = 0.0
        self._send = send
        self._on_published = on_published
        self._forget = forget
        self._backlog = Backlog()
        # What is under way, and its turns.
        self._work: Work | None = None
        self._job: Turns[None] | None = None
        # When the files of a primary's database are to be closed; 0: not by time.
        self._close_at = 0.0
        self._lock: WriteLock | None = None
        lock = WalLock(name, path, line, lambda: send(Invalidated(name)))
        self._appender = Appender(name, path, lock, make_room, lambda: on_published(self))
        self._serving = Serving(name, path, self._appender, self._backlog, send)

    @property
    def opened(self) -> OpenDatabase | None:
        return self._appender.opened

    @property
    def frames(self) -> int:
        return self._appender.frames

    @frames.setter
    def frames(self, frames: int) -> None:
        self._appender.frames = frames

    @property
    def wants_empty_wal(self) -> bool:
        return self._appender.wants_empty_wal

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or under way."""
        return self._job is None and not self._backlog

    @property
    def may_forget_files(self) -> bool:
        """Whether nothing is lost with them: no work, no frames to fold, no lock that is kept for another node."""
        return self.idle and not self.frames and not self.is_holding

    @property
    def is_holding(self) -> bool:
        """Whether the write lock is kept for another node, or being taken for one."""
        return self._serving.is_holding

    @property
    def is_busy(self) -> bool:
        """Whether something is under way, which may be waiting for its next turn."""
        return self._job is not None

    def add(self, message: Request) -> None:
        """Queue work."""
        behind: list[Commit] = []
        if isinstance(message, Release):
            self.unlock()
            self._end_role(_RELEASED)
            self._give_up_overlay()
            self._appender.hurry()
        elif isinstance(message, Lock):
            behind = self._take_commits()
            self._refuse_holds(_LOCKED)
        elif isinstance(message, Hold) and (self._lock is not None or isinstance(self._work, Lock)):
            self._send(HoldRefused(self.name, message.number, _LOCKED))
            return
        elif isinstance(message, Commit) and not self._serving.arrived(message):
            return
        for each in (message, *behind):
            if (refusal := self._backlog.add(each)) is not None:
                txid, reason = refusal
                self._send(Failed(self.name, txid, reason, retry=True))

    def step(self) -> float | None:
        """Take one turn. The answer: seconds until the next one may get further, None when there is nothing to do."""
        job = self._job
        if job is None:
            if self._lock is not None and not self._backlog.next_is_lock:
                return self._serving.refuse_late(_LOCKED)
            if (work := self._backlog.take()) is None:
                return self._close_in_time()
            self._work = work
            job = self._job = self._begin(work)
        delay = next(job, None)
        if delay is None:
            self._work = self._job = None
            return 0.0 if self._backlog else self._close_in_time()
        return delay

    def look_closely(self) -> None:
        """Whoever keeps SQLite's write lock is about to be refused, and to take it again at once."""
        self._appender.lock.look_closely()

    def look(self, wanted: Look) -> None:
        """Answer whether readers see it, beside whatever is under way."""
        is_free = self._work is None or isinstance(self._work, Republish)
        may_open = is_free and self._lock is None and not self._serving.is_holding
        self._send(Looked(self.name, wanted.number, *self._appender.look(wanted, may_open=may_open)))

    def unlock(self) -> None:
        """Give the write lock back, or wait for it no longer; what is queued may go on."""
        self._backlog.drop_locks()
        if isinstance(self._work, Lock):
            self._give_up()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def unhold(self) -> None:
        """Keep the write lock for another node no longer, or wait for it no longer."""
        self._backlog.take_holds()
        if isinstance(self._work, Hold):
            self._give_up()
        self._serving.end_hold(commits=isinstance(self._work, Commit))

    def _give_up(self) -> None:
        """End what is under way; its locks are released now."""
        if self._job is not None:
            self._job.close()
        self._work = self._job = None

    def _give_up_overlay(self) -> None:
        """What is visible already is not applied once more while others keep SQLite's write lock."""
        txid = self._backlog.overlay()
        if isinstance(self._work, list) and not self._appender.lock.is_locked and is_overlay(self._work):
            txid = self._work[0].first_txid
            self._give_up()
        if txid is not None:
            self._fail(txid, _RELEASED, retry=True)

    def _take_commits(self) -> list[Commit]:
        """Take what is to be committed out of the queue, and what is about to be."""
        found = self._backlog.take_commits()
        if isinstance(self._work, Commit):
            found.insert(0, self._work)
            self._give_up()
        return found

    def _end_role(self, reason: str) -> None:
        """Nothing is committed or held for other nodes any more."""
        for commit in self._take_commits():
            self._serving.refuse(commit, reason, busy=True)
        self._refuse_holds(reason)
        self._close_at = 0.0

    def _refuse_holds(self, reason: str) -> None:
        self._serving.refuse_holds(reason, self._work if isinstance(self._work, Hold) else None)
        self.unhold()

    def _close_in_time(self) -> float | None:
        """Close the files of a primary's database when nobody has committed for a while; seconds until then."""
        if not self._close_at or self.opened is None:
            return None
        now = time.monotonic()
        if now >= self._close_at:
            if not self.frames and not self._serving.is_holding:
                self._close_at = 0.0
                self._forget(self)
                self.forget_files()
                return None
            self._close_at = now + KEEP_OPEN_S
        return self._close_at - now

    def close(self) -> None:
        """Drop what is queued and close the files."""
        self._end_role(_DROPPED)
        self.unlock()
        self._backlog.clear()
        self._give_up()
        self.forget_files()

    def forget_files(self) -> None:
        """Close the files; the next apply opens them anew."""
        self._appender.forget_files()

    def _begin(self, work: Work) -> Turns[None]:
        if isinstance(work, Republish):
            return self._republish(work)
        if isinstance(work, Release):
            return self._release(work)
        if isinstance(work, Lock):
            return self._take_lock(work)
        if isinstance(work, Commit | Hold):
            return self._serve(work)
        return self._apply(work)

    # -- transactions ----------------------------------------------------------------------------------------------

    def _apply(self, batch: list[Apply] | Install) -> Turns[None]:
        """Apply one transaction; every failure that is not a bug of ours ends up as a message."""
        self._serving.end_hold(commits=False)
        self._close_at = 0.0
        if isinstance(batch, Install):
            first_txid = last_txid = batch.txid
        else:
            first_txid, last_txid = batch[0].first_txid, batch[-1].last_txid
        try:
            yield from self._appender.apply(batch)
        except LitereplicaError as error:
            self._fail(first_txid, error.message, retry=isinstance(error, Unavailable))
        except OSError as error:
            self.forget_files()
            self._fail(first_txid, f"applying to {self.path} failed: {error}", retry=True)
        except sqlite3.Error as error:
            self.forget_files()
            self._fail(first_txid, f"SQLite cannot use {self.path}: {error}", retry=True)
        else:
            history = next(_HISTORIES) if isinstance(batch, Install) else self.visible[0]
            self.visible = (history, last_txid)
            self._send(Applied(self.name, last_txid, history))
            self.published_at = time.monotonic()
            self._on_published(self)

    def _fail(self, txid: int, reason: str, *, retry: bool) -> None:
        """Report; what is queued behind the failure is dropped, and so is everything until ``txid`` comes again."""
        self._backlog.failed(txid)
        self._send(Failed(self.name, txid, reason[:REASON_LIMIT], retry))

    # -- what a primary does for other nodes -----------------------------------------------------------------------

    def _serve(self, message: Commit | Hold) -> Turns[None]:
        if isinstance(message, Hold):
            yield from self._serving.hold(message)
            has_committed = False
        else:
            has_committed = yield from self._serving.commit(message)
        if self.opened is not None:
            self._close_at = time.monotonic() + KEEP_OPEN_S
            if has_committed:
                self.published_at = time.monotonic()
                self._on_published(self)

    # -- what a change of roles asks -------------------------------------------------------------------------------

    def _republish(self, wanted: Republish) -> Turns[None]:
        """Have the wal-index show what is committed, unless there is other work: then that looks at it first."""
        self._appender.lock.claim = wanted
        if self.opened is None:
            attempts = republish(self.path, wanted)
        elif self._backlog:
            return
        else:
            attempts = self._compare()
        try:
            while True:
                delay_s = next(attempts)
                if self._backlog.next_is_lock:
                    self._backlog.put_back(wanted)  # whoever wants the lock does not look at the wal-index
                if self._backlog:
                    return
                yield delay_s
        except StopIteration as answer:
            if answer.value:
                self._send(Invalidated(self.name))
        except (OSError, sqlite3.Error, LitereplicaError):
            pass  # the mount is gone, or a writer keeps the lock; the next transaction of ours compares again
        finally:
            attempts.close()

    def _compare(self) -> Turns[bool]:
        yield from self._appender.compare()
        return False

    def _release(self, wanted: Release) -> Turns[None]:
        self._forget(self)
        try:
            header = yield from self._appender.release()
        except (OSError, sqlite3.Error, LitereplicaError) as error:
            reason = (
                error.message if isinstance(error, LitereplicaError) else f"reading {self.path}-wal failed: {error}"
            )
            self._send(ReleaseFailed(self.name, reason[:REASON_LIMIT], wanted.number))
            return
        self.visible = (self.visible[0], 0)
        self._close_at = time.monotonic() + LET_GO_S
        if header is None or not header.max_frame:
            self._send(Released(self.name, 0, 0, 0, wanted.number))
        else:
            self._send(Released(self.name, header.salt1, header.salt2, header.max_frame, wanted.number))

    def _take_lock(self, wanted: Lock) -> Turns[None]:
        """Ask for the write lock until it is there or ``limit_ms`` are over; ``unlock`` ends this at any turn."""
        if self._lock is not None:
            self._send(Locked(self.name))
            return
        self._forget(self)
        self.forget_files()
        self._lock, refusal = yield from take_lock(self.path, Waits(wanted.limit_ms / 1000, LOCK_DELAY_S))
        if self._lock is not None:
            self._send(Locked(self.name))
        else:
            self._send(LockRefused(self.name, refusal[:REASON_LIMIT]))
