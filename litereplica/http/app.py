"""The HTTP interface as a whole.

Knows which routes there are. Does not know how a node comes to its state: it asks a ``Node`` for it (http.node).
"""

from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from litereplica.errors import LitereplicaError
from litereplica.http import cluster, databases, events, health
from litereplica.http.node import Node
from litereplica.http.peers import Peers
from litereplica.http.problem import disk_failed, explain, failed, translate
from litereplica.metrics import Metrics


def build(node: Node, metrics: Metrics | None = None, data_dir: str = "") -> Starlette:
    """Make the application: ASGI, to be served by any server on trio.

    ``metrics``: what is counted as it happens; without it there are only the figures of the status. ``data_dir`` is
    shown in ``/info``.
    """
    counted = metrics if metrics is not None else Metrics()

    async def status(_: Request) -> Response:
        return JSONResponse(asdict(node.status()))

    async def figures(request: Request) -> Response:
        content, kind = counted.text(node.status(), request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": kind})

    routes = [
        Route("/status", status, methods=list(health.METHODS)),
        Route("/metrics", figures, methods=["GET"]),
        *health.routes(node),
        *databases.routes(node),
        *cluster.routes(node, Peers(), data_dir),
        *events.routes(node),
    ]
    handlers = {HTTPException: explain, LitereplicaError: translate, OSError: disk_failed, Exception: failed}
    return Starlette(routes=routes, exception_handlers=handlers)
