"""Every request: which kind it is, where it goes, and what its client is told besides the answer.

Knows the sequence. Does not know sockets (proxy.server), how a request is carried (proxy.upstream, proxy.websocket) or
how positions are known (proxy.catch_up).
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web

from litereplica.config import ProxySettings
from litereplica.errors import Unavailable
from litereplica.ltx.position import Position
from litereplica.proxy import cookie, headers, websocket
from litereplica.proxy.answers import Problem, explain
from litereplica.proxy.catch_up import EVERYTHING, CatchUp, CaughtUp
from litereplica.proxy.counts import Counts
from litereplica.proxy.headers import Headers
from litereplica.proxy.health import Health
from litereplica.proxy.local_node import LocalNode
from litereplica.proxy.positions import MountPositions
from litereplica.proxy.primary import Circle, Place, Primaries
from litereplica.proxy.rules import READING_METHODS, Kind, Rules
from litereplica.proxy.upstream import Finish, NotSent, Upstream, url_of

log = structlog.get_logger()

# More nodes than any cluster's candidates: a request that has come through so many goes in a circle.
HOPS_LIMIT: Final = 8
APPLICATION: Final = "the application"
METHODS_REFUSED: Final = frozenset({"CONNECT", "TRACE"})


@dataclass(frozen=True, slots=True)
class Parts:
    """What a handler needs."""

    settings: ProxySettings
    node: str
    local: LocalNode
    primaries: Primaries
    catch_up: CatchUp
    positions: MountPositions
    upstream: Upstream
    counts: Counts
    health: Health


class Handler:
    """Answers requests; one call for each."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._rules = Rules(parts.settings)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer. Raises ConnectionError when the client's connection is of no use any more."""
        counts = self._parts.counts
        counts.under_way += 1
        try:
            own = self._parts.health.is_asked(request)
            return await (self._parts.health.answer(request) if own else self._route(request))
        except Problem as problem:
            counts.problems[(problem.code,)] += 1
            # What is left of the body would have to be read first.
            return explain(problem, keep_alive=not request.body_exists)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # the last edge: a bug must not look like an answer of the application
            counts.problems[("internal",)] += 1
            log.exception("request_failed", method=request.method, path=request.path)
            if request.writer.output_size or request.transport is None:
                raise ConnectionResetError("an answer had begun") from error
            message = f"{type(error).__name__}: see the proxy's log"
            internal = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", message, outcome="unknown")
            return explain(internal, keep_alive=False)
        finally:
            counts.under_way -= 1

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method in METHODS_REFUSED:
            message = f"{request.method} is not for applications behind a proxy"
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", message)
        if request.headers.get("Expect", "100-continue").lower() != "100-continue":
            message = "the only expectation that there is an answer to is 100-continue"
            raise Problem(HTTPStatus.EXPECTATION_FAILED, "expectation_failed", message)
        kind = self._rules.kind(request.method, request.path)
        if kind is Kind.PASS:
            return await self._here(request, kind, Headers())
        if kind is Kind.READ:
            return await self._read(request)
        if self._settings.writes == "local":
            return await self._here(request, kind, Headers())
        return await self._write(request)

    # -- reads -----------------------------------------------------------------------------------------------------

    async def _read(self, request: web.BaseRequest) -> web.StreamResponse:
        """Once this node is where the client has been."""
        seen = self._seen(request)
        parts, extra = self._parts, Headers()
        if seen and not parts.catch_up.is_there(seen):
            parts.counts.waiting += 1
            try:
                found = await parts.catch_up.reach(seen)
            finally:
                parts.counts.waiting -= 1
            extra = self._told(seen, found)
        return await self._here(request, Kind.READ, extra)

    def _seen(self, request: web.BaseRequest) -> cookie.Positions:
        given = request.headers.getall("Cookie", ())
        return cookie.parse(given, self._settings.cookie, self._settings.databases) if given else {}

    def _told(self, seen: cookie.Positions, found: CaughtUp) -> Headers:
        """What the client learns about its positions. Raises Problem when it is to come again."""
        counts, extra = self._parts.counts, Headers()
        if found == EVERYTHING:
            counts.waits[("reached",)] += 1
            return extra
        if found.lost:
            counts.waits[("other_history",)] += 1
            extra[headers.OTHER_HISTORY] = headers.write_hops(sorted(found.lost))
            now = {name: at for name, at in (seen | found.lost).items() if at.txid}
            extra["Set-Cookie"] = cookie.write(self._settings.cookie, now, self._settings.cookie_age_s)
        if found.behind:
            counts.waits[("behind",)] += 1
            if self._settings.behind == "refuse":
                message = (
                    f"{self._parts.node} has not yet got what this client has seen of {', '.join(found.behind)}: ask "
                    "again, or look at the lag in its status"
                )
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "behind", message)
            extra[headers.BEHIND] = headers.write_hops(found.behind)
        return extra

    # -- writes ----------------------------------------------------------------------------------------------------

    async def _write(self, request: web.BaseRequest) -> web.StreamResponse:
        """On the primary; on another one as long as nothing was sent to the first."""
        parts = self._parts
        come_from = headers.hops(request.headers)
        if len(come_from) >= HOPS_LIMIT:
            raise _circle(f"the request has come through the proxies of {', '.join(come_from)}")
        deadline = asyncio.get_running_loop().time() + self._settings.timeouts.primary_s
        while True:
            place = parts.primaries.known()
            if place is None or (place.proxy is not None and place.node in come_from):
                place = await self._find(deadline, come_from)
            if place.proxy is None:
                return await self._here(request, Kind.WRITE, Headers())
            if self._settings.writes == "fly-replay":
                return self._replay(place)
            if self._settings.writes == "redirect":
                return self._redirect(request, place, place.proxy)
            try:
                return await self._forward(request, place, place.proxy, come_from)
            except NotSent as error:
                parts.primaries.forget()
                if asyncio.get_running_loop().time() >= deadline:
                    raise _nobody(f"the primary {place.node} gives no answer: {error.message}") from error
                parts.counts.resent[()] += 1
                await parts.local.wait_changed(0.1)

    async def _find(self, deadline: float, come_from: list[str]) -> Place:
        rest_s = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            return await self._parts.primaries.find(rest_s, come_from)
        except Circle as error:
            raise _circle(error.message) from error
        except Unavailable as error:
            raise _nobody(error.message) from error

    async def _forward(
        self, request: web.BaseRequest, place: Place, proxy: str, come_from: list[str]
    ) -> web.StreamResponse:
        self._parts.counts.requests["write", "primary"] += 1
        sent = headers.for_upstream(request.headers, request.remote or "", request.scheme)
        sent[headers.HOPS] = headers.write_hops([*come_from, self._parts.node])
        return await self._carry(request, proxy, f"the proxy of the primary {place.node}", sent, _as_it_is, again=False)

    def _redirect(self, request: web.BaseRequest, place: Place, proxy: str) -> web.Response:
        self._parts.counts.requests["write", "redirect"] += 1
        target = {"Location": str(url_of(proxy, request)), headers.NODE: place.node, "Cache-Control": "no-store"}
        # 307: the same method and body again (RFC 9110, 15.4.8).
        return web.Response(status=HTTPStatus.TEMPORARY_REDIRECT.value, headers=target)

    def _replay(self, place: Place) -> web.Response:
        self._parts.counts.requests["write", "fly-replay"] += 1
        # https://fly.io/docs/networking/dynamic-request-routing: its edge sends the request to that instance; whoever
        # is not behind that edge sees an error and not an empty success.
        return web.Response(status=HTTPStatus.CONFLICT.value, headers={"Fly-Replay": f"instance={place.node}"})

    # -- the application of this node ------------------------------------------------------------------------------

    async def _here(self, request: web.BaseRequest, kind: Kind, extra: Headers) -> web.StreamResponse:
        parts = self._parts
        parts.counts.requests[kind.name.lower(), "here"] += 1
        sent = headers.for_upstream(request.headers, request.remote or "", request.scheme)
        sent.popall(headers.HOPS, None)
        again = kind is not Kind.WRITE and request.method in READING_METHODS

        async def finish(answered: Headers) -> None:
            answered[headers.NODE] = parts.node
            answered.extend(extra)
            if kind is Kind.WRITE:
                await self._set_cookie(request, answered)

        try:
            return await self._carry(request, self._settings.target, APPLICATION, sent, finish, again=again)
        except NotSent as error:
            message = f"{error.message} at {self._settings.target}: start it, or correct proxy.target"
            raise Problem(HTTPStatus.BAD_GATEWAY, "no_application", message, outcome="not_done") from error

    async def _set_cookie(self, request: web.BaseRequest, answered: Headers) -> None:
        """Where the databases are now: everything that the application did before it answered is in it.

        What the client had seen before, of each database, is never taken from its cookie, but when it is lost.
        """
        now = await self._parts.positions.now()
        if now is None:
            answered[headers.BEHIND] = headers.write_hops(self._settings.databases)
            return
        if self._parts.local.is_primary:
            for name, at in now.items():
                self._parts.local.databases[name].advance(at)
        # One reading is the answer to many requests.
        now, seen = dict(now), self._seen(request)
        for name, at in seen.items():
            # The client has seen more than this node has: it is behind, or not the primary any more.
            if at.txid > now.get(name, Position.ZERO).txid and not await self._parts.catch_up.is_lost(name, at):
                now[name] = at
        if now and now != seen:
            answered.add("Set-Cookie", cookie.write(self._settings.cookie, now, self._settings.cookie_age_s))

    async def _carry(
        self, request: web.BaseRequest, base: str, who: str, sent: Headers, finish: Finish, *, again: bool
    ) -> web.StreamResponse:
        upstream, timeouts = self._parts.upstream, self._settings.timeouts
        if websocket.is_handshake(request):
            url = url_of(base, request)
            return await websocket.relay(upstream.session, request, url, who, sent, timeouts, again=again)
        return await upstream.relay(request, base, who, sent, finish, again=again)


async def _as_it_is(_: Headers) -> None:
    """The primary's proxy has said everything."""


def _circle(message: str) -> Problem:
    return Problem(HTTPStatus.LOOP_DETECTED, "circle", message, outcome="not_done")


def _nobody(message: str) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "no_primary", f"{message}: ask again", outcome="not_done")
