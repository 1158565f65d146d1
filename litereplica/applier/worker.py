"""What is to be applied to one database, and how far that is.

Knows the queue, how spans become one transaction, and the steps of that transaction, in turns that never wait: a turn
that cannot go on says when to try again, so that a database whose lock is held stalls no other. Does not know the
socket, nor when checkpoints happen.

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
"""

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Generator
from itertools import chain
from typing import Final, TypeVar

from litereplica.applier import locks
from litereplica.applier.opened import OpenDatabase, open_database
from litereplica.applier.pieces import FilePieces, PageSizeChanged, Piece, RecordPieces
from litereplica.applier.protocol import REASON_LIMIT, Applied, Apply, Failed, Install, ToDaemon
from litereplica.applier.wal_writer import WalWriter
from litereplica.errors import Corrupt, LitereplicaError, Refused, Unavailable
from litereplica.sqlite.shm import WRITE_LOCK, WalIndexHeader, read_checkpoint_info, read_header

BATCH_BYTES: Final = 1 << 20
"""Log bytes merged into one local commit: what a burst gains by merging is gained by then."""

BATCH_RECORDS: Final = 64
"""Transactions merged into one local commit, so that readers of a replica that is behind still see steps."""

LOCK_WAIT_S: Final = 5.0
"""How long the WRITE lock may be held by others; on a replica only recovery by a reader can, for about 1 s a GiB."""

READERS_WAIT_S: Final = 30.0
"""How long readers may keep the WAL in use when another page size needs a new one; then it is said, and tried again."""

_FIRST_DELAY_S: Final = 0.0001
_LONGEST_DELAY_S: Final = 0.01
_READERS_DELAY_S: Final = 0.1
_RECOVERIES: Final = 3

_Value = TypeVar("_Value")
Turns = Generator[float, None, _Value]
"""Work in turns: each ``yield`` is the seconds until the next turn may get further."""


