"""One connection of HTTP/1.1, whatever its client does.

Knows the server library's parts, and what they leave open: their errors would end the node, and a client that does not
read would keep it from stopping. Does not know who accepts connections (http.server), or routes.
"""

import contextlib
import struct
from collections.abc import Awaitable, Callable
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, ConnectionState, Scope
from hypercorn.utils import parse_socket_addr
from starlette.requests import ClientDisconnect

log = structlog.get_logger()

# A client that takes nothing for so long is gone, or useless: as long as it is here, a listener's place is taken.
SEND_LIMIT_S: Final = 30.0
# Or the connection is being closed at this moment.
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)
# What is closed with it throws away what the client has not taken yet: else the kernel would keep that.
_AT_ONCE: Final = struct.pack("ii", 1, 0)


class Connection(TCPServer):
    """Ends with its client, with its own errors, when its client does not read, or when it is cancelled.

    The library ends a connection for an OSError alone, and sends in a scope that no cancellation reaches.
    """

    def __init__(self, app: AppWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        self._socket = stream.socket
        # Cancelled with the end of the connection: the library would wait for ever to read on behind an answer.
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        """Serve. The caller closes the stream, as ``trio.serve_listeners`` does."""
        client = None
        try:
            client = parse_socket_addr(self._socket.family, self._socket.getpeername())
            await self._serve(client)
        except* OSError:
            pass  # the client is gone
        except* Exception as group:  # noqa: BLE001  one client's must not be the node's
            host, port = client or ("", 0)
            log.warning("http_connection_failed", client=f"{host}:{port}", reason=_reason(group))

    async def _serve(self, client: tuple[str, int] | None) -> None:
        server = parse_socket_addr(self._socket.family, self._socket.getsockname())
        try:
            async with _Requests() as requests:
                self._task_group = requests
                # In the place of the library's wrapper, which changes over to HTTP/2 when a client wants it.
                self.protocol = _Http1(  # type: ignore[assignment]
                    self.app,
                    self.config,
                    self.context,
                    requests,
                    ConnectionState(self.state),
                    False,  # noqa: FBT003  no TLS
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(requests, self._idle_timeout)
                with self._reading:
                    await self._read_data()
                self._reading.cancel()
                # Routes hear of it, and nobody waits for the rest of the time that the client could have been idle.
                await self.protocol.handle(Closed())
                await self.idle_task.stop()
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """Send, close, or begin or end to be idle."""
        if isinstance(event, RawData):
            async with self.send_lock:
                await self._send(event.data)
        elif isinstance(event, Closed):
            self._reading.cancel()
            await super().protocol_send(event)
        elif not self._reading.cancel_called:
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        try:
            with trio.fail_after(SEND_LIMIT_S):
                await self.stream.send_all(data)
        except _GONE:
            pass
        except trio.TooSlowError:
            self._abort()
        except trio.Cancelled:
            self._abort()
            raise
        else:
            return
        self._reading.cancel()
        await self.protocol.handle(Closed())

    def _abort(self) -> None:
        """Half of an answer may be out: nothing can follow it."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(SOL_SOCKET, SO_LINGER, _AT_ONCE)
        self._socket.close()


class _Http1(H11Protocol):
    """Without what the routes have no use for: HTTP/2 and WebSockets, which the library has no switch for."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay."""

    async def _create_stream(self, request: h11.Request) -> None:
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        plain = h11.Request(
            method=request.method, headers=headers, target=request.target, http_version=request.http_version
        )
        await super()._create_stream(plain)


class _Requests(TaskGroup):
    """The tasks of one connection.

    The library's would wait for ever to hand a body to a route that has ended without reading it.
    """

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start to answer a request; returns what hands its body over."""
        put, take = trio.open_memory_channel[ASGIReceiveEvent](config.max_app_queue_size)

        async def hand_over(event: ASGIReceiveEvent) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if event["type"] == "http.disconnect":
                    _tell(put, take, event)
                else:
                    await put.send(event)

        self.spawn(_answer, app, scope, take, send)
        return hand_over


def _tell(
    put: trio.MemorySendChannel[ASGIReceiveEvent],
    take: trio.MemoryReceiveChannel[ASGIReceiveEvent],
    event: ASGIReceiveEvent,
) -> None:
    """Without waiting: it may be the route's own sending that found the client gone."""
    try:
        put.send_nowait(event)
    except trio.WouldBlock:
        # A body that it has not read so far is of no use to it now.
        with contextlib.suppress(trio.WouldBlock):
            while True:
                take.receive_nowait()
        put.send_nowait(event)


async def _answer(
    app: AppWrapper,
    scope: Any,
    take: trio.MemoryReceiveChannel[ASGIReceiveEvent],
    send: Callable[[ASGISendEvent | None], Awaitable[None]],
) -> None:
    try:
        with take:
            await app(scope, take.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except ClientDisconnect:
        pass  # in the middle of its question
    except Exception as error:
        # A route's bug: whoever asked has been told, or sees an answer break off.
        log.exception("http_request_failed", request=f"{scope['method']} {scope['path']}", exc_info=error)
    # An answer that is not whole is made one here, or the connection ends.
    await send(None)


def _reason(error: BaseException) -> str:
    """The first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
