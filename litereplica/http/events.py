"""``GET /events[?tx=0]``: what happens on this node, one JSON object a line, as it happens.

Knows when its client is gone; one that does not read is gone after a while (http.connection). Does not know the events
(node.events).
"""

import json
from http import HTTPStatus
from typing import Any, Final

import trio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from litereplica.http.node import Node
from litereplica.http.problem import Problem, bad_request

MEDIA_TYPE: Final = "application/x-ndjson"
# Lines that wait go out together: a busy primary has thousands a second.
BATCH_LINES: Final = 256

Channel = trio.MemoryReceiveChannel[dict[str, Any]]


def routes(node: Node) -> list[Route]:
    """``/events``."""

    async def events(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type=MEDIA_TYPE)
        transactions = request.query_params.get("tx", "1")
        if transactions not in {"0", "1"}:
            raise bad_request(f"give tx= as 1 or 0 (no transactions), not {transactions!r}")
        channel = node.events.listen(transactions=transactions == "1")
        if channel is None:
            message = "too many listen to events already: ask again later, or listen on another node"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", message)
        return EventStream(channel)

    return [Route("/events", events, methods=["GET"])]


class EventStream(StreamingResponse):
    """Ends when the client is gone, or the channel ends."""

    def __init__(self, channel: Channel) -> None:
        super().__init__((), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
        self._channel = channel

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._channel:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_wait_gone, receive, nursery.cancel_scope)
                await self._send_all(send)
                nursery.cancel_scope.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._channel:
            lines = [_line(event)]
            while len(lines) < BATCH_LINES:
                try:
                    lines.append(_line(self._channel.receive_nowait()))
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
            await send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
