"""The body of a request on its way through, with bounded memory.

Knows when it begins, how far it is, and its limits of time. Does not know where it goes.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import StreamReader, web

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Body:
    """Read once, while it is sent on: nothing is read before somebody takes it, and nothing is kept.

    ``begun``: some of it may have been sent. ``ended``: all of it was read. ``starved``: the client is to send more.
    """

    def __init__(self, request: web.BaseRequest, idle_s: float, response_s: float) -> None:
        self.begun = self.ended = self.starved = False
        self.size = 0
        self._request = request
        self._expects = request.headers.get("Expect", "").lower() == "100-continue"
        self._idle_s = idle_s
        self._response_s = response_s
        self._limit: asyncio.Timeout | None = None

    def limit(self, timeout: asyncio.Timeout | None) -> None:
        """The limit of time that is prolonged with every piece; None when nothing is waited for any more."""
        self._limit = timeout

    async def pieces(self) -> AsyncIterator[bytes]:
        """Everything, in pieces as they come. The client is told to begin when the first one is wanted."""
        self.begun = True
        if self._expects:
            await self._request.writer.write(CONTINUE)
            # What was written counts as the answer's otherwise.
            self._request.writer.output_size = 0
        content = self._request.content
        self._prolong(self._idle_s)
        while piece := await self._next(content):
            self.size += len(piece)
            self._prolong(self._idle_s)
            yield piece
        self.ended = True
        self._prolong(self._response_s)

    async def _next(self, content: StreamReader) -> bytes:
        self.starved = True
        piece = await content.readany()
        self.starved = False
        return piece

    def _prolong(self, seconds: float) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)
