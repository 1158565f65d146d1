"""A replica's connection to its primary, kept up for as long as the node follows it.

Knows where the primary is, when to try again, and how far behind this node is. Does not know what becomes of what is
received (receiver.py, store/), or who is primary.
"""

import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog
import trio

from litereplica.cluster.encoding import encode
from litereplica.cluster.framing import BUFFER_BYTES
from litereplica.cluster.messages import (
    GOODBYE_EPOCH,
    GOODBYE_NOT_PRIMARY,
    GOODBYE_REPLACED,
    Goodbye,
    Hello,
    Snapshot,
    SnapshotProgress,
    Tip,
    Welcome,
)
from litereplica.config.units import Address
from litereplica.errors import Corrupt, LitereplicaError, Refused, Unavailable
from litereplica.replication.channel import Channel
from litereplica.replication.lag import Marks
from litereplica.replication.lines import Upstream
from litereplica.replication.receiver import Dismissed, Receiver, unwritable
from litereplica.store.database import Database
from litereplica.store.diverged import forget_kept_logs
from litereplica.store.snapshot import FinishedSnapshot, SnapshotSink, resume_snapshots
from litereplica.store.store import Store

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_LAST_S: Final = 2.0
"""A primary that comes back is found within this time, and a dead one costs one connection attempt in it."""
NOT_PRIMARY_FIRST_S: Final = 0.05
NOT_PRIMARY_LAST_S: Final = 0.2
NOT_PRIMARY_FOR_S: Final = 5.0
"""A node that is said to be primary and is not yet will be in some milliseconds, or never: asked often for so long."""
REPLACED_PAUSE_S: Final = 10.0
"""After another node of this one's name took its place: two of them must not push each other out all the time."""
UNAPPLIED_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""Logged but not applied bytes of one database beyond which nothing is read: some seconds of applying."""
RESUME_BYTES: Final = UNAPPLIED_LIMIT_BYTES - 16 * 1024 * 1024
"""Reading goes on below this, so that it does not start and stop with each record."""


def never(epoch: int, hold_s: float) -> bool:  # noqa: ARG001  the form of a promise
    """Promise nothing."""
    return False


class _Backoff:
    """How long to wait before the next attempt."""

    __slots__ = ("_normal_s", "_quick_s", "_quick_until")

    def __init__(self) -> None:
        self.succeeded()

    def succeeded(self) -> None:
        """A connection has lasted: begin anew."""
        self._normal_s = BACKOFF_FIRST_S
        self._quick_s = NOT_PRIMARY_FIRST_S
        self._quick_until: float | None = None

    def next_s(self, code: str | None) -> float:
        """After a failure; ``code``: of the primary's Goodbye."""
        if code == GOODBYE_REPLACED:
            return REPLACED_PAUSE_S
        now = trio.current_time()
        if code == GOODBYE_NOT_PRIMARY:
            if self._quick_until is None:
                self._quick_until = now + NOT_PRIMARY_FOR_S
            if now < self._quick_until:
                pause_s = self._quick_s
                self._quick_s = min(2 * pause_s, NOT_PRIMARY_LAST_S)
                return pause_s
        pause_s = self._normal_s
        self._normal_s = min(2 * pause_s, BACKOFF_LAST_S)
        # Spread, so that the replicas of a primary that comes back do not all come at once.
        return pause_s * random.uniform(0.75, 1.25)  # noqa: S311 - nothing secret


