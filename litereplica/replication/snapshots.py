"""The primary's end of the snapshots that one replica needs.

Knows their order (one at a time, beside the records of other databases) and their messages. Does not know who needs one
(sender.py) or how pages are read (store/snapshot.py).
"""

import math
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog
import trio

from litereplica.cluster.encoding import encode, pages_head, records_head
from litereplica.cluster.messages import (
    PAGES_LIMIT_BYTES,
    RECORDS_LIMIT_BYTES,
    Snapshot,
    SnapshotEnd,
    SnapshotProgress,
)
from litereplica.errors import Corrupt
from litereplica.ltx.position import Position
from litereplica.replication.channel import Channel
from litereplica.replication.feed import Feed
from litereplica.replication.wake import Wake
from litereplica.sqlite.pages import lock_page
from litereplica.store.database import Database
from litereplica.store.judge import Judge, page_checksums
from litereplica.store.log import Trimmed
from litereplica.store.snapshot import SnapshotSource

log = structlog.get_logger(__name__)

INLINE_PAGES_BYTES: Final = 64 * 1024
"""A file up to this size is read in place: a worker thread costs more than the read."""

JOURNAL_WAIT_S: Final = 10.0
"""How long a rollback journal may keep pages from being read; then other snapshots have their turn."""


FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
"""Before a file that could not be read is tried again: a disk that is broken is not worn out, one that is well again
does not keep a replica waiting for long."""


class _Postponed(Exception):
    """An application is in the middle of a transaction on the next pages; ``progress`` is where to go on."""

    def __init__(self, progress: SnapshotProgress) -> None:
        super().__init__(progress)
        self.progress = progress


