"""The daemon's end of the applier: starts the child, talks to it, starts it again when it dies.

Knows the child as a process and the messages. Does not know the store: the node is told through callbacks, which are
plain functions, called on the event loop, and must be quick. Never touches the mount.

Nothing here blocks the caller. A message goes to the socket at once when it takes it, which saves a task switch in the
path from commit to visible; else it waits in ``_outbox``, whose bound is the node's window of a few spans for each
database. While there is no child, messages are dropped: ``restarted`` asks for them again.

After a death or a failure everything that had been sent is sent again as one transaction (``Apply.redo_until``;
wal_writer.py says why); that is kept here, because the child that knew is gone.
"""

import itertools
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from litereplica.applier.events import ApplierEvents
from litereplica.applier.process import KILL_WAIT_S, RECEIVE_BYTES, reap, receive, spawn
from litereplica.applier.protocol import (
    Applied,
    Apply,
    Checkpointed,
    CheckpointFailed,
    Close,
    Closed,
    Commit,
    CommitRefused,
    Committed,
    Failed,
    Held,
    Hold,
    HoldLost,
    HoldRefused,
    Install,
    Invalidated,
    Lock,
    Locked,
    LockRefused,
    Look,
    Looked,
    Message,
    MessageReader,
    Ready,
    Release,
    Released,
    ReleaseFailed,
    Report,
    Reported,
    Republish,
    Stop,
    ToChild,
    Unhold,
    Unlock,
    Warm,
    encode,
)
from litereplica.errors import Unavailable

START_TIMEOUT_S: Final = 30.0
"""From start to Ready: half a second alone, and this on a machine that has everything else to do."""

FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 2.0

OUTBOX_LIMIT_BYTES: Final = 16 << 20
"""Messages that wait for the socket: a window of 8 spans for 4,000 databases, at 500 bytes each."""

_NEVER_REFUSED: Final = (Close, Release, Republish, Stop, Unhold, Unlock)
"""They end something: nobody could do anything about a refusal, and what they end would last for ever. Short, and few
for each thing that was not refused."""

_log = structlog.get_logger(__name__)