class ReplicationClient:
    """Follows the primary at ``address`` until ``run`` is cancelled.

    ``install`` makes a finished snapshot the database's content and returns when the database is at its position,
    while readers may still use the old content. ``epoch`` is the highest that this node has ever seen.
    ``promise(epoch, hold_s)`` answers at once whether this node keeps from becoming primary for so long. ``upstream``
    is told of each connection, and of what the primary answers to it.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        address: Address,
        *,
        install: Callable[[FinishedSnapshot], Awaitable[None]],
        promise: Callable[[int, float], bool] = never,
        upstream: Upstream | None = None,
        epoch: int = 0,
        heartbeat_s: float = 1.0,
        timeout_s: float = 5.0,
        unapplied_limit_bytes: int = UNAPPLIED_LIMIT_BYTES,
    ) -> None:
        self.store = store
        self.address = address
        self.install = install
        self.promise = promise
        self.upstream = upstream
        self.heartbeat_s = heartbeat_s
        self.epoch = epoch
        self.primary: str | None = None
        self.sinks: dict[str, SnapshotSink] = {}
        # Databases whose history here is not yet the primary's.
        self.foreign: set[str] = set()
        self._node = node
        self._timeout_s = timeout_s
        self._limit_bytes = unapplied_limit_bytes
        self._receiver: Receiver | None = None
        self._last_contact: float | None = None
        # Added to this node's wall clock it is the primary's, less the time a message takes.
        self._clock_offset_ms = 0
        self._tips: dict[str, Tip] = {}
        self._marks: dict[str, Marks] = {}
        self._logged: dict[str, int] = {}
        # Bytes that came since the last mark.
        self._received: dict[str, int] = {}
        self._full: set[str] = set()
        self._damaged: dict[str, int] = {}
        self._last_problem = ""
        self._warned: set[str] = set()

    # -- what others ask -------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """The primary has welcomed this node and is being heard."""
        return self._receiver is not None

    @property
    def last_contact(self) -> float | None:
        """When something was last heard of the primary (time.monotonic); None before the first Welcome."""
        return self._last_contact

    @property
    def caught_up(self) -> bool:
        """Readers here see everything that the primary had when it welcomed this node, or more."""
        if self._last_contact is None or self.foreign:
            return False
        databases = self.store.databases
        # One whose first transaction was refused there is no database yet: nothing of it comes.
        return all(
            not tip.position.txid or (name in databases and databases[name].applied >= tip.position.txid)
            for name, tip in self._tips.items()
        )

    def lag_ms(self, name: str | None = None) -> int | None:
        """How far readers of a database (or of the one furthest behind) are behind the primary, in milliseconds.

        0 when everything that was received is applied and the primary is being heard; None before the first contact.
        """
        if self._last_contact is None:
            return None
        silent_s = time.monotonic() - self._last_contact
        # Silence is counted once a heartbeat is overdue: until then nothing new is what silence means.
        lag = int(silent_s * 1000) if silent_s > 2 * self.heartbeat_s or not self.connected else 0
        now_ms = self.now_ms()
        for each in (name,) if name is not None else self._tips.keys() | self._marks.keys():
            lag = max(lag, self._lag_of(each, now_ms))
        return lag

    def _lag_of(self, name: str, now_ms: int) -> int:
        marks = self._marks.get(name)
        since = marks.since if marks is not None else None
        if since is None:
            tip = self._tips.get(name)
            database = self.store.databases.get(name)
            if tip is None or not tip.position.txid or (database is not None and database.applied >= tip.position.txid):
                return 0
            since = tip.timestamp_ms
        return max(0, int(now_ms - since))

    def now_ms(self) -> int:
        """Milliseconds since 1970 on the primary's clock, as far as it is known."""
        return time.time_ns() // 1_000_000 + self._clock_offset_ms

    def resync(self, name: str, reason: str) -> None:
        """Ask the primary for a snapshot of a database, if it is heard; nothing when one is on its way already."""
        if self._receiver is not None:
            self._receiver.resync(name, reason)

    # -- the receiver's side ---------------------------------------------------------------------------------------

    def heard(self) -> None:
        """Bytes came from the primary."""
        self._last_contact = time.monotonic()

    def set_clock(self, timestamp_ms: int) -> None:
        """The primary's clock, in this instant."""
        self._clock_offset_ms = timestamp_ms - time.time_ns() // 1_000_000

    def count_received(self, name: str, size_bytes: int) -> None:
        """Log bytes of ``name`` are about to be taken."""
        self._received[name] = self._received.get(name, 0) + size_bytes

    def is_full(self) -> bool:
        """Too much of some database is logged but not applied."""
        return bool(self._full)

    def is_damaged_again(self, name: str) -> bool:
        """The record after the position of ``name`` came damaged, and did so on an earlier connection."""
        database = self.store.get(name)
        txid = 0 if database is None else database.position.txid
        again = self._damaged.get(name) == txid
        self._damaged[name] = txid
        return again

    def forget_marks(self, name: str) -> None:
        """What was received of ``name`` is about to be replaced as a whole."""
        self._marks.pop(name, None)
        self._full.discard(name)

    def new_sink(self, message: Snapshot) -> SnapshotSink:
        """A sink for a snapshot from its first page."""
        sink = SnapshotSink(self.store, message.database, SnapshotProgress(message.base, message.page_size, 1))
        begun = sink.begin(message)
        assert begun
        return sink

    def _changed(self, database: Database) -> None:
        """Count what is logged and not applied (a listener of the store)."""
        name = database.name
        marks = self._marks.get(name)
        if marks is None:
            marks = self._marks[name] = Marks()
        txid = database.position.txid
        if txid != self._logged.get(name):
            self._logged[name] = txid
            if txid > database.applied:
                marks.add(txid, database.timestamp_ms, self._received.pop(name, 0))
        marks.passed(database.applied)
        if marks.size_bytes > self._limit_bytes:
            self._full.add(name)
        elif name in self._full and marks.size_bytes <= min(RESUME_BYTES, self._limit_bytes):
            self._full.discard(name)
            if self._receiver is not None:
                self._receiver.resume()

    # -- the connection --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, follow, try again; ends only by cancellation."""
        self.sinks = await trio.to_thread.run_sync(resume_snapshots, self.store)
        self.store.listeners.append(self._changed)
        backoff = _Backoff()
        try:
            while True:
                began = trio.current_time()
                code = await self._attempt()
                if trio.current_time() - began > BACKOFF_LAST_S:
                    backoff.succeeded()
                await trio.sleep(backoff.next_s(code))
        finally:
            self.store.listeners.remove(self._changed)
            for sink in self.sinks.values():
                sink.close()

    async def _attempt(self) -> str | None:
        """Follow for as long as it goes; the answer is the code of the primary's Goodbye, if that was the end."""
        try:
            await self._follow()
        except LitereplicaError as error:
            self._report(error)
            return error.code if isinstance(error, Dismissed) else None
        except OSError as error:
            self._report(Unavailable(f"replication stopped: {error}"))
        return None

    def _report(self, error: LitereplicaError) -> None:
        """One line per problem, not one per attempt."""
        write = log.debug if error.message == self._last_problem else log.warning
        self._last_problem = error.message
        write("replication_interrupted", primary=str(self.address), reason=error.message, then="trying again")

    async def _follow(self) -> None:
        stream = await self._connect()
        async with stream:
            channel = Channel(stream, timeout_s=self._timeout_s, buffer_bytes=BUFFER_BYTES)
            welcome = await self._greet(channel)
            self._welcomed(welcome)
            try:
                # Before the first record of this primary: with it, this node seems to be as far as it is.
                await self.note_parted()
                await trio.to_thread.run_sync(forget_kept_logs, self.store)
            except OSError as error:
                raise unwritable(error) from error
            self._receiver = Receiver(self, channel, welcome)
            try:
                await self._receiver.run()
            finally:
                self._receiver = None
                # Settled in the last instant: the primary may be gone, and this node its successor.
                with trio.CancelScope(shield=True), contextlib.suppress(OSError):
                    await self.note_parted()

    async def _connect(self) -> trio.SocketStream:
        try:
            with trio.fail_after(self._timeout_s):
                return await trio.open_tcp_stream(self.address.host, self.address.port)
        except trio.TooSlowError:
            reason = f"no answer in {self._timeout_s:g} s"
        except OSError as error:
            cause = error.__cause__
            first = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
            reason = getattr(first, "strerror", None) or error.strerror or str(error)
        raise Unavailable(
            f"the primary cannot be reached at {self.address} ({reason}): is it running, and is this its replication "
            f"address (replication.advertise there; lease.static.primary.replication here)?"
        )

    async def _greet(self, channel: Channel) -> Welcome:
        databases = {name: each.point for name, each in self.store.databases.items() if each.position.txid}
        begun = {name: sink.progress for name, sink in self.sinks.items() if sink.progress.next_pgno > 1}
        await channel.send(encode(Hello(self._node, self.epoch, databases, begun)))
        with trio.move_on_after(self._timeout_s), channel.receiving():
            while True:
                await channel.receive()
                message = channel.next()
                if isinstance(message, Goodbye):
                    raise Dismissed(message)
                if isinstance(message, Welcome):
                    if message.epoch < self.epoch:
                        reason = (
                            f"{message.node} at {self.address} is of epoch {message.epoch}, this node knows epoch "
                            f"{self.epoch}: there is a newer primary"
                        )
                        await channel.send(encode(Goodbye(GOODBYE_EPOCH, reason, self.epoch)))
                        raise Refused(reason)
                    return message
                if message is not None:
                    raise Corrupt(f"a {type(message).__name__} came from {self.address} where a primary says Welcome")
        raise Unavailable(f"{self.address} did not answer in {self._timeout_s:g} s: is it a replication address?")

    async def note_parted(self) -> None:
        """Remember whether databases here are of another history than the primary's. Raises OSError."""
        parted = bool(self.foreign)
        if self.store.state.parted != parted:
            await trio.to_thread.run_sync(self.store.remember, lambda state: replace(state, parted=parted))

    def _welcomed(self, welcome: Welcome) -> None:
        self.epoch = welcome.epoch
        self.primary = welcome.node
        self._last_problem = ""
        self._tips = welcome.databases
        self.foreign = set(welcome.snapshots | welcome.diverged)
        self.heard()
        for name in set(self.sinks) - welcome.snapshots:
            # The primary sends records for it: what was begun is of no use.
            self.sinks.pop(name).remove()
        for name, database in self.store.databases.items():
            if name in welcome.databases or not database.exists or name in self._warned:
                continue
            if welcome.epoch <= database.epoch:
                self._warned.add(name)
                log.warning("database_unknown_to_primary", database=name, primary=welcome.node, then="it stays")
        log.info(
            "primary_connected", primary=welcome.node, address=str(self.address), epoch=welcome.epoch,
            databases=len(welcome.databases), snapshots=len(welcome.snapshots), diverged=len(welcome.diverged),
        )  # fmt: skip