class SnapshotQueue:
    """Feeds without a cursor; each has one again when its snapshot was sent."""

    def __init__(
        self,
        channel: Channel,
        replica: str,
        *,
        epoch: int,
        key: str,
        progress: dict[str, SnapshotProgress],
        following: Callable[[Database], None],
    ) -> None:
        """``key``: of the replica's pins. ``following(database)`` is called when its records may be sent again."""
        self._channel = channel
        self._replica = replica
        self._epoch = epoch
        self._key = key
        self._progress = dict(progress)
        self._following = following
        self._queue: deque[Feed] = deque()
        # Whose file could not be read, and when each is tried again: after twice its last pause.
        self._unread: dict[Feed, float] = {}
        self._pauses: dict[Feed, float] = {}
        self._wake = Wake()

    def ask(self, feed: Feed) -> None:
        """``feed`` needs a snapshot; asking twice is asking once."""
        feed.cursor = None
        feed.searching = False
        feed.marks.clear()
        feed.resync_since = time.monotonic()
        self._unread.pop(feed, None)
        if feed not in self._queue:
            self._queue.append(feed)
            self._wake.set()

    async def run(self) -> None:
        """One at a time, beside the records of the other databases."""
        while True:
            while self._queue:
                feed = self._queue.popleft()
                try:
                    await self._send(feed)
                    feed.failed = False
                    self._pauses.pop(feed, None)
                except Trimmed as error:
                    log.warning(
                        "snapshot_too_slow", replica=self._replica, database=feed.database.name, reason=error.message
                    )
                    self._queue.append(feed)
                except _Postponed as postponed:
                    name, progress = feed.database.name, postponed.progress
                    log.info("snapshot_waits", replica=self._replica, database=name, next_pgno=progress.next_pgno)
                    self._progress[name] = progress
                    self._queue.append(feed)
                except (Corrupt, OSError) as error:
                    self._give_up(feed, error)
            await self._wait()

    async def _wait(self) -> None:
        """Until there is something to do."""
        with trio.move_on_at(min(self._unread.values(), default=math.inf)):
            await self._wake.wait()
        now = trio.current_time()
        due = [feed for feed, again_at in self._unread.items() if again_at <= now]
        for feed in due:
            del self._unread[feed]
        self._queue.extend(due)

    def _give_up(self, feed: Feed, error: Exception) -> None:
        """This database cannot be read: the others go on.

        A disk that fails may recover, and is asked again. A damaged page needs a person (docs/operations.md, "Damage"),
        and then the replica to connect again.
        """
        log.error("snapshot_failed", replica=self._replica, database=feed.database.name, reason=str(error))
        if not isinstance(error, Corrupt):
            pause_s = min(2 * self._pauses[feed], LONGEST_PAUSE_S) if feed in self._pauses else FIRST_PAUSE_S
            self._pauses[feed] = pause_s
            self._unread[feed] = trio.current_time() + pause_s
        feed.failed = True

    async def _send(self, feed: Feed) -> None:
        database = feed.database
        name = database.name
        source = SnapshotSource(database, f"{self._key} snapshot", self._progress.pop(name, None))
        try:
            log.info(
                "snapshot_begins", replica=self._replica, database=name, base=str(source.base),
                pages=source.page_count, first_pgno=source.first_pgno,
            )  # fmt: skip
            began = trio.current_time()
            message = Snapshot(
                self._epoch, name, source.base, source.page_size, source.page_count, source.first_pgno,
                database.epoch, database.timestamp_ms,
            )  # fmt: skip
            await self._channel.send(encode(message))
            await self._send_pages(database, source)
            # Until the replica acknowledges the end, a cut connection may want these records again.
            database.log.pin(self._key, source.base.txid)
            position = await self._send_records_after(feed, source.base.txid)
            log.info(
                "snapshot_sent", replica=self._replica, database=name, position=str(position),
                seconds=round(trio.current_time() - began, 3),
            )  # fmt: skip
        finally:
            source.close()

    async def _send_pages(self, database: Database, source: SnapshotSource) -> None:
        name = database.name
        if source.page_count == 0:
            return
        judge, locked = Judge(database, source.base), lock_page(source.page_size)
        count = PAGES_LIMIT_BYTES // source.page_size
        inline = source.page_count * source.page_size <= INLINE_PAGES_BYTES
        pgno = source.first_pgno
        while True:
            data = await self._read(source, pgno, count, inline=inline)
            if not data:
                return
            await self._check(database, judge, pgno, page_checksums(data, pgno, source.page_size, locked))
            await self._channel.send(pages_head(self._epoch, name, pgno, len(data)), data)
            pgno += len(data) // source.page_size

    @staticmethod
    async def _check(database: Database, judge: Judge, first_pgno: int, entries: "array[int]") -> None:
        """Raises Corrupt when pages are not what they were when they were committed: damage is not passed on.

        ``entries`` are their checksums. Those that records after the base change are the records' affair: they follow.
        """
        wrong = await judge.wrong_pages(first_pgno, len(entries), entries)
        if wrong:
            shown = ", ".join(map(str, wrong[:10])) + (" …" if len(wrong) > 10 else "")
            raise Corrupt(
                f"{database.file_path} is damaged (page {shown}), so no snapshot of it is sent: run 'litereplica "
                f"verify {database.name}', and see docs/operations.md, Damage"
            )

    @staticmethod
    async def _read(source: SnapshotSource, pgno: int, count: int, *, inline: bool) -> bytes:
        """Pages as some committed transaction left them. Raises _Postponed when they stay uncertain for too long."""
        with trio.move_on_after(JOURNAL_WAIT_S):
            while True:
                rollbacks = source.open_pages.rollbacks
                if inline:
                    data = source.read(pgno, count)
                else:
                    data = await trio.to_thread.run_sync(source.read, pgno, count)
                if await source.wait_certain(pgno, count, rollbacks):
                    return data
        raise _Postponed(SnapshotProgress(source.base, source.page_size, pgno))

    async def _send_records_after(self, feed: Feed, base_txid: int) -> Position:
        """The records after the base, up to the end of the log as it is in some instant; the position there."""
        database = feed.database
        name = database.name
        cursor = database.log.cursor(base_txid)
        while True:
            data = cursor.read(RECORDS_LIMIT_BYTES)
            # No await since the read: with the newest record returned as a whole, this is one instant.
            position, page_count = database.position, database.page_count
            parts = [records_head(self._epoch, name, len(data)), data] if data else []
            at_end = cursor.txid >= position.txid
            if at_end:
                parts.append(encode(SnapshotEnd(self._epoch, name, position, page_count)))
            await self._channel.send(*parts)
            if at_end:
                break
            await trio.lowlevel.checkpoint()
        feed.accepted_from = position.txid
        feed.cursor = cursor
        feed.marks.add(position.txid, feed.resync_since or time.monotonic())
        feed.resync_since = None
        self._following(database)
        return position
