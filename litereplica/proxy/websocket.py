"""A WebSocket on its way through: two connections, and every message from one to the other.

Knows the handshake, closing, and that both ends are asked for a sign of life. Does not know which upstream it is.
"""

import asyncio
from http import HTTPStatus
from typing import Final

import aiohttp
from aiohttp import WSMsgType, web
from yarl import URL

from litereplica.config.proxy import ProxyTimeouts
from litereplica.proxy.answers import Problem
from litereplica.proxy.headers import Headers, for_client, without_handshake
from litereplica.proxy.upstream import NotSent, perhaps_again

# A connection may be silent for as long as it likes; one whose other end is gone is noticed after so long.
HEARTBEAT_S: Final = 30.0
# One message is held in memory, in each direction; servers take 1 to 16 MiB (uvicorn: 16).
LARGEST_MESSAGE_BYTES: Final = 16 * 1024 * 1024
# Whoever closes says so and is answered; nobody is waited for longer.
CLOSE_LIMIT_S: Final = 5.0
# What became of a handshake that was not answered.
UNKNOWN: Final = {"outcome": "unknown", "sent": "all"}

Socket = aiohttp.ClientWebSocketResponse | web.WebSocketResponse


def is_handshake(request: web.BaseRequest) -> bool:
    """Whether the client wants a WebSocket (RFC 6455, 4.1)."""
    headers = request.headers
    return (
        request.method == "GET"
        and headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in {word.strip().lower() for word in headers.get("Connection", "").split(",")}
    )


async def relay(
    session: aiohttp.ClientSession,
    request: web.BaseRequest,
    url: URL,
    who: str,
    headers: Headers,
    timeouts: ProxyTimeouts,
    *,
    again: bool,
) -> web.StreamResponse:
    """Connect to ``url`` first, then to the client, and carry messages until either closes.

    ``again``: the handshake only reads, and may be sent once more when the connection breaks. Raises NotSent, and
    Problem when it broke before the handshake. A handshake that is refused is answered the same.
    """
    offered = [each.strip() for each in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if each.strip()]

    async def connect() -> aiohttp.ClientWebSocketResponse:
        return await session.ws_connect(
            url,
            protocols=offered,
            headers=without_handshake(headers),
            heartbeat=HEARTBEAT_S,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_LIMIT_S),
            max_msg_size=LARGEST_MESSAGE_BYTES,
            autoclose=False,
        )

    try:
        async with asyncio.timeout(timeouts.connect_s + timeouts.response_s):
            upstream = await perhaps_again(connect, again=again)
    except aiohttp.WSServerHandshakeError as error:
        return _refused(error)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise NotSent(f"no connection to {who}") from error
    except TimeoutError as error:
        message = f"{who} did not answer in time"
        raise Problem(HTTPStatus.GATEWAY_TIMEOUT, "timeout", message, **UNKNOWN) from error
    except (aiohttp.ClientError, OSError) as error:
        message = f"the connection to {who} broke before its answer"
        raise Problem(HTTPStatus.BAD_GATEWAY, "connection_lost", message, **UNKNOWN) from error
    chosen = (upstream.protocol,) if upstream.protocol else ()
    client = web.WebSocketResponse(
        protocols=chosen,
        heartbeat=HEARTBEAT_S,
        timeout=CLOSE_LIMIT_S,
        max_msg_size=LARGEST_MESSAGE_BYTES,
        autoclose=False,
        compress=False,
    )
    try:
        await client.prepare(request)
        await _both_ways(client, upstream)
    finally:
        # Not closed yet: the client is gone without a word, or the proxy ends.
        await upstream.close(code=aiohttp.WSCloseCode.GOING_AWAY)
    return client


def _refused(error: aiohttp.WSServerHandshakeError) -> web.Response:
    """What the application says to a handshake that it does not want: its status and headers."""
    kept = for_client(error.headers) if error.headers is not None else Headers()  # type: ignore[arg-type]
    for name in ("Content-Length", "Content-Encoding", "Content-Type"):
        kept.popall(name, None)
    status = error.status if error.status != HTTPStatus.SWITCHING_PROTOCOLS else HTTPStatus.BAD_GATEWAY.value
    return web.Response(status=status, headers=without_handshake(kept))


async def _both_ways(client: web.WebSocketResponse, upstream: aiohttp.ClientWebSocketResponse) -> None:
    """Until one end closes; the other is told the same code."""
    tasks = [asyncio.create_task(_carry(client, upstream)), asyncio.create_task(_carry(upstream, client))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(source: Socket, target: Socket) -> None:
    while True:
        message = await source.receive()
        if message.type is WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
        elif message.type is WSMsgType.CLOSE:
            await target.close(code=_code(message.data), message=(message.extra or "").encode())
            await source.close(code=_code(message.data))
            return
        else:
            # It broke, or its messages are too large: the other end learns that it did not end well.
            # The library calls an end without a close frame 1000 or 1006.
            broke = source.close_code in {None, 1000, 1006}
            await target.close(code=aiohttp.WSCloseCode.INTERNAL_ERROR if broke else _code(source.close_code))
            return


def _code(code: int | None) -> int:
    """A code that may be sent: 1005 and 1006 only say that there was none."""
    return code if code and code not in {1005, 1006, 1015} else aiohttp.WSCloseCode.OK.value
