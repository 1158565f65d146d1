"""The proxy's process: its socket, its event loop, and its end.

Knows how everything is made and unmade. Does not know what becomes of a request (proxy.handler).
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from litereplica.config import ProxySettings
from litereplica.descriptors import raise_descriptor_limit
from litereplica.proxy.catch_up import CatchUp
from litereplica.proxy.counts import Counts
from litereplica.proxy.handler import Handler, Parts
from litereplica.proxy.health import Health
from litereplica.proxy.local_node import LocalNode
from litereplica.proxy.node_api import NodeApi
from litereplica.proxy.positions import MountPositions
from litereplica.proxy.primary import Primaries
from litereplica.proxy.upstream import LARGEST_FIELD_BYTES, LARGEST_LINE_BYTES, READ_BYTES, Upstream, make_session

log = structlog.get_logger()

# A client that keeps an idle connection, or does not finish its first header, costs memory only for so long.
KEEP_ALIVE_S: Final = 75.0
# What a client still sends after its answer is read for so long, so that it sees the answer and not a reset.
LINGER_S: Final = 5.0
# The library reports every request that is none with a stack; what is wrong in here the handler reports itself.
QUIET: Final = logging.getLogger("litereplica.proxy.protocol")
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the proxy knows of its node: its name, the URL of its HTTP interface, and its mount."""

    node: str
    url: str
    mount: Path


def run_proxy(settings: ProxySettings, around: Surroundings, listener: socket.socket, *, supervised: bool) -> int:
    """Serve until told to stop; the exit code. ``supervised``: also until standard input ends."""
    QUIET.setLevel(logging.CRITICAL + 1)
    raise_descriptor_limit()
    asyncio.run(_serve(settings, around, listener, supervised=supervised))
    return 0


async def _serve(settings: ProxySettings, around: Surroundings, listener: socket.socket, *, supervised: bool) -> None:
    stop = asyncio.Event()
    _listen_to_signals(stop)
    if supervised:
        await _end_with_parent(stop)
    async with _parts(settings, around) as parts:
        server = web.Server(
            Handler(parts),
            handler_cancellation=True,
            access_log=None,
            logger=QUIET,
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=LINGER_S,
            max_line_size=LARGEST_LINE_BYTES,
            max_field_size=LARGEST_FIELD_BYTES,
            read_bufsize=READ_BYTES,
        )
        runner = web.ServerRunner(server, shutdown_timeout=settings.timeouts.stop_s, handle_signals=False)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            address = listener.getsockname()
            log.info("proxy_ready", node=around.node, listen=f"{address[0]}:{address[1]}", target=settings.target)
            await stop.wait()
            parts.health.stopping = True
            log.info("proxy_stopping", requests=parts.counts.under_way)
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def _parts(settings: ProxySettings, around: Surroundings) -> AsyncIterator[Parts]:
    """Everything that handles requests, and the task that listens to the node."""
    session = make_session(settings.timeouts)
    local = LocalNode(session, around.url, settings.databases)
    api = NodeApi(session)
    primaries = Primaries(local, api)
    positions = MountPositions(around.mount, settings.databases, api, around.url)
    counts = Counts()
    listening = asyncio.create_task(local.run())
    # Without it the task could end with a bug and nobody would see.
    listening.add_done_callback(_must_not_end)
    try:
        yield Parts(
            settings=settings,
            node=around.node,
            local=local,
            primaries=primaries,
            catch_up=CatchUp(local, api, primaries, settings.wait_s),
            positions=positions,
            upstream=Upstream(session, settings.timeouts),
            counts=counts,
            health=Health(settings, around.node, local, counts),
        )
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        positions.close()
        await session.close()


def _must_not_end(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("proxy_failed", exc_info=task.exception())
        os._exit(1)


def _listen_to_signals(stop: asyncio.Event) -> None:
    """First SIGTERM or SIGINT: finish what is under way; second: leave at once."""

    def heard() -> None:
        if stop.is_set():
            os._exit(EXIT_INTERRUPTED)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard)


async def _end_with_parent(stop: asyncio.Event) -> None:
    """Stop when standard input ends: whoever started this process is gone."""

    class Watch(asyncio.Protocol):
        def eof_received(self) -> None:
            stop.set()

        def connection_lost(self, _: Exception | None) -> None:
            stop.set()

    await asyncio.get_running_loop().connect_read_pipe(Watch, sys.stdin)
