"""One TCP connection between two nodes, as messages.

Knows bytes, deadlines and turns: what is sent never mixes, silence is noticed, a full socket stops only its sender.
Does not know what the messages say.

The socket is read and written directly (trio says when it is ready): a message costs one system call and no extra turn
of the scheduler, and received bytes go straight into the buffer that messages are decoded from.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Final

import trio

from litereplica.cluster.framing import MessageReader
from litereplica.cluster.messages import Message
from litereplica.errors import Unavailable

STALL_FACTOR: Final = 12
"""Deadlines that a full socket may last while its other end is heard: a replica that is busy applying reads nothing for
a while. After that many the connection is closed: the log is the queue, the replica goes on where it was."""
NOTSENT_BYTES: Final = 512 * 1024
"""Unsent bytes in the kernel beyond which a socket is full: enough to keep a line busy between two turns, little enough
that a record does not wait behind megabytes of another database's snapshot (tcp(7), TCP_NOTSENT_LOWAT)."""


def address_of(stream: trio.SocketStream) -> str:
    """Host and port of the other end, for people."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "unknown"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Channel:
    """Messages over ``stream``, which the caller closes. Errors of the connection are Unavailable."""

    __slots__ = (
        "_reader", "_scope", "_sending", "_socket", "_timeout_s", "_turns", "address", "last_heard", "last_sent",
    )  # fmt: skip

    def __init__(self, stream: trio.SocketStream, *, timeout_s: float, buffer_bytes: int) -> None:
        self._socket = stream.socket
        self.address = address_of(stream)
        self._reader = MessageReader(buffer_bytes)
        self._timeout_s = timeout_s
        self._scope = trio.CancelScope()
        self._sending = False
        self._turns = trio.lowlevel.ParkingLot()
        self.last_heard = self.last_sent = trio.current_time()
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)

    # -- receiving -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """The block in which ``receive`` is called: it ends with Unavailable when nothing is heard for the timeout."""
        with trio.CancelScope() as self._scope:
            yield
        if self._scope.cancelled_caught:
            raise Unavailable(f"nothing was heard from {self.address} for {self._timeout_s:g} s: is the network cut?")

    async def receive(self) -> None:
        """Wait for bytes and take what is there; ``next`` has the messages. Lets other tasks run."""
        now = trio.current_time()
        deadline = now + self._timeout_s
        # Moving a deadline has a price; a tenth of the timeout is precise enough.
        if not 0 <= deadline - self._scope.deadline < self._timeout_s * 0.1:
            self._scope.deadline = deadline
        room = self._reader.room()
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                count = os.readv(self._socket.fileno(), (room,))
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                raise self._closed() from None
            except OSError as error:
                raise self._lost(error) from None
            break
        if count == 0:
            raise Unavailable(f"{self.address} closed the connection")
        self.last_heard = trio.current_time()
        self._reader.received(count)

    def next(self) -> Message | None:
        """The next whole message of what was received. Raises Corrupt, Refused."""
        return self._reader.next()

    @property
    def understood(self) -> bool:
        """At least one message of ours has come."""
        return self._reader.started

    def hold(self) -> None:
        """No silence is counted until ``receive`` is called again: this end is busy."""
        self._scope.deadline = float("inf")

    # -- sending ---------------------------------------------------------------------------------------------------

    async def send(self, *parts: bytes | memoryview) -> None:
        """Send ``parts`` (one or several whole messages) as one run of bytes; waits while the socket is full.

        Does not let other tasks run unless it has to wait.
        """
        if self._sending:
            # Whoever sends hands its turn to the first who waits.
            await self._turns.park()
        self._sending = True
        try:
            total = sum(map(len, parts))
            sent = self._write(parts)
            if sent < total:
                await self._send_rest(parts, sent, total)
        finally:
            if self._turns:
                self._turns.unpark()
            else:
                self._sending = False
        self.last_sent = trio.current_time()

    async def _send_rest(self, parts: tuple[bytes | memoryview, ...], sent: int, total: int) -> None:
        while sent < total:
            await self._writable()
            rest = []
            skip = sent
            for part in parts:
                if skip < len(part):
                    rest.append(memoryview(part)[skip:] if skip else part)
                skip = max(0, skip - len(part))
            sent += self._write(rest)

    def _write(self, parts: "tuple[bytes | memoryview, ...] | list[bytes | memoryview]") -> int:
        try:
            # The descriptor is asked for each time: after a close it is -1, never somebody else's file.
            return os.writev(self._socket.fileno(), parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error) from None

    async def _writable(self) -> None:
        started = trio.current_time()
        while True:
            try:
                with trio.move_on_after(self._timeout_s):
                    await trio.lowlevel.wait_writable(self._socket)
                    return
            except trio.ClosedResourceError:
                raise self._closed() from None
            now = trio.current_time()
            if now - self.last_heard >= self._timeout_s or now - started >= STALL_FACTOR * self._timeout_s:
                raise Unavailable(f"{self.address} has taken no bytes for {now - started:.1f} s")

    def _closed(self) -> Unavailable:
        return Unavailable(f"the connection with {self.address} was closed by another task here")

    def _lost(self, error: OSError) -> Unavailable:
        return Unavailable(f"the connection with {self.address} was lost ({error.strerror})")
