"""The replica's end of one connection.

Knows what may come from a primary and what becomes of it: records into the log, a snapshot into its sink, and what is
acknowledged. Does not know how a connection is made or when to try again (client.py), nor how things are said
(replies.py).
"""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog
import trio

from litereplica.cluster.messages import (
    Ask,
    Found,
    Goodbye,
    HaltState,
    Heartbeat,
    Message,
    Outcome,
    Pages,
    Promise,
    Records,
    Resync,
    Snapshot,
    SnapshotEnd,
    Welcome,
)
from litereplica.errors import Corrupt, LitereplicaError, Refused, Unavailable
from litereplica.replication.channel import Channel
from litereplica.replication.reconcile import Reconciler
from litereplica.replication.replies import Replies
from litereplica.replication.wake import Wake
from litereplica.store.database import Database
from litereplica.store.diverged import forget_log, logs_set_aside
from litereplica.store.receive import Diverged, LogReceiver
from litereplica.store.snapshot import FinishedSnapshot, SnapshotSink

if TYPE_CHECKING:
    from litereplica.replication.client import ReplicationClient

log = structlog.get_logger(__name__)

RESYNC_PAUSE_S: Final = 5.0
"""Before a snapshot that did not fit together is asked for again."""
KEEPING_WAIT_S: Final = 5.0
"""How long no page is taken while what this node may have alone is kept. A disk without room for that says so within
milliseconds; a copy takes as long as it takes, and a primary closes a connection that takes nothing for a minute."""
INLINE_BYTES: Final = 64 * 1024
"""Pages up to this size are written in place: a worker thread costs more."""


class Dismissed(Refused):
    """The primary has said Goodbye; ``code`` says why (cluster.messages.GOODBYE_*)."""

    def __init__(self, goodbye: Goodbye) -> None:
        super().__init__(f"the primary refuses this node ({goodbye.code}): {goodbye.message}")
        self.code = goodbye.code


def unwritable(error: OSError) -> Unavailable:
    """What a disk that refuses means to replication."""
    return Unavailable(f"the data directory cannot be written ({error}): free some room on its disk")