class DatabaseWorker:
    """One database of the mount. All of it belongs to the apply thread; the checkpoint thread reads three fields.

    ``opened``: None until the first apply and after a failure. ``applied``: the TXID that new readers see, 0 while
    unknown. ``frames``: in the WAL with the last publication. ``published_at``: monotonic seconds of it.
    ``wants_empty_wal``: the next transaction cannot be written before the WAL is empty.
    """

    __slots__ = (
        "_awaits_resend", "_expected", "_job", "_make_room", "_on_published", "_queue", "_send", "applied", "frames",
        "name", "opened", "path", "published_at", "wants_empty_wal",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        path: str,
        send: Callable[[ToDaemon], None],
        on_published: Callable[["DatabaseWorker"], None],
        make_room: Callable[[], None],
    ) -> None:
        """``path``: of the database file. ``send`` sends to the daemon; ``on_published`` is told of each commit.

        ``make_room`` is called before files are opened.
        """
        self.name = name
        self.path = path
        self.opened: OpenDatabase | None = None
        self.applied = 0
        self.frames = 0
        self.published_at = 0.0
        self.wants_empty_wal = False
        self._send = send
        self._on_published = on_published
        self._make_room = make_room
        self._queue: deque[Apply | Install] = deque()
        self._expected = 0
        self._awaits_resend = False
        self._job: Turns[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or under way."""
        return self._job is None and not self._queue

    def add(self, message: Apply | Install) -> None:
        """Queue work. Records that do not follow are refused, or dropped while a resend is awaited."""
        if isinstance(message, Install):
            # It replaces everything: what is queued before it would only be overwritten.
            self._queue.clear()
            self._queue.append(message)
            self._expected = message.txid + 1
            self._awaits_resend = False
            return
        expected = self._expected
        if expected and message.first_txid > expected:
            if not self._awaits_resend:
                self._awaits_resend = True
                reason = f"transactions {expected} to {message.first_txid - 1} were not sent to the applier"
                self._send(Failed(self.name, expected, reason, retry=True))
            return
        if message.last_txid < expected:
            return  # queued or applied already: its Applied is on the way
        if message.first_txid < expected and message.redo_until < expected - 1:
            message = message._replace(redo_until=expected - 1)
        self._queue.append(message)
        self._expected = message.last_txid + 1
        self._awaits_resend = False

    def step(self) -> float | None:
        """Take one turn. The answer: seconds until the next one may get further, None when there is nothing to do."""
        job = self._job
        if job is None:
            if not (batch := self._take_batch()):
                return None
            job = self._job = self._run(batch)
        delay = next(job, None)
        if delay is None:
            self._job = None
            return 0.0 if self._queue else None
        return delay

    def close(self) -> None:
        """Drop what is queued and close the files."""
        self._queue.clear()
        if self._job is not None:
            self._job.close()  # its locks are released now
            self._job = None
        self.forget_files()

    def forget_files(self) -> None:
        """Close the files; the next apply opens them anew."""
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.close()

    def _take_batch(self) -> list[Apply] | Install | None:
        """The next transaction's part of the queue; None when there is none, or not yet enough of it."""
        queue = self._queue
        if not queue:
            return None
        first = queue[0]
        if isinstance(first, Install):
            queue.popleft()
            return first
        batch: list[Apply] = []
        size, records, redo_until = 0, 0, first.redo_until
        for span in queue:
            if isinstance(span, Install):
                break
            size += span.length
            records += span.last_txid - span.first_txid + 1
            if batch and batch[-1].last_txid >= redo_until and (size > BATCH_BYTES or records > BATCH_RECORDS):
                break
            batch.append(span)
            redo_until = max(redo_until, span.redo_until)
        if batch[-1].last_txid < redo_until:
            return None
        for _ in batch:
            queue.popleft()
        return batch

    def _run(self, batch: list[Apply] | Install) -> Turns[None]:
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
            yield from self._write(FilePieces(batch))
            return
        starts_at = 0
        while True:
            try:
                yield from self._write(RecordPieces(self.name, batch, starts_at))
            except PageSizeChanged as change:
                # Frames that were written already stay unpublished, and are overwritten.
                starts_at = change.txid
            else:
                return

    def _write(self, source: FilePieces | RecordPieces) -> Turns[None]:
        pieces = iter(source)
        first = next(pieces, None)
        if first is None:
            return
        if self.opened is not None and self.opened.broken:
            self.forget_files()
        opened = self.opened
        if opened is None:
            self._make_room()
            opened = self.opened = yield from self._open(source.page_size, _page_one(first))
        resized = opened.page_size != source.page_size
        if resized and not source.is_whole:
            # A redo over what a dead applier has published begins with records of the old size: one that changes it
            # follows, or they do not belong here.
            for _ in pieces:
                yield 0.0
            raise Refused(
                f"the records of {self.name} have pages of {source.page_size} bytes, its file here {opened.page_size}: "
                f"drop the database here, and it will be fetched again"
            )
        header = yield from (self._lock_empty(opened) if resized else self._lock(opened))
        try:
            _check_index(opened, header)
            opened.sequence += header.max_frame == 0
            writer = WalWriter(opened.wal, opened.memory, header, page_size=source.page_size, sequence=opened.sequence)
            for pages, commit in chain((first,), pieces):
                writer.append(pages, commit)
                if not commit:
                    yield 0.0
            if source.rollback is not None:
                # Before anybody can see it: from here on the WAL is not cut to nothing any more.
                opened.rollback = source.rollback
            if resized:
                yield from _publish_resized(opened, writer, source.page_size)
            else:
                writer.publish()
            self.frames = writer.frames
        finally:
            locks.release(opened.shm, WRITE_LOCK)
            opened.gate.release()

    def _open(self, page_size: int, first_page: bytes | None) -> Turns[OpenDatabase]:
        waits = _Waits()
        while True:
            try:
                return open_database(self.path, page_size, first_page)
            except Unavailable as error:
                yield waits.next_delay(error.message)

    def _lock(self, opened: OpenDatabase) -> Turns[WalIndexHeader]:
        """Take ``gate`` and the WRITE lock; the value is the header read under them. Raises Unavailable."""
        waits = _Waits()
        recoveries = 0
        while True:
            if not opened.gate.acquire(blocking=False):
                problem = f"a checkpoint of {self.path} does not end"
            elif not _take_write_lock(opened):
                opened.gate.release()
                problem = f"another process holds SQLite's write lock on {self.path}"
            elif (header := read_header(opened.memory.blocks[0])) is not None:
                return header
            else:
                locks.release(opened.shm, WRITE_LOCK)
                opened.gate.release()
                problem = f"the wal-index of {self.path} cannot be recovered"
                if recoveries < _RECOVERIES and opened.recover():
                    recoveries += 1
                    continue
            yield waits.next_delay(problem)

    def _lock_empty(self, opened: OpenDatabase) -> Turns[WalIndexHeader]:
        """As ``_lock``, once the WAL holds nothing: all is in the database file and no reader uses a frame.

        New readers do not delay it: where everything is in the file, they take their pages from there.
        """
        waits = _Waits(READERS_WAIT_S, _READERS_DELAY_S)
        try:
            while True:
                header = yield from self._lock(opened)
                if not header.max_frame:
                    return header
                locks.release(opened.shm, WRITE_LOCK)
                opened.gate.release()
                if opened.broken:
                    raise Unavailable(f"SQLite cannot fold the WAL of {self.path}")
                self.wants_empty_wal = True
                self._on_published(self)
                yield waits.next_delay(f"readers of {self.path} keep its page size from changing")
        finally:
            self.wants_empty_wal = False

    def _fail(self, txid: int, reason: str, *, retry: bool) -> None:
        """Report; what is queued behind the failure is dropped, and so is everything until ``txid`` comes again."""
        self._queue.clear()
        self._expected = txid
        self._awaits_resend = True
        self._send(Failed(self.name, txid, reason[:REASON_LIMIT], retry))


class _Waits:
    """Growing delays within a limit."""

    __slots__ = ("_deadline", "_delay_s", "_limit_s", "_longest_s")

    def __init__(self, limit_s: float = LOCK_WAIT_S, longest_s: float = _LONGEST_DELAY_S) -> None:
        self._deadline = 0.0
        self._delay_s = _FIRST_DELAY_S
        self._limit_s = limit_s
        self._longest_s = longest_s

    def next_delay(self, problem: str) -> float:
        """Seconds to wait now; raises Unavailable with ``problem`` when it has been long enough."""
        now = time.monotonic()
        self._deadline = self._deadline or now + self._limit_s
        if now > self._deadline:
            raise Unavailable(f"{problem}, for {self._limit_s:.0f} s now")
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, self._longest_s)
        return delay_s


