"""Replicas connect here.

Knows who is connected, refuses whom it must with a reason, and keeps what status shows. Does not know what a replica is
sent (sender.py).
"""

import time
from collections.abc import Callable
from typing import Final

import structlog
import trio

from litereplica.cluster.encoding import encode
from litereplica.cluster.framing import HttpSpoken
from litereplica.cluster.messages import (
    GOODBYE_EPOCH,
    GOODBYE_LIMIT,
    GOODBYE_MALFORMED,
    GOODBYE_NAME,
    GOODBYE_NOT_PRIMARY,
    GOODBYE_PROTOCOL,
    GOODBYE_REPLACED,
    Acknowledged,
    Goodbye,
    Hello,
)
from litereplica.errors import Corrupt, LitereplicaError, Refused, Unavailable
from litereplica.replication.channel import Channel, address_of
from litereplica.replication.lines import Downstream
from litereplica.replication.sender import Sender
from litereplica.store.store import Store

log = structlog.get_logger(__name__)

CONNECTIONS_LIMIT: Final = 256
"""Connections at once, greeted or not: each holds a small buffer, and at most one 1 MiB chunk of a snapshot."""
REMEMBERED_LIMIT: Final = 256
"""Replicas that status still shows after they left."""
REPLICA_BUFFER_BYTES: Final = 16 * 1024
"""A replica sends acknowledgements; only its Hello may be longer, and gets its own buffer."""
HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"this is litereplica's replication port; its HTTP interface is the port of http.listen\n"
)


class ReplicaState:
    """One replica as status shows it; ``last_heard`` is on time.monotonic's clock, ``address`` is host:port."""

    __slots__ = ("_channel", "_heard", "_sender", "address", "databases", "name")

    def __init__(self, name: str, sender: Sender, channel: Channel) -> None:
        self.name = name
        self.address = channel.address
        # What it has acknowledged, by database.
        self.databases: dict[str, Acknowledged] = sender.acknowledged.by_database
        self._sender: Sender | None = sender
        self._channel = channel
        self._heard = 0.0

    @property
    def connected(self) -> bool:
        """It is being sent what is committed."""
        return self._sender is not None

    @property
    def last_heard(self) -> float:
        """When its last bytes came."""
        if self._sender is None:
            return self._heard
        return time.monotonic() - (trio.current_time() - self._channel.last_heard)

    def lag_ms(self) -> int:
        """How long its readers have been missing a transaction; for one that left, how long it has not been heard."""
        now = time.monotonic()
        if self._sender is None:
            return int((now - self._heard) * 1000)
        return self._sender.lag_ms(now)

    def disconnect(self) -> None:
        """It has left."""
        self._heard = self.last_heard
        self._sender = None


