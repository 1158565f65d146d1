"""One request sent on, and its answer brought back, both as streams.

Knows connections, limits of time, and what is known when one breaks. Does not know which upstream a request belongs to
or what is added to an answer (proxy.handler).
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from litereplica.config.proxy import ProxyTimeouts
from litereplica.errors import Unavailable
from litereplica.proxy.answers import Problem
from litereplica.proxy.body import Body
from litereplica.proxy.headers import Headers, for_client

# Servers of applications close idle connections after 2 s (gunicorn), 5 s (uvicorn, node) or later. A connection that
# is used just when it is closed loses its request, so ours end first.
KEEP_ALIVE_S: Final = 1.0
# Names of one line and one header field: as large as the largest that common servers take.
LARGEST_LINE_BYTES: Final = 16 * 1024
LARGEST_FIELD_BYTES: Final = 32 * 1024
READ_BYTES: Final = 64 * 1024
# The library quotes what it could not read, all of it.
LONGEST_REASON: Final = 200
# The client library adds nothing of its own.
NOT_ADDED: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

Finish = Callable[[Headers], Awaitable[None]]
Answer = TypeVar("Answer")


class NotSent(Unavailable):
    """Nothing of the request has reached anybody: it can be sent elsewhere."""


class Lost(aiohttp.ClientError):
    """A connection broke: not an error after which the client library repeats a request by itself."""


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Let nothing be sent twice: the library repeats GET, PUT and DELETE when the other end has closed a connection."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        raise Lost(str(error) or type(error).__name__) from error


async def perhaps_again(ask: Callable[[], Awaitable[Answer]], *, again: bool) -> Answer:
    """Ask; with ``again`` once more when the connection broke: the other end may have been about to close it, idle.

    Raises Lost, also when the second time nobody was there: the first may have been done.
    """
    try:
        return await ask()
    except Lost:
        if not again:
            raise
    try:
        return await ask()
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Lost(_reason(error)) from error


def make_session(timeouts: ProxyTimeouts) -> aiohttp.ClientSession:
    """The session of every request to an upstream. Must be called in the event loop."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=10)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=NOT_ADDED,
        timeout=aiohttp.ClientTimeout(total=None, connect=timeouts.connect_s, sock_connect=timeouts.connect_s),
        read_bufsize=READ_BYTES,
        max_line_size=LARGEST_LINE_BYTES,
        max_field_size=LARGEST_FIELD_BYTES,
        # Also for handshakes of WebSockets, which take none of their own.
        middlewares=(_once,),
    )


def url_of(base: str, request: web.BaseRequest) -> URL:
    """The request's path below ``base``, as it came, byte for byte. Raises Problem."""
    target = request.raw_path
    if not target.startswith("/"):
        # RFC 9112, 3.2.2: the absolute form is to be understood; the Host header counts.
        if not target.lower().startswith(("http://", "https://")):
            raise Problem(HTTPStatus.BAD_REQUEST, "bad_request", f"no path: {target[:80]!r}")
        target = request.rel_url.raw_path_qs
    return URL(base + target, encoded=True)


class Upstream:
    """Sends requests on."""

    def __init__(self, session: aiohttp.ClientSession, timeouts: ProxyTimeouts) -> None:
        self.session = session
        self._timeouts = timeouts

    async def relay(
        self, request: web.BaseRequest, base: str, who: str, headers: Headers, finish: Finish, *, again: bool
    ) -> web.StreamResponse:
        """Send the request to ``base`` (``who`` in messages); the answer, already on its way to the client.

        ``finish`` is called with the answer's headers when they are there. ``again``: the request only reads, and may
        be sent once more when the connection breaks. Raises NotSent, and Problem when it is not known what became of
        the request; ConnectionError when the client has a part of an answer that broke.
        """
        body = Body(request, self._timeouts.idle_s, self._timeouts.response_s)
        answer = await self._send(request, url_of(base, request), who, headers, body, again=again)
        try:
            return await self._bring_back(request, answer, finish)
        finally:
            # A connection on which something is still to come is of no use to the next request.
            answer.close()

    async def _send(
        self, request: web.BaseRequest, url: URL, who: str, headers: Headers, body: Body, *, again: bool
    ) -> aiohttp.ClientResponse:
        timeouts = self._timeouts

        async def ask() -> aiohttp.ClientResponse:
            return await self.session.request(
                request.method,
                url,
                headers=headers,
                data=body.pieces() if request.body_exists else None,
                allow_redirects=False,
            )

        try:
            async with asyncio.timeout(timeouts.connect_s + timeouts.response_s) as limit:
                body.limit(limit)
                try:
                    return await perhaps_again(ask, again=again and not request.body_exists)
                finally:
                    body.limit(None)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(f"no connection to {who} ({_reason(error)})") from error
        except TimeoutError as error:
            if body.begun and body.starved and not body.ended:
                message = f"the client has sent nothing for {timeouts.idle_s:g} s in the middle of its request"
                raise Problem(HTTPStatus.REQUEST_TIMEOUT, "client_too_slow", message, **_sent(body)) from error
            message = (
                f"{who} did not answer in time: it is not known whether the request was done; ask before repeating"
            )
            raise Problem(HTTPStatus.GATEWAY_TIMEOUT, "timeout", message, **_sent(body)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = (
                f"the connection to {who} broke before its answer ({_reason(error)}): it is not known whether the "
                "request was done; ask before repeating"
            )
            raise Problem(HTTPStatus.BAD_GATEWAY, "connection_lost", message, **_sent(body)) from error

    async def _bring_back(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, finish: Finish
    ) -> web.StreamResponse:
        headers = for_client(answer.headers)
        await finish(headers)
        headers.setdefault("Server", "litereplica")
        reason = answer.reason or ""
        content = answer.content
        if content.is_eof() and content.exception() is None and request.method != "HEAD":
            # All of it is here already: one write instead of two.
            whole = await content.read()
            response = web.Response(body=whole or None, status=answer.status, reason=reason, headers=headers)
            await response.prepare(request)
            await response.write_eof()
            return response
        stream = web.StreamResponse(status=answer.status, reason=reason, headers=headers)
        await stream.prepare(request)
        loop, idle_s = asyncio.get_running_loop(), self._timeouts.idle_s
        try:
            async with asyncio.timeout(idle_s) as limit:
                while piece := await content.readany():
                    limit.reschedule(loop.time() + idle_s)
                    await stream.write(piece)
                    limit.reschedule(loop.time() + idle_s)
                await stream.write_eof()
        except (aiohttp.ClientError, TimeoutError) as error:
            # The status is with the client already: only an end without an end tells it.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer broke") from error
        return stream


def _sent(body: Body) -> dict[str, object]:
    """What is known of a request that was lost."""
    return {"outcome": "unknown", "sent": "all" if body.ended or not body.begun else "part", "body_bytes": body.size}


def _reason(error: BaseException) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(text[:LONGEST_REASON].split())
