"""What the proxy says about itself: for load balancers, and for Prometheus.

Knows what is to be well: its node answers, and the application takes connections. Does not know requests of clients.
"""

import asyncio
import contextlib
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from litereplica import __version__
from litereplica.config import ProxySettings
from litereplica.proxy.answers import Problem, document_answer
from litereplica.proxy.counts import Counts
from litereplica.proxy.local_node import LocalNode

OFF: Final = "off"
METHODS: Final = frozenset({"GET", "HEAD"})
# Load balancers ask every second or two; an application that is away is seen by the next of them.
FRESH_S: Final = 1.0


class Health:
    """``GET`` of its path: 200 or 503, for the code alone; below it ``/metrics``."""

    def __init__(self, settings: ProxySettings, node: str, local: LocalNode, counts: Counts) -> None:
        self._settings = settings
        self._node = node
        self._local = local
        self._counts = counts
        self._paths = () if settings.health == OFF else (settings.health, f"{settings.health}/metrics")
        self._answers = False
        self._looked_at = float("-inf")
        self.stopping = False

    def is_asked(self, request: web.BaseRequest) -> bool:
        """Whether a request is not for the application."""
        return request.path in self._paths

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Raises Problem."""
        if request.method not in METHODS:
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "ask with GET")
        if request.path != self._settings.health:
            content, kind = self._counts.text(request.headers.get("Accept", ""))
            return web.Response(body=content, headers={"Content-Type": kind})
        answers = await self._application_answers()
        well = self._local.live and answers and not self.stopping
        document = {
            "ready": well,
            "node": self._node,
            "node_answers": self._local.live,
            "application_answers": answers,
            "stopping": self.stopping,
            "role": "primary" if self._local.is_primary else "replica",
            "primary": self._local.primary,
            "version": __version__,
        }
        return document_answer(
            document, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, {"Cache-Control": "no-store"}
        )

    async def _application_answers(self) -> bool:
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked_at >= FRESH_S:
            self._looked_at = loop.time()
            self._answers = await _takes_connections(self._settings.target, self._settings.timeouts.connect_s)
        return self._answers


async def _takes_connections(url: str, limit_s: float) -> bool:
    target = urlsplit(url)
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(target.hostname, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