class Receiver:
    """One connection, from its Welcome on."""

    def __init__(self, client: "ReplicationClient", channel: Channel, welcome: Welcome) -> None:
        self.reason: LitereplicaError | None = None
        self._client = client
        self._store = client.store
        self._channel = channel
        self._epoch = welcome.epoch
        self._receivers: dict[str, LogReceiver] = {}
        # Databases whose history here is not the primary's: not acknowledged until their snapshot is installed.
        self._foreign = client.foreign
        # Of those, the ones that are replaced although what is here is the primary's history: this node fell behind.
        self._confirmed: set[str] = set()
        # Those whose history here is known not to be the primary's.
        self._parted: set[str] = set()
        self._reconciler = Reconciler(self, client, welcome)
        # Of those, the ones that are ignored until the snapshot that was asked for begins.
        self._awaited: set[str] = set()
        self._sinks: dict[str, SnapshotSink] = {}
        self._saving = False
        # Snapshots of which a save has failed.
        self._unsaved: list[str] = []
        self._saved = trio.lowlevel.ParkingLot()
        self._replies = Replies(
            client.store, channel, welcome.epoch, hidden=self._foreign, heartbeat_s=client.heartbeat_s,
            now_ms=client.now_ms,
        )  # fmt: skip
        self._resume = Wake()
        self._parting = Wake()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Receive until the connection ends, which raises why (a LitereplicaError)."""
        store, upstream = self._store, self._client.upstream
        store.listeners.append(self._replies.changed)
        try:
            self._replies.begin()
            if upstream is not None:
                upstream.connected(self._replies)
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._guard, self._read)
                    self._nursery.start_soon(self._guard, self._replies.run)
                    self._nursery.start_soon(self._guard, self._reconciler.run)
                    self._nursery.start_soon(self._guard, self._note)
        finally:
            store.listeners.remove(self._replies.changed)
            if upstream is not None:
                upstream.disconnected(self.reason.message if self.reason is not None else "the connection ended")
            for name in list(self._receivers):
                self._drop_receiver(name)
            for name in self._unsaved:
                with contextlib.suppress(OSError):  # then it goes on from what was saved before
                    self._forget_sink(name)
        raise self.reason or Unavailable("the connection with the primary ended")

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except LitereplicaError as error:
            self._close(error)
        except OSError as error:
            self._close(unwritable(error))

    async def _note(self) -> None:
        while True:
            await self._parting.wait()
            await self._client.note_parted()

    def _close(self, reason: LitereplicaError) -> None:
        self.reason = self.reason or reason
        self._scope.cancel()

    def resync(self, name: str, reason: str) -> None:
        """Have a database replaced by the primary's, unless that is under way."""
        if name not in self._foreign:
            self._ask_snapshot(name, reason)
            self._confirmed.add(name)

    def resume(self) -> None:
        """Something was applied: reading may go on."""
        self._resume.set()

    def say(self, message: Message) -> None:
        """Send a message soon."""
        self._replies.say(message)

    def superseded(self, name: str) -> None:
        """The log of a database may go with a snapshot: all of it is the primary's too, or kept."""
        self._confirmed.add(name)
        self._parted.add(name)

    def hide(self, name: str) -> None:
        """Ignore what comes for a database until it is ``settled``."""
        self._part(name)
        self._awaited.add(name)

    def settled(self, database: Database) -> None:
        """The history of a database is the primary's again."""
        self._foreign.discard(database.name)
        self._awaited.discard(database.name)
        self._parted.discard(database.name)
        self._parting.set()
        self._replies.changed(database)

    def _part(self, name: str) -> None:
        self._foreign.add(name)
        self._parting.set()
        if self._client.upstream is not None:
            self._client.upstream.parted(name)

    # -- receiving -------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        channel = self._channel
        with channel.receiving():
            while True:
                while (message := channel.next()) is not None:
                    await self._take(message)
                while self._client.is_full():
                    channel.hold()
                    await self._resume.wait()
                await channel.receive()
                self._client.heard()

    async def _take(self, message: Message) -> None:
        if message.epoch != self._epoch:
            raise Refused(f"a message of epoch {message.epoch} came from a primary of epoch {self._epoch}")
        if type(message) is Records:
            await self._records(message)
        elif type(message) is Heartbeat:
            self._heartbeat(message)
        elif type(message) is Pages:
            await self._pages(message)
        elif type(message) is Snapshot:
            await self._snapshot(message)
        elif type(message) is SnapshotEnd:
            await self._snapshot_end(message)
        elif type(message) is Found:
            self._reconciler.found(message)
        elif type(message) is Ask:
            promised = self._client.promise(message.epoch, message.hold_ms / 1000)
            self.say(Promise(self._epoch, message.number, promised))
        elif isinstance(message, Outcome | HaltState):
            if self._client.upstream is not None:
                self._client.upstream.told(message)
        elif type(message) is Goodbye:
            raise Dismissed(message)
        else:
            raise Corrupt(f"the primary sent a {type(message).__name__}, which only a replica may")

    async def _records(self, message: Records) -> None:
        name = message.database
        if name in self._awaited:
            return
        sink = self._sinks.get(name)
        if sink is not None:
            try:
                sink.feed(message.data, message.epoch)
            except (Corrupt, Refused) as error:
                await self._drop_sink(name)
                self._ask_snapshot(name, error.message, pause_s=RESYNC_PAUSE_S)
            return
        receiver = self._receivers.get(name)
        if receiver is None:
            database = self._store.get(name) or self._store.create(name)
            receiver = self._receivers[name] = LogReceiver(database)
        self._client.count_received(name, len(message.data))
        try:
            receiver.feed(message.data, message.epoch)
        except Diverged as error:
            self._parted.add(name)
            self._ask_snapshot(name, error.message)
        except Corrupt as error:
            # Damage on the way is repaired by sending again; damage that stays needs another way.
            if self._client.is_damaged_again(name):
                self._ask_snapshot(name, error.message)
                return
            raise

    def _ask_snapshot(self, name: str, reason: str, pause_s: float = 0.0) -> None:
        """Follow the other databases; this one needs a snapshot."""
        log.warning("snapshot_needed", database=name, reason=reason)
        self._drop_receiver(name)
        self.hide(name)
        self._replies.forget(name)
        self._confirmed.discard(name)
        resync = Resync(self._epoch, name, reason)
        if pause_s:
            assert self._nursery is not None
            self._nursery.start_soon(self._resync_later, resync, pause_s)
        else:
            self.say(resync)

    def _drop_receiver(self, name: str) -> None:
        """Nothing of a record that is not whole stays in the log, or that takes nothing more."""
        if (receiver := self._receivers.pop(name, None)) is not None:
            with contextlib.suppress(OSError):
                receiver.abort()

    async def _resync_later(self, resync: Resync, pause_s: float) -> None:
        await trio.sleep(pause_s)
        self.say(resync)

    def _heartbeat(self, message: Heartbeat) -> None:
        self._client.set_clock(message.timestamp_ms)
        for name, tip in message.databases.items():
            database = self._store.get(name)
            if database is None or name in self._foreign:
                continue
            if database.position != tip.position:
                receiver = self._receivers.pop(name, None)
                if receiver is not None:
                    receiver.abort()
                self._parted.add(name)
                self._ask_snapshot(name, f"the primary is at {tip.position}, this node at {database.position}")
        self._replies.answer_heartbeat()

    # -- snapshots -------------------------------------------------------------------------------------------------

    async def _snapshot(self, message: Snapshot) -> None:
        name = message.database
        receiver = self._receivers.pop(name, None)
        if receiver is not None:
            receiver.abort()
        if name not in self._foreign:
            # Nobody asked for it: the primary's log no longer goes on from where this node is.
            self._confirmed.add(name)
        self._part(name)
        self._awaited.discard(name)
        self._replies.forget(name)
        await self._begin_keeping(name)
        sinks = self._client.sinks
        sink = sinks.get(name)
        if sink is None or not sink.begin(message):
            if sink is not None:
                await self._drop_sink(name)
            if message.first_pgno != 1:
                raise Corrupt(f"a snapshot of {name} begins at page {message.first_pgno}, which this node cannot join")
            sink = sinks[name] = self._client.new_sink(message)
        self._sinks[name] = sink
        log.info(
            "snapshot_begins", database=name, base=str(message.base), pages=message.page_count,
            first_pgno=message.first_pgno,
        )  # fmt: skip

    async def _begin_keeping(self, name: str) -> None:
        """Keep what is here alone before the pages come: for lack of room none of them shall come in vain.

        The install sees to it again, and finds what was kept here.
        """
        database = self._store.get(name)
        if database is None or name in self._confirmed:
            return
        known, kept = database, trio.Event()

        async def keep() -> None:
            await self._reconciler.keep_own(known)
            kept.set()

        assert self._nursery is not None
        self._nursery.start_soon(self._guard, keep)
        self._channel.hold()
        with trio.move_on_after(KEEPING_WAIT_S):
            await kept.wait()

    async def _pages(self, message: Pages) -> None:
        name = message.database
        if name in self._awaited:
            return
        sink = self._sinks.get(name)
        if sink is None:
            raise Corrupt(f"pages of {name} came without a snapshot")
        if len(message.data) <= INLINE_BYTES:
            sink.write_pages(message.first_pgno, message.data)
            return
        self._channel.hold()
        await trio.to_thread.run_sync(sink.write_pages, message.first_pgno, message.data)
        if sink.save_due and not self._saving:
            self._saving = True
            assert self._nursery is not None
            self._nursery.start_soon(self._guard, self._saver(sink))

    def _saver(self, sink: SnapshotSink) -> Callable[[], Awaitable[None]]:
        """Make what has come durable, beside the reading of more."""
        write = sink.save()

        async def save() -> None:
            try:
                await trio.to_thread.run_sync(write)
            except OSError:
                # What the disk has of the pages is unknown now (fsync(2)): begin anew, once nobody writes any more.
                self._unsaved.append(sink.database)
                raise
            finally:
                self._saving = False
                self._saved.unpark_all()

        return save

    async def _snapshot_end(self, message: SnapshotEnd) -> None:
        name = message.database
        if name in self._awaited:
            return
        sink = self._sinks.get(name)
        if sink is None:
            raise Corrupt(f"the end of a snapshot of {name} came without its beginning")
        self._channel.hold()
        while self._saving:
            await self._saved.park()
        try:
            finished = await trio.to_thread.run_sync(sink.finish, message)
            await self._install(finished)
        except Corrupt as error:
            self._ask_snapshot(name, error.message, pause_s=RESYNC_PAUSE_S)
        finally:
            # Its files are gone or closed, whatever came of it.
            self._forget_sink(name)

    async def _install(self, finished: FinishedSnapshot) -> None:
        name = finished.database
        database = self._store.get(name)
        if database is not None and name not in self._confirmed and await self._reconciler.keep_own(database):
            self.superseded(name)
        self._client.forget_marks(name)
        before = logs_set_aside(self._store, name)
        try:
            await self._client.install(replace(finished, apart=self._may_mislead(name)))
        finally:
            database = self._store.get(name)
            if name in self._confirmed and database is not None and database.position == finished.position:
                # The primary had all of it, and went on from there: nothing is lost with it.
                for each in logs_set_aside(self._store, name) - before:
                    forget_log(self._store.disk, each)
        assert database is not None
        assert database.position == finished.position, (database.position, finished.position)
        log.info("snapshot_installed", database=name, position=str(finished.position), pages=finished.page_count)
        self._confirmed.discard(name)
        self.settled(database)

    def _may_mislead(self, name: str) -> bool:
        """Whether what a snapshot replaces may be of another history: nobody knows what its lost part did.

        One epoch has one history. Where the primary's log does not go back to what this node has, nobody can compare.
        """
        if name in self._parted or name in self._confirmed:
            return name in self._parted
        database = self._store.get(name)
        return database is not None and database.epoch != self._epoch

    async def _drop_sink(self, name: str) -> None:
        """For who reads, and so does not write pages: not while a thread saves those of before."""
        while self._saving:
            await self._saved.park()
        self._forget_sink(name)

    def _forget_sink(self, name: str) -> None:
        self._sinks.pop(name, None)
        sink = self._client.sinks.pop(name, None)
        if sink is not None:
            sink.remove()