class ApplierLink:
    """One applier child for one mount.

    ``await nursery.start(link.run)`` returns when the child is up; ``await link.stop(timeout_s)`` ends child and task.
    """

    def __init__(self, mount_dir: Path, events: ApplierEvents) -> None:
        assert mount_dir.is_absolute(), mount_dir
        self._mount_dir = os.fspath(mount_dir)
        self._events = events
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._outbox = bytearray()
        self._outbox_filled = trio.Event()
        self._under_way: dict[str, list[int]] = {}
        """Last TXIDs of what was handed to a child and not reported as applied or failed since."""
        self._floor: dict[str, int] = {}
        """Highest TXID that a failed or dead child may have published without saying so."""
        # The last Release and Close of each database: an answer to an earlier one is of before what was sent since.
        self._numbers = itertools.count(1)
        self._releases: dict[str, int] = {}
        self._closes: dict[str, int] = {}
        self._history: dict[str, int] = {}
        """Of what was applied last (protocol.Applied); no checkpoint of another one counts."""
        self._stopping = trio.Event()
        self._ended = trio.Event()

    @property
    def pid(self) -> int | None:
        """The child's process id while it is up: the mount lets it write where applications may not."""
        return None if self._process is None else self._process.pid

    def apply(
        self, database: str, path: Path, offset: int, length: int, first_txid: int, last_txid: int, *, applied: int = 0
    ) -> None:
        """Have whole records applied: ``length`` bytes (> 0) from ``offset`` of a segment file outside the mount.

        ``applied``: what is applied, as the node knows; the records may follow that although nothing was sent up to
        there. Raises Unavailable when far more is waiting than the node's window allows.
        """
        self._under_way.setdefault(database, []).append(last_txid)
        floor = self._floor.get(database, 0)
        self._post(Apply(database, os.fspath(path), offset, length, first_txid, last_txid, floor, applied))

    def install(self, database: str, path: Path, page_size: int, page_count: int, txid: int) -> None:
        """Have all content replaced by the pages in ``path`` (page i at ``(i - 1) * page_size``), giving ``txid``."""
        self._floor.pop(database, None)
        self._history.pop(database, None)
        self._under_way[database] = [txid]
        self._post(Install(database, os.fspath(path), page_size, page_count, txid))

    def close_database(self, database: str) -> None:
        """Forget a dropped database and what is queued for it; until ``on_closed`` some of it may still be applied.

        Of several only the last is answered. To whatever file has the name by then: no other file may get it before.
        """
        self._under_way.pop(database, None)
        self._floor.pop(database, None)
        self._history.pop(database, None)
        number = self._closes[database] = next(self._numbers)
        self._post(Close(database, number))

    def warm(self, database: str, length: int) -> None:
        """Have the kernel read the first ``length`` bytes of the -wal; a hint, dropped when nobody can take it."""
        self._post(Warm(database, length))

    def republish(self, database: str, salt1: int, salt2: int, frames: int) -> None:
        """Have the wal-index show that so many frames are committed; nothing sent later is applied over less.

        Lost when nobody can take it: a writer that meets it is refused, and it is asked again (mount.wal_file); and a
        child that starts later takes what the WAL holds for committed only if it is told again.
        """
        self._post(Republish(database, salt1, salt2, frames))

    def release(self, database: str) -> None:
        """Have everything finished that was sent, and the database let go of: ``on_released`` or ``on_release_failed``.

        It ends ``lock`` and ``hold``, and refuses each ``commit`` that has not reached its commit point. Without a
        child there is no answer: a new one (``on_restarted``) is asked again. Of several only the last is answered.
        """
        number = self._releases[database] = next(self._numbers)
        self._post(Release(database, number))

    def lock(self, database: str, limit_s: float) -> None:
        """Have SQLite's write lock taken: ``on_locked``, or after ``limit_s`` at most ``on_lock_refused``.

        What is sent for the database afterwards is not begun before ``unlock``.
        """
        self._post(Lock(database, round(limit_s * 1000)))

    def unlock(self, database: str) -> None:
        """Have the write lock given back, or no longer waited for (then there may be no answer to ``lock``)."""
        self._post(Unlock(database))

    def commit(self, database: str, number: int, record: bytes | Path, length: int, limit_s: float) -> None:
        """Have a record of ``length`` bytes committed as the database's next transaction.

        ``record``: all of it, up to RECORD_LIMIT_BYTES, or the file that holds it.
        As an application would commit it: the mount captures it. ``on_committed``, or ``on_commit_refused`` when the
        locks are not to be had within ``limit_s``. Without a child there is no answer (``on_restarted``). ``number``
        comes back with the answer. Raises Unavailable as ``apply`` does.

        A node that is no longer the primary must not let one go on: on a replica nothing captures it. ``release`` ends
        those under way, and its answer says that none is left.
        """
        path, inline = ("", record) if isinstance(record, bytes) else (os.fspath(record), b"")
        self._post(Commit(database, number, path, length, round(limit_s * 1000), inline))

    def hold(self, database: str, number: int, limit_s: float) -> None:
        """Have SQLite's write lock kept for another node: ``on_held``, or within ``limit_s`` ``on_hold_refused``.

        ``commit`` goes through under it. It ends with ``unhold``, ``release``, ``lock``, ``close_database``; or with
        ``on_hold_lost``, to be answered by one of these: until then each ``commit`` is refused.
        """
        self._post(Hold(database, number, round(limit_s * 1000)))

    def unhold(self, database: str) -> None:
        """Have it given back, or no longer waited for (then there may be no answer to ``hold``). Never refused."""
        self._post(Unhold(database))

    def report(self, database: str, number: int) -> None:
        """Ask for ``on_reported``: everything that is published by then has been told before."""
        self._post(Report(database, number))

    def look(self, database: str, number: int, salt1: int, salt2: int, frames: int) -> None:
        """Ask for ``on_looked``: whether readers see so many frames of the WAL with these salts."""
        self._post(Look(database, number, salt1, salt2, frames))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a child running until ``stop``; started when the first one is up.

        Raises Unavailable when the first child does not come up.
        """
        backoff_s = FIRST_BACKOFF_S
        first = True
        try:
            while not self._stopping.is_set():
                started = trio.current_time()
                try:
                    await self._live(task_status.started if first else self._events.on_restarted)
                    first = False
                except Unavailable as error:
                    if first:
                        raise
                    _log.error("applier.start_failed", error=error.message)
                if trio.current_time() - started > LONGEST_BACKOFF_S:
                    backoff_s = FIRST_BACKOFF_S
                with trio.move_on_after(backoff_s):
                    await self._stopping.wait()
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
        finally:
            self._ended.set()

    async def stop(self, timeout_s: float) -> None:
        """Let the child finish what it has and fold the WALs; kill it after ``timeout_s``."""
        self._stopping.set()
        if self._process is None:
            return
        self._post(Stop())
        with trio.move_on_after(timeout_s):
            await self._ended.wait()
            return
        if self._process is not None:
            _log.warning("applier.killed", reason="it did not end in time", timeout_s=timeout_s)
            self._process.kill()
        with trio.move_on_after(KILL_WAIT_S):
            await self._ended.wait()

    async def _live(self, up: Callable[[], None]) -> None:
        """One child, from start to end; ``up`` is called when it is ready. Raises Unavailable if it never is."""
        process, pidfd, channel = spawn(self._mount_dir)
        ready = False
        try:
            with channel:
                reader = MessageReader()
                with trio.move_on_after(START_TIMEOUT_S):
                    ready = any(isinstance(message, Ready) for message in await receive(channel, reader))
                if ready:
                    self._process, self._channel = process, channel
                    up()
                    if self._stopping.is_set():
                        self._post(Stop())
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._drain, channel)
                        while messages := await receive(channel, reader):
                            for message in messages:
                                self._dispatch(message)
                        nursery.cancel_scope.cancel()
        finally:
            self._process = self._channel = None
            self._outbox.clear()
            self._history.clear()
            self._releases.clear()
            self._closes.clear()
            for database in list(self._under_way):
                self._doubt(database)
            if not self._stopping.is_set():
                # After Stop the end of the socket is the end of the process, and its exit code is worth having.
                process.kill()
            await reap(process, pidfd)
        if not ready:
            raise Unavailable(f"the applier did not start (exit code {process.returncode}); its own message is above")
        if not self._stopping.is_set():
            _log.warning("applier.died", exit_code=process.returncode)

    def _post(self, message: ToChild) -> None:
        channel = self._channel
        if channel is None:
            return
        data = encode(message)
        if not self._outbox:
            try:
                data = data[channel.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the child died; the receiving task finds out
        if data:
            if len(self._outbox) + len(data) > OUTBOX_LIMIT_BYTES and not isinstance(message, _NEVER_REFUSED):
                raise Unavailable(f"{len(self._outbox)} bytes of messages wait for the applier: it does not take them")
            self._outbox += data
            self._outbox_filled.set()

    async def _drain(self, channel: socket.socket) -> None:
        """Send what the socket did not take at once."""
        outbox = self._outbox
        while True:
            await self._outbox_filled.wait()
            while outbox:
                await trio.lowlevel.wait_writable(channel)
                try:
                    del outbox[: channel.send(outbox[:RECEIVE_BYTES])]
                except BlockingIOError:
                    continue
                except OSError:
                    return  # as in _post
            self._outbox_filled = trio.Event()

    def _dispatch(self, message: Message) -> None:
        if isinstance(message, Applied):
            self._history[message.database] = message.history
            self._applied(message.database, message.txid)
        elif isinstance(message, Checkpointed):
            if message.history == self._history.get(message.database):
                self._events.on_checkpointed(message.database, message.txid, truncated=message.truncated)
        elif isinstance(message, Failed):
            self._doubt(message.database)
            self._events.on_failed(message.database, message.txid, message.reason, retry=message.retry)
        elif isinstance(message, CheckpointFailed):
            _log.warning("applier.checkpoint_failed", database=message.database, reason=message.reason)
        elif isinstance(message, Closed):
            if _take(self._closes, message):
                self._events.on_closed(message.database)
        elif isinstance(message, Released | ReleaseFailed):
            self._let_go(message)
        elif isinstance(message, Invalidated):
            _log.warning(
                "wal_index_reset",
                database=message.database,
                reason="it did not show all that is committed: whoever uses the database next rebuilds it from the WAL",
            )
        else:
            self._dispatch_answer(message)

    def _let_go(self, message: Released | ReleaseFailed) -> None:
        if isinstance(message, Released):
            # Whatever a dead child may have published is in what it says, and the next TXIDs may be lower ones.
            self._floor.pop(message.database, None)
        if not _take(self._releases, message):
            return
        if isinstance(message, Released):
            self._events.on_released(message.database, message.salt1, message.salt2, message.frames)
        else:
            self._events.on_release_failed(message.database, message.reason)

    def _dispatch_answer(self, message: Message) -> None:
        """What was asked for SQLite's locks, commits and reports."""
        if isinstance(message, Locked):
            self._events.on_locked(message.database)
        elif isinstance(message, LockRefused):
            self._events.on_lock_refused(message.database, message.holder)
        elif isinstance(message, Committed):
            self._events.on_committed(message.database, message.number)
        elif isinstance(message, CommitRefused):
            self._events.on_commit_refused(message.database, message.number, message.reason, busy=message.busy)
        elif isinstance(message, Held):
            self._events.on_held(message.database, message.number)
        elif isinstance(message, HoldRefused):
            self._events.on_hold_refused(message.database, message.number, message.holder)
        elif isinstance(message, HoldLost):
            self._events.on_hold_lost(message.database, message.number, message.reason)
        elif isinstance(message, Reported):
            self._events.on_reported(message.database, message.number)
        elif isinstance(message, Looked):
            self._events.on_looked(message.database, message.number, shown=message.shown, writes=message.writes)

    def _applied(self, database: str, txid: int) -> None:
        """One transaction may have been many spans; the node hears of each."""
        if txid >= self._floor.get(database, 0):
            self._floor.pop(database, None)
        under_way = self._under_way.pop(database, [])
        if later := [last_txid for last_txid in under_way if last_txid > txid]:
            self._under_way[database] = later
        for _ in range(max(1, len(under_way) - len(later))):
            self._events.on_applied(database, txid)

    def _doubt(self, database: str) -> None:
        """Some of what is under way may have been published without a word."""
        if under_way := self._under_way.pop(database, None):
            self._floor[database] = max(*under_way, self._floor.get(database, 0))


def _take(asked: dict[str, int], answer: Closed | Released | ReleaseFailed) -> bool:
    """Whether it is the answer to what was asked last."""
    is_last = asked.get(answer.database) == answer.number
    if is_last:
        del asked[answer.database]
    return is_last