def _take_write_lock(opened: OpenDatabase) -> bool:
    try:
        return locks.try_exclusive(opened.shm, WRITE_LOCK)
    except OSError:
        opened.gate.release()
        raise


def _publish_resized(opened: OpenDatabase, writer: WalWriter, page_size: int) -> Turns[None]:
    """Publish pages of another size; no checkpoint may come between that and the connection's look at them."""
    waits = _Waits()
    while not opened.connection_lock.acquire(blocking=False):
        yield waits.next_delay(f"a checkpoint of {opened.path} does not end")
    try:
        writer.publish()
        opened.show_page_size(page_size)
    finally:
        opened.connection_lock.release()


def _check_index(opened: OpenDatabase, header: WalIndexHeader) -> None:
    """Refuse a wal-index that no SQLite would have left so."""
    if header.max_frame and header.page_size != opened.page_size:
        raise Refused(f"{opened.path}-wal has pages of {header.page_size} bytes, the database {opened.page_size}")
    backfilled = read_checkpoint_info(opened.memory.blocks[0]).backfilled
    if backfilled > header.max_frame:
        raise Corrupt(
            f"the wal-index of {opened.path} claims {backfilled} frames copied of {header.max_frame}: "
            f"restart litereplica, which rebuilds it"
        )


def _page_one(piece: Piece) -> bytes | None:
    return next((page for pgno, page in piece[0] if pgno == 1), None)
