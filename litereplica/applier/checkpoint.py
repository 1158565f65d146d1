"""When a WAL that the applier has written to is folded into the database file, on a thread of its own.

Knows when a checkpoint is due and what its answer means. Does not know how frames got there; worker.py has the
interleavings with an apply.

The checkpoints are SQLite's own, on the applier's ordinary connection with a busy timeout of 0: none ever waits for a
reader. PASSIVE moves what no reader still needs from the WAL; when it moved everything and no apply is waiting,
TRUNCATE starts the WAL anew, which then copies nothing and takes microseconds. sqlite3 releases the GIL meanwhile.
The WAL of a database in rollback mode begins again without being cut (rollback_mode.py says why).

Applications that write here fold the same WAL, whenever they like: SQLite's CHECKPOINT lock lets one at a time, and one
of ours that meets theirs is tried again. What they have in the WAL is folded with ours; a WAL that they have begun anew
has nothing of ours any more, and one look at it ends the matter.

Nothing is polled: the thread sleeps until a database that has something to fold is due, and without such a database
for ever. A database whose reader is in the way is tried again after growing delays.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final

from litereplica.applier.opened import OpenDatabase, is_busy
from litereplica.applier.protocol import REASON_LIMIT, Checkpointed, CheckpointFailed, ToDaemon
from litereplica.applier.rollback_mode import begin_wal_again
from litereplica.applier.worker import DatabaseWorker
from litereplica.errors import Corrupt
from litereplica.sqlite.shm import read_checkpoint_info, read_header

CHECKPOINT_FRAMES: Final = 1000
"""Frames that make a checkpoint due at once; SQLite's own default."""

LONG_WAL_FRAMES: Final = 16 * CHECKPOINT_FRAMES
"""Frames from which on TRUNCATE no longer looks for a moment without applies: these may wait some milliseconds."""

IDLE_S: Final = 1.0
"""After so long without an apply what there is gets folded."""

LONGEST_DELAY_S: Final = 60.0
"""Between two attempts while a reader is in the way: long enough to cost nothing, short beside the reader's life."""

WANTED_DELAY_S: Final = 0.05
"""Between two attempts while an apply waits for an empty WAL: a reader in the way may end at any moment."""

_PASSES: Final = 3
_GATE_WAIT_S: Final = 0.1


class _Due:
    """When a database is to be looked at, and from how many frames on earlier."""

    __slots__ = ("at", "delay_s", "frames", "reported", "reported_problem")

    def __init__(self) -> None:
        self.at = 0.0
        self.delay_s = IDLE_S
        self.frames = CHECKPOINT_FRAMES
        # History and TXID.
        self.reported = (0, 0)
        self.reported_problem = False


