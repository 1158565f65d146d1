"""Serving HTTP.

Knows the server library. Does not know routes (http.app) or sockets (http.listener).
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import hypercorn.trio
from hypercorn.config import Config
from starlette.applications import Starlette

# A client that keeps an idle connection costs memory only for so long.
KEEP_ALIVE_S: Final = 75.0
# Requests still running at a stop are cut: a waiting client asks again, elsewhere.
GRACE_S: Final = 0.2


async def serve(app: Starlette, listener: socket.socket, until: Callable[[], Awaitable[None]]) -> None:
    """Serve until ``until`` returns. The socket is closed then."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.graceful_timeout = GRACE_S
    config.shutdown_timeout = GRACE_S
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    await hypercorn.trio.serve(cast("Any", app), config, shutdown_trigger=cast("Any", until))
