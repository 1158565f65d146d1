"""Routes about the cluster: its nodes, its past primaries, and a change of primary.

Knows their parameters and answers, and what a browser may be made to send. Does not know who does the work
(http.failover, http.gathering).
"""

import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from litereplica.errors import Refused, Unavailable
from litereplica.http.failover import FORWARDED, Failover
from litereplica.http.gathering import gather
from litereplica.http.node import Node
from litereplica.http.peers import Peers
from litereplica.http.problem import Problem, bad_request

# {"to": a name, "force": true} and nothing else.
LONGEST_BODY_BYTES: Final = 4096


def routes(node: Node, peers: Peers, data_dir: str) -> list[Route]:
    """``/cluster``, ``/history``, ``/failover``, and LiteFS's ``/info`` and ``/promote``."""
    changes = Failover(node, peers)

    async def cluster(_: Request) -> Response:
        return JSONResponse(await gather(node, peers))

    async def info(_: Request) -> Response:
        return JSONResponse(_info(node, data_dir))

    async def history(_: Request) -> Response:
        return JSONResponse({"history": [asdict(each) for each in node.history()]})

    async def failover(request: Request) -> Response:
        _refuse_browsers(request)
        to, force = _wanted(await _json(request))
        return JSONResponse(await changes.ask(to, force=force, forwarded=FORWARDED in request.headers))

    return [
        Route("/cluster", cluster, methods=["GET"]),
        Route("/history", history, methods=["GET"]),
        Route("/failover", failover, methods=["POST"]),
        Route("/info", info, methods=["GET"]),
        Route("/promote", _promote(node, changes), methods=["POST"]),
    ]


def _refuse_browsers(request: Request) -> None:
    """Refuse what a page of somebody else can make a browser send: it always names where it comes from."""
    if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} or "origin" in request.headers:
        raise Problem(HTTPStatus.BAD_REQUEST, "bad_request", "this is not for web pages: ask without an Origin header")


async def _json(request: Request) -> dict[str, Any]:
    """The body. A form, which any page can send anywhere, is never of this type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise bad_request(f"send Content-Type: application/json, not {kind or 'none'!r}")
    content = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > LONGEST_BODY_BYTES:
                raise bad_request(f"the body is longer than {LONGEST_BODY_BYTES} bytes")
    try:
        document = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise bad_request('send a JSON object, such as {"to": "b", "force": false}')
    return document


def _wanted(document: dict[str, Any]) -> tuple[str | None, bool]:
    if unknown := sorted(set(document) - {"to", "force"}):
        raise bad_request(f"unknown key {unknown[0]!r}: there are to and force")
    to, force = document.get("to"), document.get("force", False)
    if not (to is None or (isinstance(to, str) and to)) or not isinstance(force, bool):
        raise bad_request('"to" is the name of a node or null, "force" is true or false')
    return to, force


# -- as LiteFS answers: https://github.com/superfly/litefs, http/server.go and NodeInfo in litefs.go -------------------


def _info(node: Node, data_dir: str) -> dict[str, Any]:
    found = node.status()
    info: dict[str, Any] = {
        "isPrimary": found.role == "primary",
        "candidate": _is_candidate(node),
        "path": data_dir,
        "primary": {"hostname": found.primary or ""},
    }
    cluster = found.lease.cluster if found.lease is not None else ""
    return ({"clusterID": cluster} if cluster else {}) | info


def _promote(node: Node, changes: Failover) -> Callable[[Request], Any]:
    async def promote(request: Request) -> Response:
        _refuse_browsers(request)
        found = node.status()
        if not _is_candidate(node):
            raise Refused(f"{found.node} may not become primary: its configuration says node.candidate: false")
        if found.role != "primary":
            if found.primary is None:
                raise Unavailable("nobody is primary, so nobody can hand over: an election may be under way, ask again")
            await changes.ask(found.node, force=False, forwarded=False)
        return Response()  # LiteFS's clients look at the code alone

    return promote


def _is_candidate(node: Node) -> bool:
    found = node.status()
    mine = next((each for each in node.members() if each.endpoint.node == found.node), None)
    return mine.candidate if mine is not None else found.role == "primary"
