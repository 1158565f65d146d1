"""What is asked for one database, done in turns.

Knows the order of the work, how each kind of it ends, and that only one of it is under way: everything that opens a
file of the database or closes one happens here, one after the other, because a close drops the POSIX locks of this
process's connection (fcntl(2)). At any time the worker has the files open (appender.py), or SQLite's write lock
(write_lock.py), or looks after the wal-index of others (republish.py), or none of it. Does not know the socket.

A turn never waits: one that cannot go on says when to try again, so that a database whose lock is held stalls no other.

Interleavings with the checkpoint thread and with readers, and why each is harmless:

- PASSIVE checkpoint beside an apply: it needs neither the WRITE lock nor ``gate``. It took CHECKPOINT, then read the
  header once; frames appended later are not its business, frames up to there are never rewritten while it runs,
  because nothing but TRUNCATE starts the WAL anew, and TRUNCATE needs CHECKPOINT too.
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
- A release reads the header and closes under ``gate``: no TRUNCATE of ours comes in between, and none afterwards.
"""

import sqlite3
import time
from collections.abc import Callable
from typing import Final

from litereplica.applier import holders
from litereplica.applier.appender import Appender
from litereplica.applier.backlog import Backlog, Request, Work
from litereplica.applier.opened import OpenDatabase
from litereplica.applier.pieces import FilePieces, PageSizeChanged, RecordPieces
from litereplica.applier.protocol import (
    REASON_LIMIT,
    Applied,
    Apply,
    Failed,
    Install,
    Invalidated,
    Lock,
    Locked,
    LockRefused,
    Release,
    Released,
    ReleaseFailed,
    Republish,
    ToDaemon,
)
from litereplica.applier.republish import republish
from litereplica.applier.turns import Turns, Waits
from litereplica.applier.write_lock import WriteLock
from litereplica.errors import Corrupt, LitereplicaError, Unavailable

LOCK_DELAY_S: Final = 0.0003
"""Between two attempts to get the write lock, at most: a busy writer leaves it free for less than that, but often."""


