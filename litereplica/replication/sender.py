"""The primary's end of one replica's connection.

Knows which databases have something to send, their turns, and the snapshots. Does not accept connections or decide who
may connect: server.py does.

Nothing is queued here: the log is the queue. A commit costs a look-up and, at most, a flag (``changed``); what a
replica has not taken stays in the log, pinned, until retention's hard cap, and then the replica gets a snapshot.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from litereplica.cluster.catch_up import CatchUp, decide
from litereplica.cluster.encoding import encode, records_head
from litereplica.cluster.messages import (
    RECORDS_LIMIT_BYTES,
    Ack,
    Ask,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Promise,
    Resume,
    Resync,
    Search,
    Tip,
    Welcome,
)
from litereplica.errors import Corrupt, LitereplicaError, Refused, Unavailable
from litereplica.ltx.position import Point
from litereplica.replication.acknowledged import Acknowledgements
from litereplica.replication.channel import Channel
from litereplica.replication.feed import Feed
from litereplica.replication.lines import Downstream, Wish
from litereplica.replication.searches import SearchQueue
from litereplica.replication.snapshots import SnapshotQueue
from litereplica.replication.wake import Wake
from litereplica.store.database import Database
from litereplica.store.log import Trimmed
from litereplica.store.store import Store

log = structlog.get_logger(__name__)

BATCH_PARTS: Final = 64
"""Pieces of one system call: databases with little to send share it."""
GATHER_S: Final = 0.0015
"""Messages of a burst are this far apart: a replica pays per message (a log write, a local commit, two locks), and on
its readers' side so little is not seen. Measured with both nodes on two cores: 2 to 4 times the commits per second."""
TURN_S: Final = 0.002
"""Longest stretch of sending without letting other tasks run: commits of the application wait meanwhile."""


