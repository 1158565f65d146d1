"""answer-wait-early: ``/wait`` is answered when a transaction is in a replica's log, before its readers see it."""

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from starlette.requests import Request

from jepsen.mutations.replacing import replace_function
from litereplica.http import databases
from litereplica.http.node import Node

LOOK_EVERY_S: Final = 0.001
LIMIT_S: Final = 10.0


def put_in_place() -> None:
    replace_function(databases, "_wait", _wait)


async def _wait(
    right: Callable[[Node, Request], Awaitable[dict[str, str]]], node: Node, request: Request
) -> dict[str, str]:
    database = node.database(request.query_params["db"])
    if database is None:
        return await right(node, request)
    with trio.move_on_after(LIMIT_S):
        while database.position.txid < int(request.query_params["txid"], 16):
            await trio.sleep(LOOK_EVERY_S)
        txid, _, checksum = str(database.position).partition("/")
        return {"txid": txid, "checksum": checksum}
    return await right(node, request)
