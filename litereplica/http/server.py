"""Serving HTTP.

Knows when connections are accepted, and when they end. Does not know what happens on one (http.connection), routes
(http.app) or how the socket is bound (http.listener).
"""

import functools
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from starlette.applications import Starlette

from litereplica.http.connection import Connection

# A client that keeps an idle connection costs memory only for so long.
KEEP_ALIVE_S: Final = 75.0
# Requests still running at a stop are cut: a waiting client asks again, elsewhere.
GRACE_S: Final = 0.2


async def serve(app: Starlette, listener: socket.socket, until: Callable[[], Awaitable[None]]) -> None:
    """Serve until ``until`` returns. The socket is closed then.

    The library's own ``serve`` has no place for a connection of another kind.
    """
    config = Config()
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    context = WorkerContext(None)
    wrapped = ASGIWrapper(cast("Any", app))

    async def accepted(stream: trio.SocketStream) -> None:
        await Connection(wrapped, config, context, stream).run()

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            accepting.start_soon(
                functools.partial(trio.serve_listeners, accepted, listeners, handler_nursery=connections)
            )
            await until()
            accepting.cancel_scope.cancel()
        # Idle connections end.
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + GRACE_S