class Checkpointer:
    """The checkpoint thread. ``published`` is called by the apply thread, everything else happens on the own one."""

    def __init__(self, send: Callable[[ToDaemon], None]) -> None:
        self._send = send
        self._condition = threading.Condition()
        self._due: dict[DatabaseWorker, _Due] = {}

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    def published(self, worker: DatabaseWorker) -> None:
        """A transaction was published: note the database if that makes it due, in most cases with one look-up.

        Or the next one needs an empty WAL (``worker.wants_empty_wal``): that is due at once.
        """
        due = self._due.get(worker)
        wanted = worker.wants_empty_wal
        if due is not None and worker.frames < due.frames and not wanted:
            return
        with self._condition:
            due = self._due.get(worker)
            if due is None:
                due = self._due[worker] = _Due()
                due.at = worker.published_at + IDLE_S
            if wanted:
                if due.delay_s != WANTED_DELAY_S:
                    due.at = 0.0
                    due.delay_s = WANTED_DELAY_S
            elif worker.frames >= due.frames:
                due.at = 0.0
                due.delay_s = IDLE_S
                # Not again at each commit while this one is still to come.
                due.frames = worker.frames + max(CHECKPOINT_FRAMES, worker.frames // 4)
            self._condition.notify()

    def forget(self, worker: DatabaseWorker) -> None:
        """The database was closed."""
        with self._condition:
            self._due.pop(worker, None)

    def fold_all(self) -> None:
        """Fold what can be folded now; the apply thread calls it when it has nothing else to do any more."""
        with self._condition:
            workers = list(self._due)
        for worker in workers:
            self._checkpoint(worker)

    def _run(self) -> None:
        while True:
            self._checkpoint(self._next())

    def _next(self) -> DatabaseWorker:
        """Sleep until a database is due."""
        with self._condition:
            while True:
                now = time.monotonic()
                if not self._due:
                    self._condition.wait()
                    continue
                worker, due = min(self._due.items(), key=lambda item: item[1].at)
                if due.at <= now and due.at and worker.published_at + IDLE_S > now and not worker.wants_empty_wal:
                    # Busy and not long: the applies come first.
                    due.at = worker.published_at + IDLE_S
                    continue
                if due.at <= now:
                    return worker
                self._condition.wait(due.at - now)

    def _checkpoint(self, worker: DatabaseWorker) -> None:
        """Fold one database, and note when to look at it again."""
        opened = worker.opened
        due = self._due.get(worker)
        # No frame of ours is in it: it was released, and what others have in it is not ours to fold.
        if opened is None or due is None or not (worker.frames or worker.wants_empty_wal):
            self.forget(worker)
            return
        folded = False
        try:
            folded = self._fold(worker, opened, due)
        except (sqlite3.Error, OSError, Corrupt) as error:
            if _is_deleted(opened):
                # An application of the primary has deleted it: what it had goes with it.
                opened.broken = True
                self.forget(worker)
                return
            if not is_busy(error) and not opened.closed:
                opened.broken = True
            if opened.broken and not due.reported_problem:
                due.reported_problem = True
                reason = f"checkpoint of {opened.path} failed: {error}"
                self._send(CheckpointFailed(worker.name, reason[:REASON_LIMIT]))
        with self._condition:
            if folded:
                self._due.pop(worker, None)
                if worker.visible > due.reported or worker.frames:
                    # Something was published meanwhile, and ``published`` still found the old entry.
                    self._due[worker] = again = _Due()
                    again.at = time.monotonic() + IDLE_S
                return
            if worker.wants_empty_wal:
                due.delay_s = WANTED_DELAY_S
                due.at = time.monotonic() + WANTED_DELAY_S
                return
            due.delay_s = max(due.delay_s, IDLE_S)
            due.at = time.monotonic() + due.delay_s
            due.delay_s = min(2 * due.delay_s, LONGEST_DELAY_S)

    def _fold(self, worker: DatabaseWorker, opened: OpenDatabase, due: _Due) -> bool:
        """Checkpoint, and start the WAL anew if possible; whether that was done. Raises sqlite3.Error, OSError."""
        for _ in range(_PASSES):
            visible = worker.visible
            moved_all = _checkpoint(opened, "PASSIVE")
            if not moved_all:
                return False  # a reader still needs the rest: TRUNCATE could only hold up applies, and fail
            self._report(worker, due, visible, truncated=False)
            long = worker.frames >= LONG_WAL_FRAMES or worker.wants_empty_wal
            if not (worker.idle or long):
                continue
            if not opened.gate.acquire(timeout=_GATE_WAIT_S if long else 0):
                continue
            try:
                if long or _all_backfilled(opened):
                    visible = worker.visible
                    if _start_anew(opened):
                        worker.frames = 0
                        self._report(worker, due, visible, truncated=True)
                        return True
                    return False
            finally:
                opened.gate.release()
        return False

    def _report(self, worker: DatabaseWorker, due: _Due, visible: tuple[int, int], *, truncated: bool) -> None:
        due.reported_problem = False
        history, txid = visible
        if txid and (truncated or visible > due.reported):
            due.reported = visible
            self._send(Checkpointed(worker.name, txid, truncated, history))


def _is_deleted(opened: OpenDatabase) -> bool:
    """Whether the name is gone, or another file's; not while nobody can tell: the mount is away, its disk fails."""
    try:
        return opened.is_replaced
    except OSError:
        return False


def _checkpoint(opened: OpenDatabase, mode: str) -> bool:
    """Run one checkpoint; whether every frame is in the database file now (TRUNCATE: and the WAL is empty)."""
    with opened.connection_lock:
        if opened.closed:
            return False
        busy, frames, moved = opened.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]
    return not busy and frames == moved and frames >= 0


def _start_anew(opened: OpenDatabase) -> bool:
    """Move what is left and empty the WAL; whether it is empty now. Under ``gate``."""
    if not _checkpoint(opened, "PASSIVE"):
        return False
    opened.look_at_mode()
    return begin_wal_again(opened) if opened.rollback else _checkpoint(opened, "TRUNCATE")


def _all_backfilled(opened: OpenDatabase) -> bool:
    """Whether TRUNCATE has nothing to copy. Under ``gate``: the mapping does not change then."""
    if opened.closed:
        return False
    block = opened.memory.blocks[0]
    header = read_header(block)
    return header is not None and read_checkpoint_info(block).backfilled == header.max_frame