class ReplicationServer:
    """The primary's replication port.

    ``epoch()`` and ``is_primary()`` are asked for each connection; ``saw_epoch`` is told of a replica that knows a
    higher one. A change while replicas are connected is told with ``dismiss_all``. ``downstream`` does what replicas
    ask.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        epoch: Callable[[], int],
        *,
        is_primary: Callable[[], bool] = lambda: True,
        saw_epoch: Callable[[int], None] = lambda _epoch: None,
        downstream: Downstream | None = None,
        heartbeat_s: float = 1.0,
        timeout_s: float = 5.0,
    ) -> None:
        self.replicas: dict[str, ReplicaState] = {}
        self._store = store
        self._node = node
        self._epoch = epoch
        self._is_primary = is_primary
        self._saw_epoch = saw_epoch
        self._downstream = downstream
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._senders: dict[str, Sender] = {}
        self._connections = 0
        self._numbers = 0
        self._asked = 0

    async def serve(
        self, host: str, port: int, *, task_status: "trio.TaskStatus[int]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; started with the port (the kernel's choice for 0). Raises Refused when it is taken."""
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise Refused(
                f"the replication port {host}:{port} cannot be used ({error.strerror or error}): "
                f"set replication.listen to a free address of this machine"
            ) from None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            bound: int = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._handle, listeners)
            task_status.started(bound)

    async def dismiss_all(self, code: str, reason: str) -> None:
        """End every connection, saying why: this node is no longer primary, or stops."""
        for sender in list(self._senders.values()):
            await sender.dismiss(Goodbye(code, reason, self._epoch()), Unavailable(reason))

    async def drain(self, limit_s: float) -> bool:
        """Wait until every connected replica has logged what is committed; False when ``limit_s`` was not enough."""
        with trio.move_on_after(limit_s):
            for sender in list(self._senders.values()):
                await sender.drained()
            return True
        return False

    async def acknowledged(self, node: str, limit_s: float) -> bool:
        """Whether the connected replica ``node`` has logged, within ``limit_s``, all that is committed in this instant.

        False too when it is not connected, or leaves.
        """
        sender = self._senders.get(node)
        if sender is not None:
            with trio.move_on_after(limit_s):
                return await sender.acknowledged.logged()
        return False

    async def ask_promises(self, nodes: frozenset[str], hold_s: float, limit_s: float) -> frozenset[str]:
        """Ask connected replicas to keep from becoming primary for ``hold_s``; who has promised within ``limit_s``."""
        self._asked += 1
        number = self._asked
        promised: set[str] = set()

        async def ask(name: str, sender: Sender) -> None:
            sender.ask(number, int(hold_s * 1000))
            if await sender.answered(number):
                promised.add(name)

        with trio.move_on_after(limit_s):
            async with trio.open_nursery() as nursery:
                for name in nodes & self._senders.keys():
                    nursery.start_soon(ask, name, self._senders[name])
        return frozenset(promised)

    async def _beat(self) -> None:
        """One timer for all replicas: an idle node wakes once per heartbeat, not once per replica."""
        while True:
            await trio.sleep(self._heartbeat_s)
            for sender in self._senders.values():
                sender.heartbeat()

    async def _handle(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        address = address_of(stream)
        channel = Channel(stream, timeout_s=self._timeout_s, buffer_bytes=REPLICA_BUFFER_BYTES)
        async with stream:
            try:
                hello = await self._greet(channel)
                if hello is not None:
                    await self._serve_replica(channel, hello)
            except LitereplicaError as error:
                # A node that is not the primary is asked often, for a moment, after each change.
                write = log.warning if self._is_primary() else log.debug
                write("replication_connection_refused", address=address, reason=error.message)
            finally:
                self._connections -= 1

    async def _greet(self, channel: Channel) -> Hello | None:
        """The Hello of a replica that may stay. Otherwise raises after saying why; None for one that said nothing."""
        if self._connections > CONNECTIONS_LIMIT:
            raise await self._refuse(channel, GOODBYE_LIMIT, f"more than {CONNECTIONS_LIMIT} connections")
        try:
            hello = await self._first_message(channel)
        except Unavailable:
            # A port check, or somebody who connects and waits: nothing was asked, nothing is logged as a problem.
            log.debug("replication_connection_silent", address=channel.address)
            return None
        except Refused as error:
            raise await self._refuse(channel, GOODBYE_PROTOCOL, error.message) from None
        except HttpSpoken:
            await self._try_send(channel, HTTP_ANSWER)
            raise
        except Corrupt as error:
            raise await self._refuse(channel, GOODBYE_MALFORMED, error.message) from None
        if hello.node == self._node:
            raise await self._refuse(
                channel, GOODBYE_NAME,
                f"both nodes are named {self._node!r}: give each node its own node.name, and check that the "
                f"primary's replication address is not this node's own",
            )  # fmt: skip
        if not self._is_primary():
            raise await self._refuse(channel, GOODBYE_NOT_PRIMARY, f"node {self._node} is not the primary")
        if hello.epoch > self._epoch():
            self._saw_epoch(hello.epoch)
            raise await self._refuse(
                channel, GOODBYE_EPOCH,
                f"replica {hello.node} knows epoch {hello.epoch}, primary {self._node} is of epoch {self._epoch()}: "
                f"there is or was a newer primary",
            )  # fmt: skip
        return hello

    async def _first_message(self, channel: Channel) -> Hello:
        with trio.move_on_after(self._timeout_s), channel.receiving():
            while True:
                await channel.receive()
                message = channel.next()
                if isinstance(message, Hello):
                    return message
                if message is not None:
                    raise Corrupt(f"a {type(message).__name__} came where a replica says Hello")
        raise Unavailable(f"no Hello came from {channel.address} in {self._timeout_s:g} s")

    async def _refuse(self, channel: Channel, code: str, reason: str) -> Refused:
        await self._try_send(channel, encode(Goodbye(code, reason, self._epoch())))
        return Refused(reason)

    async def _try_send(self, channel: Channel, data: bytes) -> None:
        try:
            await channel.send(data)
        except Unavailable:
            log.debug("replication_connection_lost", address=channel.address)

    async def _serve_replica(self, channel: Channel, hello: Hello) -> None:
        name = hello.node
        older = self._senders.get(name)
        if older is not None:
            reason = f"another connection came from a node named {name!r}: the newer one is served"
            log.warning("replica_replaced", replica=name, address=channel.address)
            await older.dismiss(Goodbye(GOODBYE_REPLACED, reason, self._epoch()), Refused(reason))
        self._numbers += 1
        sender = Sender(
            self._store, channel, hello, node=self._node, epoch=self._epoch(), key=f"replica {name} {self._numbers}",
            downstream=self._downstream,
        )  # fmt: skip
        self._senders[name] = sender
        self.replicas.pop(name, None)
        state = self.replicas[name] = ReplicaState(name, sender, channel)
        log.info("replica_connected", replica=name, address=channel.address, databases=len(hello.databases))
        try:
            await sender.run()
        except LitereplicaError as error:
            log.info("replica_disconnected", replica=name, address=channel.address, reason=error.message)
        finally:
            if self._senders.get(name) is sender:
                del self._senders[name]
            state.disconnect()
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        gone = [name for name, state in self.replicas.items() if not state.connected]
        for name in gone[: max(0, len(gone) - REMEMBERED_LIMIT)]:
            del self.replicas[name]