class Sender:
    """One connected replica. All methods belong to the loop's thread."""

    def __init__(
        self,
        store: Store,
        channel: Channel,
        hello: Hello,
        *,
        node: str,
        epoch: int,
        key: str,
        downstream: Downstream | None = None,
    ) -> None:
        self.replica = hello.node
        self.reason: LitereplicaError | None = None
        self._store = store
        self._node = node
        self._epoch = epoch
        self._channel = channel
        self._key = key
        self._feeds: dict[str, Feed] = {}
        self.acknowledged = Acknowledgements(store, self._feeds, key)
        # Databases with something to send, and since when; in the order of their turns.
        self._dirty: dict[str, float] = {}
        self._wake = Wake()
        self._heartbeat_due = False
        self._tips_due: set[str] = set()
        self._snapshots = SnapshotQueue(
            channel, hello.node, epoch=epoch, key=key, progress=hello.snapshots, following=self.changed
        )
        self._searches = SearchQueue(channel, epoch, key)
        self._downstream = downstream
        self._messages: list[Message] = []
        # Databases whose next transaction this replica has made itself: it waits for nothing else.
        self._expected: set[str] = set()
        self._no_pause = Wake()
        # What came back for each Ask, None until something has.
        self._promises: dict[int, bool | None] = {}
        self._hello = hello
        self._scope = trio.CancelScope()
        self._promised = trio.lowlevel.ParkingLot()
        self._ended = False

    # -- called from elsewhere, quick ------------------------------------------------------------------------------

    def changed(self, database: Database) -> None:
        """A position, an applied TXID or a database's existence changed (a listener of the store; in every commit)."""
        name = database.name
        if self._expected and name in self._expected:
            self._expected.discard(name)
            self._no_pause.set()
        if name in self._dirty:
            return
        feed = self._feeds.get(name)
        if feed is not None and (feed.cursor is None or feed.cursor.txid >= database.position.txid):
            return
        self._dirty[name] = time.monotonic()
        self._wake.set()

    def say(self, message: Message) -> None:
        """Send a message soon; nothing when the connection has ended."""
        if not self._ended:
            self._messages.append(message)
            self._no_pause.set()
            self._wake.set()

    def expect(self, database: str) -> None:
        """The next transaction of this database is the replica's own."""
        self._expected.add(database)

    def heartbeat(self) -> None:
        """Time to be heard."""
        self._heartbeat_due = True
        self._wake.set()

    def close(self, reason: LitereplicaError) -> None:
        """End the connection; ``run`` raises ``reason``."""
        self.reason = self.reason or reason
        self._scope.cancel()

    async def dismiss(self, goodbye: Goodbye, reason: LitereplicaError) -> None:
        """Say why, if the socket takes it at once, and end the connection."""
        with contextlib.suppress(Unavailable), trio.move_on_after(0.05):
            await self._channel.send(encode(goodbye))
        self.close(reason)

    def lag_ms(self, now: float) -> int:
        """How long the oldest transaction that this replica's readers do not see has been there; ``now``: monotonic."""
        oldest = now
        for name, feed in self._feeds.items():
            for since in (feed.marks.since, feed.resync_since, self._dirty.get(name)):
                if since is not None and since < oldest:
                    oldest = since
        return int((now - oldest) * 1000)

    def ask(self, number: int, hold_ms: int) -> None:
        """Ask for a promise; ``answered`` has the answer."""
        self._promises[number] = None
        self.say(Ask(self._epoch, number, hold_ms))

    async def answered(self, number: int) -> bool:
        """Return what the replica has answered to the ask of this number; False when it has left."""
        try:
            while not self._ended and self._promises[number] is None:
                await self._promised.park()
            return bool(self._promises[number])
        finally:
            del self._promises[number]

    async def drained(self) -> None:
        """Return when the replica has logged all that is committed, or has left."""
        await self.acknowledged.drained(self._dirty)

    # -- the connection --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the connection ends, which raises why (a LitereplicaError)."""
        store, downstream = self._store, self._downstream
        store.listeners.append(self.changed)
        try:
            # Nothing is awaited since we listen: a commit after the Welcome's positions is heard of.
            welcome = self._welcome()
            with self._scope:
                await self._channel.send(welcome)
                if downstream is not None:
                    downstream.joined(self)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._read)
                    nursery.start_soon(self._guard, self._write)
                    nursery.start_soon(self._guard, self._snapshots.run)
                    nursery.start_soon(self._guard, self._searches.run)
        finally:
            self._ended = True
            self._promised.unpark_all()
            self.acknowledged.end()
            if downstream is not None:
                downstream.left(self)
            store.listeners.remove(self.changed)
            for feed in self._feeds.values():
                feed.database.log.unpin(self._key)
        raise self.reason or Unavailable(f"the connection with {self.replica} ended")

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except LitereplicaError as error:
            self.close(error)
        except OSError as error:
            self.close(Unavailable(f"a file of the data directory cannot be read ({error})"))

    def _welcome(self) -> bytes:
        """Decide for each database what this replica gets; the Welcome that says so."""
        tips = {}
        how = {}
        for name, database in self._store.databases.items():
            tips[name] = Tip(database.position, database.timestamp_ms)
            how[name] = self._begin(database, self._hello.databases.get(name, Point.ZERO))
        snapshots = frozenset(name for name, each in how.items() if each is CatchUp.SNAPSHOT)
        diverged = frozenset(name for name, each in how.items() if each is CatchUp.SEARCH)
        return encode(Welcome(self._node, self._epoch, tips, snapshots, diverged))

    def _begin(self, database: Database, point: Point) -> CatchUp:
        """The feed of a database for a replica that is at ``point``."""
        name = database.name
        feed = self._feeds[name] = Feed(database)
        how = self._decide(feed, point)
        if how is CatchUp.SEARCH and name in self._hello.snapshots:
            # It has searched before, could not go back, and is in the middle of a snapshot.
            how = CatchUp.SNAPSHOT
        if how is CatchUp.SNAPSHOT:
            self._ask_snapshot(feed)
        elif how is CatchUp.SEARCH:
            feed.searching = True
            feed.resync_since = time.monotonic()
            log.warning("replica_diverged", replica=self.replica, database=name, position=str(point.position))
        else:
            self._send_after(feed, point.txid)
        return how

    @staticmethod
    def _decide(feed: Feed, point: Point) -> CatchUp:
        database = feed.database
        try:
            return decide(point, database.point, database.log.point_at)
        except (LitereplicaError, OSError) as error:
            log.warning("log_unreadable", database=database.name, reason=str(error), then="the replica gets a snapshot")
            return CatchUp.SNAPSHOT

    def _send_after(self, feed: Feed, txid: int) -> None:
        """The records after ``txid``, which both have, are sent."""
        database = feed.database
        feed.cursor = database.log.cursor(txid)
        database.log.pin(self._key, txid)
        if feed.cursor.txid < database.position.txid:
            self._dirty[database.name] = time.monotonic()
            self._wake.set()

    def _ask_snapshot(self, feed: Feed) -> None:
        self.acknowledged.forget(feed.database.name)
        feed.database.log.unpin(self._key)
        self._snapshots.ask(feed)

    # -- receiving -------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        channel = self._channel
        with channel.receiving():
            while True:
                await channel.receive()
                while (message := channel.next()) is not None:
                    self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Goodbye):
            raise Unavailable(f"replica {self.replica} leaves: {message.message}")
        if message.epoch > self._epoch:
            raise Refused(f"replica {self.replica} knows epoch {message.epoch}, this primary is of {self._epoch}")
        if isinstance(message, Ack):
            self.acknowledged.take(message)
        elif isinstance(message, Promise):
            if message.number in self._promises:
                self._promises[message.number] = message.promised
                self._promised.unpark_all()
        elif isinstance(message, Resync | Search | Resume):
            if (feed := self._feeds.get(message.database)) is not None:
                self._take_wish(feed, message)
        elif isinstance(message, Wish):
            if self._downstream is not None:
                self._downstream.take(self, message)
        elif not isinstance(message, Heartbeat):
            raise Corrupt(f"replica {self.replica} sent a {type(message).__name__}, which only a primary may")

    def _take_wish(self, feed: Feed, message: Resync | Search | Resume) -> None:
        """What a replica wants of one database; a wish that a snapshot on its way has overtaken is none."""
        if isinstance(message, Resync):
            if feed.cursor is not None or feed.searching:
                self._resync(feed, message.reason)
        elif not feed.searching:
            return
        elif isinstance(message, Search):
            self._searches.add(feed, message)
        elif self._decide(feed, message.point) in (CatchUp.NOTHING, CatchUp.RECORDS):
            feed.searching = False
            feed.resync_since = None
            feed.accepted_from = message.point.txid
            self._send_after(feed, message.point.txid)
            position = str(message.point.position)
            log.info("replica_went_back", replica=self.replica, database=message.database, position=position)
        else:
            self._resync(feed, f"the log of {self._node} does not go on from {message.point.position}")

    def _resync(self, feed: Feed, reason: str) -> None:
        log.warning("replica_asks_snapshot", replica=self.replica, database=feed.database.name, reason=reason)
        self._ask_snapshot(feed)

    # -- records ---------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        gathered_at = 0.0
        while True:
            await self._wake.wait()
            # A lone commit goes out at once; in a burst each message carries what was committed since the last one.
            pause_s = gathered_at + GATHER_S - trio.current_time()
            if pause_s > 0 and not self._heartbeat_due:
                with trio.move_on_after(pause_s):
                    await self._no_pause.wait()
            gathered_at = trio.current_time()
            while self._dirty or self._heartbeat_due or self._messages:
                if self._messages:
                    await self._channel.send(self._take_messages())
                if self._heartbeat_due:
                    self._heartbeat_due = False
                    await self._channel.send(self._make_heartbeat())
                await self._one_round()

    async def _one_round(self) -> None:
        """One turn for each database that has something to send.

        What was to be said before a record was read goes before it: that a lock is lost is not overtaken by what others
        have committed since.
        """
        names = list(self._dirty)
        parts: list[bytes] = []
        size = 0
        began = time.perf_counter()
        for number, name in enumerate(names, 1):
            piece = self._next_piece(name)
            if piece:
                parts.append(records_head(self._epoch, name, len(piece)))
                parts.append(piece)
                size += len(piece)
            if parts and (size >= RECORDS_LIMIT_BYTES or len(parts) >= BATCH_PARTS or number == len(names)):
                if self._messages:
                    parts.insert(0, self._take_messages())
                await self._channel.send(*parts)
                parts.clear()
                size = 0
            if time.perf_counter() - began > TURN_S:
                await trio.lowlevel.checkpoint()
                began = time.perf_counter()
        if self._dirty:
            await trio.lowlevel.checkpoint()

    def _take_messages(self) -> bytes:
        messages, self._messages = self._messages, []
        return b"".join(map(encode, messages))

    def _next_piece(self, name: str) -> bytes:
        """The next bytes of a database's log, at most RECORDS_LIMIT_BYTES; it stays dirty when there are more."""
        since = self._dirty.pop(name)
        database = self._store.databases.get(name)
        feed = self._feeds.get(name)
        if database is None:
            return b""
        if feed is None:
            # Made after the connection was: the replica has nothing of it.
            self._begin(database, Point.ZERO)
            feed = self._feeds[name]
        cursor = feed.cursor
        if cursor is None or feed.failed:
            return b""
        try:
            data = cursor.read(RECORDS_LIMIT_BYTES)
        except Trimmed as error:
            log.warning("replica_too_far_behind", replica=self.replica, database=name, reason=error.message)
            self._ask_snapshot(feed)
            return b""
        except (LitereplicaError, OSError) as error:
            log.warning("log_unreadable", database=name, reason=str(error), then="the replica gets a snapshot")
            self._ask_snapshot(feed)
            return b""
        if data:
            feed.marks.add(cursor.txid, since)
            self._tips_due.add(name)
        if cursor.txid < database.position.txid:
            # At the end of the order: the others have their turn first.
            self._dirty[name] = since
        else:
            self._dirty.pop(name, None)
        return data

    def _make_heartbeat(self) -> bytes:
        tips = {}
        for name in self._tips_due:
            feed = self._feeds[name]
            database = feed.database
            if feed.cursor is not None and feed.cursor.txid == database.position.txid:
                tips[name] = Tip(database.position, database.timestamp_ms)
        self._tips_due.difference_update(tips)
        return encode(Heartbeat(self._epoch, time.time_ns() // 1_000_000, tips))
