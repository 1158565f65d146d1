"""Routes about one database: its position, waiting for one, reading all of it again.

Knows their parameters and answers. Does not know how a database comes to its position.
"""

import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from litereplica.errors import Corrupt, LitereplicaError, Refused
from litereplica.http.node import Node
from litereplica.http.problem import Problem, bad_request, duration
from litereplica.ltx.position import Position, format_txid
from litereplica.store.database import Database
from litereplica.store.verify import Verification, Verified

DEFAULT_WAIT_S: Final = 30.0
# Who asks "at once" still gets an answer about a COMMIT that is about to return: that takes what a disk needs to sync.
LOOK_LIMIT_S: Final = 0.25
# A client that wants longer asks again; nothing waits for ever on a connection that a proxy has long given up.
LONGEST_WAIT_S: Final = 600.0
HEX_DIGITS: Final = 16
# A line so often while a database is read, so that whoever asked knows that we live; a step takes a second at most.
PROGRESS_S: Final = 0.5
# Each reads a disk as fast as it can.
VERIFICATIONS_LIMIT: Final = 4
# A damaged disk may have millions; who needs all of them has the file.
LONGEST_PAGE_LIST: Final = 1000


def routes(node: Node) -> list[Route]:
    """``/wait``, ``/position`` and ``/verify``."""

    async def wait(request: Request) -> Response:
        return JSONResponse(await _wait(node, request))

    async def position(request: Request) -> Response:
        return JSONResponse(_position(node, request))

    async def verify(request: Request) -> Response:
        database = _named(node, request)
        if len(verifying) >= VERIFICATIONS_LIMIT:
            message = f"{VERIFICATIONS_LIMIT} verifications are under way: ask again when one has ended"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", message)
        return StreamingResponse(_verify(node, database, verifying), media_type="application/x-ndjson")

    verifying: set[object] = set()
    return [
        Route("/wait", wait, methods=["GET"]),
        Route("/position", position, methods=["GET"]),
        Route("/verify", verify, methods=["GET"]),
    ]


def _named(node: Node, request: Request) -> Database:
    """The database that ``db=`` names."""
    name = request.query_params.get("db") or ""
    if not name:
        raise bad_request("give db=NAME, the database's path below the mount")
    database = node.database(name)
    if database is None:
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "no_such_database",
            f"no database {name!r} on this node: check the name (GET /status lists them)",
        )
    return database


async def _wait(node: Node, request: Request) -> dict[str, str]:
    query = request.query_params
    txid = _hexadecimal(query.get("txid"), "txid")
    checksum = _hexadecimal(query["checksum"], "checksum") if "checksum" in query else None
    timeout_s = _timeout(query.get("timeout"))
    database = _named(node, request)
    name = database.name
    deadline, visible = trio.current_time() + timeout_s, 0
    with trio.move_on_at(deadline):
        while database.applied < txid:
            _check_history(database, txid, checksum)
            await database.waiters.wait(txid)
    if database.applied >= txid:
        with trio.move_on_at(max(deadline, trio.current_time() + LOOK_LIMIT_S)):
            visible = await node.wait_visible(database, txid)
    _check_history(database, txid, checksum)
    if database.applied < txid:
        raise Problem(
            HTTPStatus.GATEWAY_TIMEOUT,
            "timeout",
            f"{name} is at {_position_at(database, database.applied)} after {timeout_s:g} s, before "
            f"{format_txid(txid)}: ask again, or look at the lag in /status",
            _reached(database, database.applied),
        )
    if visible < txid:
        raise Problem(
            HTTPStatus.GATEWAY_TIMEOUT,
            "timeout",
            f"{format_txid(txid)} of {name} is committed, but after {timeout_s:g} s its writer has not shown it to "
            "others: ask again; a process that stands still in its COMMIT keeps it",
            _reached(database, txid - 1),
        )
    return _reached(database, visible)


def _position(node: Node, request: Request) -> dict[str, str | None]:
    """The position logged here, or the checksum that this node had at an earlier TXID; null when it is not known."""
    database = _named(node, request)
    at = database.position
    txid = _hexadecimal(request.query_params["txid"], "txid") if "txid" in request.query_params else at.txid
    checksum = at.checksum if txid == at.txid else database.log.checksum_at(txid)
    return {
        "db": database.name,
        "txid": format_txid(txid),
        "checksum": None if checksum is None else f"{checksum:016x}",
    }


async def _verify(node: Node, database: Database, verifying: set[object]) -> AsyncIterator[str]:
    """JSON lines: progress every half second, and at last a result or an error."""
    key = object()
    verifying.add(key)
    verification: Verification | None = None
    try:
        verification = Verification(database, str(id(key)))
        said = 0.0
        while verification.result is None:
            if trio.current_time() - said >= PROGRESS_S:
                said = trio.current_time()
                done, total = verification.pages_done, verification.pages_total
                yield _line({"type": "progress", "pages": done, "of": total})
            await verification.step()
        if verification.result.damaged:
            node.found_damage(database.name, list(verification.result.damaged))
        yield _line({"type": "result"} | _verified(database, verification.result))
    except (LitereplicaError, OSError) as error:
        code = "corrupt" if isinstance(error, Corrupt) else "refused" if isinstance(error, Refused) else "unavailable"
        yield _line({"type": "error", "error": code, "message": str(error)})
    finally:
        verifying.discard(key)
        if verification is not None:
            verification.close()


def _verified(database: Database, found: Verified) -> dict[str, object]:
    return {
        "db": database.name,
        "sound": found.sound,
        "txid": format_txid(found.position.txid),
        "checksum": f"{found.position.checksum:016x}",
        "recomputed": f"{found.recomputed:016x}",
        "page_checksums": f"{found.table:016x}",
        "log": None if found.logged is None else f"{found.logged:016x}",
        "page_size": found.page_size,
        "pages": found.page_count,
        "log_pages": found.log_pages,
        "damaged_count": len(found.damaged),
        "damaged": list(found.damaged[:LONGEST_PAGE_LIST]),
    }


def _line(document: dict[str, object]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


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
            _reached(database, database.applied),
        )


def _position_at(database: Database, txid: int) -> Position:
    """A TXID with its checksum here; 0 when that is not known any more."""
    if txid == database.position.txid:
        return database.position
    return Position(txid, database.log.checksum_at(txid) or 0)


def _reached(database: Database, txid: int) -> dict[str, str]:
    at = _position_at(database, txid)
    return {"db": database.name, "txid": format_txid(at.txid), "checksum": f"{at.checksum:016x}"}


def _hexadecimal(text: str | None, name: str) -> int:
    if text and len(text) <= HEX_DIGITS and all(each in "0123456789abcdefABCDEF" for each in text):
        return int(text, 16)
    raise bad_request(f"give {name}= as up to 16 hex digits, not {text!r}")


def _timeout(text: str | None) -> float:
    return DEFAULT_WAIT_S if text is None else min(duration(text, "timeout"), LONGEST_WAIT_S)
