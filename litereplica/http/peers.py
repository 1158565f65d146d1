"""Questions from this node to the HTTP interface of another.

Knows connections, limits and what no answer looks like. Does not know what is asked.
"""

import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from litereplica.errors import Unavailable

if TYPE_CHECKING:  # it takes a tenth of a second to import, and most nodes are never asked to ask
    import httpx

# A node on the same network takes a connection in a millisecond; one packet may be lost and sent again (1 s).
CONNECT_LIMIT_S: Final = 2.0
# The status of a node with ten thousand databases has 2 MB. Whatever is larger is no node's.
ANSWER_LIMIT_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status and the JSON object that came with it."""

    status: int
    document: dict[str, Any]

    @property
    def message(self) -> str:
        """What it says about an error."""
        return str(self.document.get("message") or f"HTTP status {self.status}")


class Peers:
    """Asks other nodes; made once for a node, because httpx and the system's certificates take long to load."""

    def __init__(self) -> None:
        self._tls: ssl.SSLContext | None = None

    async def ask(
        self,
        url: str,
        path: str,
        limit_s: float,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """GET, or POST when there is a body; the answer, whatever its code.

        Raises Unavailable with the reason, without the URL: no answer within ``limit_s``, or not a node's.
        """
        tls = await self._context()
        import httpx  # noqa: PLC0415 - the context came with it

        method = "GET" if body is None else "POST"
        timeout = httpx.Timeout(limit_s, connect=min(limit_s, CONNECT_LIMIT_S))
        try:
            # The limits above are for each step; somebody who sends a byte a second is ended by this one.
            with trio.fail_after(limit_s):
                # trust_env is off: a proxy for the way out must not stand between two nodes of one network.
                async with (
                    httpx.AsyncClient(verify=tls, timeout=timeout, trust_env=False) as client,
                    client.stream(method, url + path, json=body, headers=headers) as answer,
                ):
                    return Answer(answer.status_code, _document(await _read(answer)))
        except (trio.TooSlowError, httpx.TimeoutException):
            raise Unavailable(f"no answer within {limit_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise Unavailable(str(error) or type(error).__name__) from None

    async def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = await trio.to_thread.run_sync(_load)
        return self._tls


def _load() -> ssl.SSLContext:
    """In a thread: what answers others does not wait for it."""
    import httpx  # noqa: F401, PLC0415

    return ssl.create_default_context()


async def _read(answer: "httpx.Response") -> bytes:
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        # Read to the end all the same (there is a limit of time): httpx's iterators are not to be left in the middle.
        if len(content) <= ANSWER_LIMIT_BYTES:
            content += chunk
    if len(content) > ANSWER_LIMIT_BYTES:
        raise Unavailable("its answer is longer than a node's: check the address")
    return bytes(content)


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Unavailable("it answers, and not as a node does: check the address")
    return document
