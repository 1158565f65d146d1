"""The web application of a node, behind its proxy: what a request asks for it does with SQLite on its own mount.

Run as ``python -m jepsen.application PORT MOUNT NODE``. A request is an order of workloads.base.Order as JSON, with
``workload`` and ``tag``; POST is a call that is committed, ``GET /?order=…`` one that only reads. The answer is that of
client.py with ``node``. Knows nothing of proxies, positions and primaries, as any such application.
"""

import asyncio
import json
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from jepsen.client import Client
from jepsen.session import Place, Session
from jepsen.workloads import WORKLOADS

THREADS: Final = 8
"""As many as there are clients that may ask one node: what hangs in a mount must not keep the others from it."""


class Application:
    """Each thread has connections of its own."""

    def __init__(self, node: str, mount: Path) -> None:
        self._node = node
        self._places = {node: Place(mount, "")}
        self._threads = ThreadPoolExecutor(THREADS)
        self._own = threading.local()

    async def write(self, request: web.Request) -> web.Response:
        return await self._do(await request.json())

    async def read(self, request: web.Request) -> web.Response:
        return await self._do(json.loads(request.query["order"]))

    async def _do(self, order: dict[str, Any]) -> web.Response:
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._obey, order)
        return web.json_response({**answer, "node": self._node})

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        workload, tag = order.pop("workload"), order.pop("tag")
        clients: dict[tuple[str, str], Client] = self._own.__dict__.setdefault("clients", {})
        client = clients.get((workload, tag))
        if client is None:
            numbers = random.Random(f"{tag} {threading.get_ident()}")  # noqa: S311  chance, no secret
            client = clients[workload, tag] = Client(WORKLOADS[workload](tag), Session(self._places), numbers)
        return client.obey(order | {"node": self._node, "primary": self._node})


def main() -> None:
    """Until it is killed."""
    port, mount, node = sys.argv[1:]
    one = Application(node, Path(mount))
    application = web.Application()
    application.router.add_get("/", one.read)
    application.router.add_post("/", one.write)
    web.run_app(application, host="127.0.0.1", port=int(port), print=None, access_log=None)


if __name__ == "__main__":
    main()
