"""Routes of the HTTP interface.

Knows requests, answers and their codes. Does not know how a node comes to its state: it asks a ``Node`` for it.
An error is ``{"error": CODE, "message": what happened and what to do}``.
"""

from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Final, Protocol

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from litereplica.cluster.status import NodeStatus
from litereplica.config.units import parse_duration
from litereplica.errors import Misconfigured
from litereplica.ltx.position import Position, format_txid
from litereplica.store.database import Database

DEFAULT_WAIT_S: Final = 30.0
# A client that wants longer asks again; nothing waits for ever on a connection that a proxy has long given up.
LONGEST_WAIT_S: Final = 600.0
HEX_DIGITS: Final = 16
METHODS: Final = ("GET", "HEAD", "OPTIONS")


class Node(Protocol):
    """What the routes need of a node."""

    def status(self) -> NodeStatus:
        """Everything that is known now."""

    def database(self, name: str) -> Database | None:
        """A database by its name, also one that is about to arrive."""


class Problem(HTTPException):
    """An answer that is not 200."""

    def __init__(self, status: HTTPStatus, code: str, message: str, extra: Mapping[str, object] | None = None) -> None:
        super().__init__(status.value, message)
        self.code = code
        self.extra = dict(extra or {})


def build(node: Node) -> Starlette:
    """The application: ASGI, to be served by any server."""

    async def status(_: Request) -> Response:
        return JSONResponse(asdict(node.status()))

    async def wait(request: Request) -> Response:
        return JSONResponse(await _wait(node, request))

    async def ready(request: Request) -> Response:
        found = node.status()
        return _health(request, is_good=found.ready, found=found)

    async def live(request: Request) -> Response:
        return _health(request, is_good=True, found=node.status())

    routes = [
        Route("/status", status, methods=list(METHODS)),
        Route("/wait", wait, methods=["GET"]),
        Route("/readyz", ready, methods=list(METHODS)),
        Route("/livez", live, methods=list(METHODS)),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _explain, Exception: _failed})


def _health(request: Request, *, is_good: bool, found: NodeStatus) -> Response:
    body = {"node": found.node, "role": found.role, "ready": found.ready, "reason": found.reason}
    code = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
    if not is_good:
        body |= {"error": "not_ready", "message": f"this node is not ready: {found.reason}"}
    headers = {"Allow": ", ".join(METHODS)} if request.method == "OPTIONS" else None
    return JSONResponse(body, code, headers)


async def _wait(node: Node, request: Request) -> dict[str, str]:
    query = request.query_params
    name = query.get("db") or ""
    if not name:
        raise Problem(HTTPStatus.BAD_REQUEST, "bad_request", "give db=NAME, the database's path below the mount")
    txid = _hexadecimal(query.get("txid"), "txid")
    checksum = _hexadecimal(query["checksum"], "checksum") if "checksum" in query else None
    timeout_s = _timeout(query.get("timeout"))
    database = node.database(name)
    if database is None:
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "no_such_database",
            f"no database {name!r} on this node: check the name (GET /status lists them)",
        )
    with trio.move_on_after(timeout_s):
        while database.applied < txid:
            _check_history(database, txid, checksum)
            await database.waiters.wait(txid)
    _check_history(database, txid, checksum)
    if database.applied < txid:
        raise Problem(
            HTTPStatus.GATEWAY_TIMEOUT,
            "timeout",
            f"{name} is at {_applied(database)} after {timeout_s:g} s, before {format_txid(txid)}: ask again, or "
            "look at the lag in /status",
            _reached(database),
        )
    return _reached(database)


def _check_history(database: Database, txid: int, checksum: int | None) -> None:
    if checksum is None or database.position.txid < txid:
        return
    ours = database.position.checksum if database.position.txid == txid else database.log.checksum_at(txid)
    if ours is not None and ours != checksum:
        raise Problem(
            HTTPStatus.CONFLICT,
            "other_history",
            f"{database.name} had checksum {ours:016x} at {format_txid(txid)}, not {checksum:016x}: the position "
            "is from another history; take the position of this answer instead",
            _reached(database),
        )


def _applied(database: Database) -> Position:
    if database.applied == database.position.txid:
        return database.position
    return Position(database.applied, database.log.checksum_at(database.applied) or 0)


def _reached(database: Database) -> dict[str, str]:
    at = _applied(database)
    return {"db": database.name, "txid": format_txid(at.txid), "checksum": f"{at.checksum:016x}"}


def _hexadecimal(text: str | None, name: str) -> int:
    if text and len(text) <= HEX_DIGITS and all(each in "0123456789abcdefABCDEF" for each in text):
        return int(text, 16)
    raise Problem(HTTPStatus.BAD_REQUEST, "bad_request", f"give {name}= as up to 16 hex digits, not {text!r}")


def _timeout(text: str | None) -> float:
    if text is None:
        return DEFAULT_WAIT_S
    try:
        seconds = float(parse_duration(text))
    except (Misconfigured, ValueError):
        raise Problem(
            HTTPStatus.BAD_REQUEST, "bad_request", f"give timeout= as a duration such as 500ms or 10s, not {text!r}"
        ) from None
    return min(seconds, LONGEST_WAIT_S)


async def _explain(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.code if isinstance(error, Problem) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    extra = error.extra if isinstance(error, Problem) else {}
    return JSONResponse({"error": code, "message": error.detail, **extra}, error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse(
        {"error": "internal", "message": f"{type(error).__name__}: see the node's log"},
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
