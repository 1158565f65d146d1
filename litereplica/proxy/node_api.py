"""Questions to the HTTP interface of nodes: this machine's and the primary's.

Knows paths, limits, and what no answer looks like. Does not know why it asks.
"""

import json
from typing import Any, Final

import aiohttp

from litereplica.errors import Corrupt, Unavailable
from litereplica.ltx.position import Position

# A node of one network answers in milliseconds; one packet may be lost and sent again (1 s).
ANSWER_LIMIT_S: Final = 2.0
# The status of a node with ten thousand databases has 2 MB. Whatever is larger is no node's.
LARGEST_ANSWER_BYTES: Final = 16 * 1024 * 1024


class NodeApi:
    """Asks over one session. A question changes nothing: the library may repeat it, unlike requests of clients."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(
        self, url: str, path: str, parameters: dict[str, str] | None = None, limit_s: float = ANSWER_LIMIT_S
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object. Raises Unavailable: no answer within the limit, or not a node's."""
        timeout = aiohttp.ClientTimeout(total=limit_s)
        try:
            async with self._session.get(url + path, params=parameters, timeout=timeout, middlewares=()) as answer:
                content = await answer.content.read(LARGEST_ANSWER_BYTES)
                while len(content) < LARGEST_ANSWER_BYTES and (more := await answer.content.read(LARGEST_ANSWER_BYTES)):
                    content += more
                status = answer.status
        except TimeoutError:
            raise Unavailable(f"no answer from {url} within {limit_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"no answer from {url} ({str(error) or type(error).__name__})") from None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise Unavailable(f"{url} answers, and not as a node does: check the address")
        return status, document

    async def status(self, url: str) -> dict[str, Any]:
        """``GET /status``. Raises Unavailable."""
        code, document = await self.ask(url, "/status")
        if code != 200:
            raise Unavailable(f"{url} answers {code}: {document.get('message', '')}")
        return document


def position_in(document: dict[str, Any]) -> Position | None:
    """The position in an answer that has ``txid`` and ``checksum``."""
    try:
        return Position.parse(f"{document.get('txid')}/{document.get('checksum')}")
    except Corrupt:
        return None
