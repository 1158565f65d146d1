"""What a replica says on one connection.

Knows turns: acknowledgements and heartbeats first, then messages, then one piece of a parcel, so that a long
transaction on its way to the primary holds nothing up. Does not know what is received (receiver.py).
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import trio

from litereplica.cluster.encoding import encode
from litereplica.cluster.messages import Ack, Acknowledged, Heartbeat, Message
from litereplica.replication.channel import Channel
from litereplica.replication.wake import Wake
from litereplica.store.database import Database
from litereplica.store.store import Store

LAZY_S: Final = 0.02
"""Acknowledgements are this far apart when they say of a database no more than what was applied, or that this node has
what it has made itself: nothing waits for those, and each wakes the primary. They go along with what is said sooner."""


class Replies:
    """``hidden``: databases whose history here is not the primary's (the caller's set); nothing is said of them."""

    def __init__(
        self,
        store: Store,
        channel: Channel,
        epoch: int,
        *,
        hidden: set[str],
        heartbeat_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        self.epoch = epoch
        self._store = store
        self._channel = channel
        self._hidden = hidden
        self._heartbeat_s = heartbeat_s
        self._now_ms = now_ms
        self._logged: dict[str, int] = {}
        self._ack_due: set[str] = set()
        self._ack_at = 0.0
        self._messages: list[Message] = []
        self._parcels: deque[Iterator[bytes]] = deque()
        self._heartbeat_due = False
        self._wake = Wake()

    def begin(self) -> None:
        """Acknowledge everything that is here."""
        for name, database in self._store.databases.items():
            if name not in self._hidden:
                self._ack_due.add(name)
                self._logged[name] = database.position.txid
        if self._ack_due:
            self._wake.set()

    def changed(self, database: Database) -> None:
        """A position or an applied TXID changed here (a listener of the store)."""
        name = database.name
        if name in self._hidden:
            return
        self._ack_due.add(name)
        txid = database.position.txid
        is_lazy = txid in (self._logged.get(name), database.own_txid)
        self._logged[name] = txid
        if not is_lazy or trio.current_time() >= self._ack_at:
            self._wake.set()

    def say(self, message: Message) -> None:
        """Send a message soon."""
        self._messages.append(message)
        self._wake.set()

    def send(self, parcel: Iterator[bytes]) -> None:
        """Send whole messages, one a turn; those of several parcels alternate."""
        self._parcels.append(parcel)
        self._wake.set()

    def forget(self, name: str) -> None:
        """Nothing is due of a database that is hidden now."""
        self._ack_due.discard(name)

    def answer_heartbeat(self) -> None:
        """The primary was heard, and waits to hear this node."""
        self._heartbeat_due = True
        self._wake.set()

    async def run(self) -> None:
        """Say what there is, for ever."""
        channel = self._channel
        while True:
            # The primary's heartbeats are answered, so this deadline is only met when none come through.
            deadline = channel.last_sent + self._heartbeat_s * 1.25
            if self._ack_due:
                deadline = min(deadline, self._ack_at)
            if not self._parcels:
                with trio.CancelScope(deadline=deadline):
                    await self._wake.wait()
            else:
                await trio.lowlevel.checkpoint()
            parts = [encode(message) for message in self._messages]
            self._messages.clear()
            if self._ack_due:
                parts.append(self._make_ack())
            elif self._heartbeat_due or trio.current_time() - channel.last_sent >= self._heartbeat_s:
                parts.append(encode(Heartbeat(self.epoch, self._now_ms())))
            self._heartbeat_due = False
            if self._parcels:
                parts += self._next_piece()
            if parts:
                await channel.send(*parts)

    def _next_piece(self) -> list[bytes]:
        parcel = self._parcels.popleft()
        piece = next(parcel, None)
        if piece is None:
            return []
        self._parcels.append(parcel)
        return [piece]

    def _make_ack(self) -> bytes:
        databases = {}
        for name in self._ack_due:
            database = self._store.databases.get(name)
            if database is not None and name not in self._hidden:
                databases[name] = Acknowledged(database.position.txid, min(database.applied, database.position.txid))
        self._ack_due.clear()
        self._ack_at = trio.current_time() + LAZY_S
        return encode(Ack(self.epoch, databases))
