"""Routes for those who send traffic somewhere: load balancers, supervisors, Kubernetes.

Knows that they look at the code alone: 200 or 503, to GET, HEAD and OPTIONS. Does not know what makes a node ready.
"""

from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from litereplica.cluster.status import NodeStatus
from litereplica.http.node import Node
from litereplica.http.problem import duration

METHODS: Final = ("GET", "HEAD", "OPTIONS")


def routes(node: Node) -> list[Route]:
    """``/primary``, ``/replica``, ``/readyz`` and ``/livez``."""

    async def primary(request: Request) -> Response:
        found = node.status()
        return _answer(request, found, None if is_serving_primary(found) else ("not_primary", _why_not_primary(found)))

    async def replica(request: Request) -> Response:
        limit = request.query_params.get("lag")
        limit_s = None if limit is None else duration(limit, "lag")
        found = node.status()
        why = _why_not_replica(found, limit_s)
        return _answer(request, found, None if why is None else ("not_replica", why))

    async def ready(request: Request) -> Response:
        found = node.status()
        return _answer(request, found, None if found.ready else ("not_ready", _not_ready(found)))

    async def live(request: Request) -> Response:
        return _answer(request, node.status(), None)

    return [
        Route("/primary", primary, methods=list(METHODS)),
        Route("/replica", replica, methods=list(METHODS)),
        Route("/readyz", ready, methods=list(METHODS)),
        Route("/livez", live, methods=list(METHODS)),
    ]


def is_serving_primary(found: NodeStatus) -> bool:
    """Whether this node is the primary and its fence is open."""
    return found.role == "primary" and found.ready


def _answer(request: Request, found: NodeStatus, wrong: tuple[str, str] | None) -> Response:
    body: dict[str, object] = {
        "node": found.node,
        "role": found.role,
        "primary": found.primary,
        "epoch": found.epoch,
        "ready": found.ready,
        "reason": found.reason,
    }
    if wrong is not None:
        body |= {"error": wrong[0], "message": wrong[1]}
    code = HTTPStatus.OK if wrong is None else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse(body, code, {"Allow": ", ".join(METHODS)} if request.method == "OPTIONS" else None)


def _why_not_primary(found: NodeStatus) -> str:
    if found.role == "primary":
        return f"{found.node} is the primary and accepts no commits now: {found.reason}"
    return f"{found.node} is a replica: " + (
        f"{found.primary} is the primary" if found.primary else "nobody is primary"
    )


def _why_not_replica(found: NodeStatus, limit_s: float | None) -> str | None:
    if found.role != "replica":
        return f"{found.node} is the primary"
    if not found.ready:
        return _not_ready(found)
    if limit_s is None:
        return None
    for database in found.databases:
        if database.lag_ms is None:
            return f"how far {database.name} is behind is not known: {found.node} has not yet heard from a primary"
        if database.lag_ms > limit_s * 1000:
            return f"{database.name} is {database.lag_ms} ms behind the primary"
    return None


def _not_ready(found: NodeStatus) -> str:
    return f"this node is not ready: {found.reason}"