class DatabaseWorker:
    """One database of the mount. All of it belongs to the apply thread; the checkpoint thread reads some fields.

    ``applied``: the TXID that new readers see, 0 while unknown. ``published_at``: monotonic seconds of the last
    publication. The others are those of Appender.
    """

    __slots__ = (
        "_appender", "_backlog", "_forget", "_job", "_lock", "_on_published", "_send", "_takes_lock", "applied",
        "name", "path", "published_at",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        path: str,
        send: Callable[[ToDaemon], None],
        on_published: Callable[["DatabaseWorker"], None],
        forget: Callable[["DatabaseWorker"], None],
        make_room: Callable[[], None],
    ) -> None:
        """``path``: of the database file. ``send`` sends to the daemon; ``on_published`` is told of each commit.

        ``forget`` is told when the database is no longer ours to fold; ``make_room`` is called before files are opened.
        """
        self.name = name
        self.path = path
        self.applied = 0
        self.published_at = 0.0
        self._send = send
        self._on_published = on_published
        self._forget = forget
        self._backlog = Backlog()
        self._job: Turns[None] | None = None
        self._takes_lock = False
        self._lock: WriteLock | None = None
        self._appender = Appender(name, path, make_room, lambda: on_published(self), lambda: send(Invalidated(name)))

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

    def add(self, message: Request) -> None:
        """Queue work."""
        if isinstance(message, Release):
            self.unlock()
        refusal = self._backlog.add(message)
        if refusal is not None:
            txid, reason = refusal
            self._send(Failed(self.name, txid, reason, retry=True))

    def step(self) -> float | None:
        """Take one turn. The answer: seconds until the next one may get further, None when there is nothing to do."""
        job = self._job
        if job is None:
            if self._lock is not None and not self._backlog.next_is_lock:
                return None
            if (work := self._backlog.take()) is None:
                return None
            job = self._job = self._begin(work)
        delay = next(job, None)
        if delay is None:
            self._job = None
            return 0.0 if self._backlog else None
        return delay

    def unlock(self) -> None:
        """Give the write lock back, or wait for it no longer; what is queued may go on."""
        self._backlog.drop_locks()
        if self._takes_lock and self._job is not None:
            self._job.close()
            self._job = None
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def close(self) -> None:
        """Drop what is queued and close the files."""
        self.unlock()
        self._backlog = Backlog()
        if self._job is not None:
            self._job.close()  # its locks are released now
            self._job = None
        self.forget_files()

    def forget_files(self) -> None:
        """Close the files; the next apply opens them anew."""
        self._appender.forget_files()

    def _begin(self, work: Work) -> Turns[None]:
        if isinstance(work, Republish):
            return self._republish(work)
        if isinstance(work, Release):
            return self._release()
        if isinstance(work, Lock):
            return self._take_lock(work)
        return self._apply(work)

    # -- transactions ----------------------------------------------------------------------------------------------

    def _apply(self, batch: list[Apply] | Install) -> Turns[None]:
        """Apply one transaction; every failure that is not a bug of ours ends up as a message."""
        if isinstance(batch, Install):
            first_txid = last_txid = batch.txid
        else:
            first_txid, last_txid = batch[0].first_txid, batch[-1].last_txid
        try:
            yield from self._transaction(batch)
        except LitereplicaError as error:
            self._fail(first_txid, error.message, retry=isinstance(error, Unavailable))
        except OSError as error:
            self.forget_files()
            self._fail(first_txid, f"applying to {self.path} failed: {error}", retry=True)
        except sqlite3.Error as error:
            self.forget_files()
            self._fail(first_txid, f"SQLite cannot use {self.path}: {error}", retry=True)
        else:
            self.applied = last_txid
            self._send(Applied(self.name, last_txid))
            self.published_at = time.monotonic()
            self._on_published(self)

    def _transaction(self, batch: list[Apply] | Install) -> Turns[None]:
        if isinstance(batch, Install):
            yield from self._appender.append(FilePieces(batch))
            return
        starts_at = 0
        while True:
            try:
                yield from self._appender.append(RecordPieces(self.name, batch, starts_at))
            except PageSizeChanged as change:
                # Frames that were written already stay unpublished, and are overwritten.
                starts_at = change.txid
            else:
                return

    def _fail(self, txid: int, reason: str, *, retry: bool) -> None:
        """Report; what is queued behind the failure is dropped, and so is everything until ``txid`` comes again."""
        self._backlog.failed(txid)
        self._send(Failed(self.name, txid, reason[:REASON_LIMIT], retry))

    # -- what a change of roles asks -------------------------------------------------------------------------------

    def _republish(self, wanted: Republish) -> Turns[None]:
        """Have the wal-index show what is committed, unless there is other work: then that looks at it first."""
        self._appender.claim = wanted
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

    def _release(self) -> Turns[None]:
        self._forget(self)
        try:
            header = yield from self._appender.release()
        except (OSError, sqlite3.Error, LitereplicaError) as error:
            reason = (
                error.message if isinstance(error, LitereplicaError) else f"reading {self.path}-wal failed: {error}"
            )
            self._send(ReleaseFailed(self.name, reason[:REASON_LIMIT]))
            return
        self.applied = 0
        if header is None or not header.max_frame:
            self._send(Released(self.name, 0, 0, 0))
        else:
            self._send(Released(self.name, header.salt1, header.salt2, header.max_frame))

    def _take_lock(self, wanted: Lock) -> Turns[None]:
        """Ask for the write lock until it is there or ``limit_ms`` are over; ``unlock`` ends this at any turn."""
        if self._lock is not None:
            self._send(Locked(self.name))
            return
        self._forget(self)
        self.forget_files()
        waits = Waits(wanted.limit_ms / 1000, LOCK_DELAY_S)
        lock: WriteLock | None = None
        problem = ""
        self._takes_lock = True
        try:
            lock = WriteLock(self.path)
            while not lock.try_take():
                yield waits.next_delay("an application writes")
            self._lock = lock
        except Unavailable:
            pass  # who it is can be asked once our connection is closed
        except (OSError, sqlite3.Error, Corrupt) as error:
            problem = f"SQLite cannot use it: {error}"
        finally:
            self._takes_lock = False
            if lock is not None and self._lock is None:
                lock.close()
        if self._lock is not None:
            self._send(Locked(self.name))
        else:
            self._send(LockRefused(self.name, (problem or holders.writer(self.path))[:REASON_LIMIT]))
