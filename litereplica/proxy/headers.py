"""Headers on their way through.

Knows which ones belong to one connection only, what is added for whoever comes next, and how a request that goes in a
circle is recognised. Pure. Does not know who is asked.
"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, unquote

from multidict import CIMultiDict, CIMultiDictProxy, MultiMapping

# RFC 9110, 7.6.1; Keep-Alive and Proxy-Connection are from before it. Expect is answered here (proxy.body).
CONNECTION_ONLY: Final = (
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "Expect",
)
# A client that names these in Connection would take them from the application.
NEVER_DROPPED: Final = frozenset({"host", "content-length", "content-type", "cookie", "authorization", "origin"})
HANDSHAKE_PREFIX: Final = "sec-websocket-"
HOPS: Final = "Litereplica-Hops"
NODE: Final = "Litereplica-Node"
OTHER_HISTORY: Final = "Litereplica-Other-History"
BEHIND: Final = "Litereplica-Behind"
VIA: Final = "1.1 litereplica"

Headers = CIMultiDict[str]


def for_upstream(given: "CIMultiDictProxy[str]", peer: str, scheme: str) -> Headers:
    """What the application or the next proxy gets: nothing of this connection, and where the request came from."""
    headers = _without_connection(given)
    if peer:
        headers["X-Forwarded-For"] = ", ".join((*given.getall("X-Forwarded-For", ()), peer))
    headers.setdefault("X-Forwarded-Proto", scheme)
    if "X-Forwarded-Host" not in headers and "Host" in headers:
        headers["X-Forwarded-Host"] = headers["Host"]
    headers["Via"] = ", ".join((*given.getall("Via", ()), VIA))
    return headers


def for_client(given: "CIMultiDictProxy[str]") -> Headers:
    """What the client gets of an answer."""
    headers = _without_connection(given)
    headers["Via"] = ", ".join((*given.getall("Via", ()), VIA))
    return headers


def without_handshake(headers: Headers) -> Headers:
    """The same without what belongs to one WebSocket's handshake: it is made anew."""
    for name in [each for each in headers if each.lower().startswith(HANDSHAKE_PREFIX)]:
        headers.popall(name, None)
    return headers


def hops(given: MultiMapping[str]) -> list[str]:
    """Names of the nodes whose proxies have sent the request on, in order."""
    return [unquote(name.strip()) for text in given.getall(HOPS, ()) for name in text.split(",") if name.strip()]


def write_hops(names: Sequence[str]) -> str:
    """The value of the header."""
    return ", ".join(quote(name, safe="") for name in names)


def _without_connection(given: "CIMultiDictProxy[str]") -> Headers:
    headers = CIMultiDict(given)
    for text in given.getall("Connection", ()):
        for name in text.split(","):
            if name.strip().lower() not in NEVER_DROPPED:
                headers.popall(name.strip(), None)
    for name in CONNECTION_ONLY:
        headers.popall(name, None)
    return headers
