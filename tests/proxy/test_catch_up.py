"""Which positions are lost: only a primary that may commit can say so, and a cookie is never set back by another.

The proxy's parts are real, and so are the requests between them; the nodes are servers that say what they are told to.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from litereplica.config import ProxySettings
from litereplica.config.units import HttpUrl, Seconds
from litereplica.ltx.position import Position
from litereplica.proxy.catch_up import CatchUp
from litereplica.proxy.counts import Counts
from litereplica.proxy.handler import Handler, Parts
from litereplica.proxy.health import Health
from litereplica.proxy.local_node import LocalNode
from litereplica.proxy.node_api import NodeApi
from litereplica.proxy.positions import MountPositions
from litereplica.proxy.primary import Primaries
from litereplica.proxy.upstream import Upstream, make_session

DB: Final = "app.db"
OTHER: Final = "other.db"
SEEN: Final = Position(105, 9)
WAIT_S: Final = 0.7


class SaidNode:
    """A node as far as it is asked. ``serving``: it is primary and its fence is open."""

    def __init__(self, name: str, *, serving: bool, **history: int) -> None:
        """``history``: the checksum at each TXID, as ``at105=9``."""
        self.name = name
        self.serving = serving
        self.history = {int(key.removeprefix("at")): checksum for key, checksum in history.items()}
        self.url = ""
        self.primary: SaidNode = self

    @property
    def position(self) -> Position:
        return max((Position(txid, checksum) for txid, checksum in self.history.items()), key=lambda at: at.txid)

    def _where(self, code: int, at: Position) -> web.Response:
        return web.json_response({"txid": f"{at.txid:016x}", "checksum": f"{at.checksum:016x}"}, status=code)

    async def wait(self, request: web.Request) -> web.Response:
        asked = Position(int(request.query["txid"], 16), int(request.query["checksum"], 16))
        if self.history.get(asked.txid, asked.checksum) != asked.checksum:
            return self._where(409, self.position)
        return self._where(200 if self.position.txid >= asked.txid else 504, self.position)

    async def at(self, request: web.Request) -> web.Response:
        if "txid" not in request.query:
            return self._where(200, self.position)
        txid = int(request.query["txid"], 16)
        checksum = self.history.get(txid)
        text = None if checksum is None else f"{checksum:016x}"
        return web.json_response({"txid": f"{txid:016x}", "checksum": text})

    async def serves(self, _: web.Request) -> web.Response:
        return web.json_response({"node": self.name}, status=200 if self.serving else 503)

    async def status(self, _: web.Request) -> web.Response:
        members = [{"name": each.name, "http": each.url} for each in (self, self.primary)]
        return web.json_response({"node": self.name, "primary": self.primary.name, "members": members})

    def routes(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/wait", self.wait)
        application.router.add_get("/position", self.at)
        application.router.add_get("/primary", self.serves)
        application.router.add_get("/status", self.status)
        return application


async def application(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="well")


@asynccontextmanager
async def served(runner: web.BaseRunner) -> AsyncIterator[str]:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    try:
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


Ask = Callable[..., Awaitable[aiohttp.ClientResponse]]


@asynccontextmanager
async def proxy(mount: Path, node: SaidNode, *, is_primary: bool, **settings: Any) -> AsyncIterator[Ask]:
    """The proxy of ``node``, which has said whether it is primary; yields what asks it with a cookie."""
    (mount / f"{DB}-pos").write_text(f"{node.position}\n")
    async with (
        served(web.AppRunner(node.routes())) as node.url,
        served(web.ServerRunner(web.Server(application))) as target,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client,
    ):
        settings |= {"target": HttpUrl(target), "databases": (DB, OTHER), "wait_s": Seconds(WAIT_S)}
        given = dataclasses.replace(ProxySettings(), **settings)
        async with make_session(given.timeouts) as session:
            local, api, counts = LocalNode(session, node.url, given.databases), NodeApi(session), Counts()
            local.live, local.is_primary, local.primary = True, is_primary, node.primary.name
            primaries = Primaries(local, api)
            positions = MountPositions(mount, given.databases, api, node.url)
            parts = Parts(
                settings=given,
                node=node.name,
                local=local,
                primaries=primaries,
                catch_up=CatchUp(local, api, primaries, given.wait_s),
                positions=positions,
                upstream=Upstream(session, given.timeouts),
                counts=counts,
                health=Health(given, node.name, local, counts),
            )
            async with served(web.ServerRunner(web.Server(Handler(parts)))) as url:

                async def ask(method: str, seen: dict[str, Position]) -> aiohttp.ClientResponse:
                    text = "&".join(f"{name}={at}" for name, at in seen.items())
                    async with client.request(method, url, headers={"Cookie": f"litereplica={text}"}) as answer:
                        await answer.read()
                        return answer

                yield ask
            positions.close()


@asynccontextmanager
async def replica(mount: Path, node: SaidNode, primary: SaidNode, **settings: Any) -> AsyncIterator[Ask]:
    """The proxy of ``node``, which holds ``primary`` to be the primary."""
    node.primary = primary
    async with (
        served(web.AppRunner(primary.routes())) as primary.url,
        proxy(mount, node, is_primary=False, **settings) as ask,
    ):
        yield ask


def was_told(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """What the proxy says of positions."""
    names = ("Litereplica-Other-History", "Litereplica-Behind", "Set-Cookie")
    return {name: answer.headers[name].partition(";")[0] for name in names if name in answer.headers}


def cookie(*texts: str) -> str:
    return f"litereplica={'&'.join(texts)}"


LOST: Final = {"Litereplica-Other-History": DB}
BEHIND: Final = {"Litereplica-Behind": DB}


# -------------------------------------------------------------------------------------------------------------- reads
def test_a_primary_whose_fence_is_closed_does_not_know_what_is_lost(tmp_path: Path) -> None:
    """It was paused, another one took over, and it has not noticed yet."""

    async def run() -> None:
        for history in ({"at103": 7}, {"at105": 8}):
            async with proxy(tmp_path, SaidNode("a", serving=False, **history), is_primary=True) as ask:
                assert was_told(await ask("GET", {DB: SEEN})) == BEHIND
        stale = SaidNode("a", serving=False, at103=7)
        async with proxy(tmp_path, stale, is_primary=True, behind="refuse") as ask:
            assert (await ask("GET", {DB: SEEN})).status == 503

    asyncio.run(run())


def test_a_serving_primary_knows_what_is_lost(tmp_path: Path) -> None:
    async def run() -> None:
        for history in ({"at103": 7}, {"at105": 8}):
            node = SaidNode("a", serving=True, **history)
            async with proxy(tmp_path, node, is_primary=True) as ask:
                assert was_told(await ask("GET", {DB: SEEN})) == LOST | {"Set-Cookie": cookie(f"{DB}={node.position}")}

    asyncio.run(run())


def test_a_replica_believes_a_serving_primary_only(tmp_path: Path) -> None:
    async def run() -> None:
        for serving in (False, True):
            node = SaidNode("b", serving=False, at103=7)
            async with replica(tmp_path, node, SaidNode("a", serving=serving, at103=7)) as ask:
                told = was_told(await ask("GET", {DB: SEEN}))
                assert told == (LOST | {"Set-Cookie": cookie(f"{DB}={node.position}")} if serving else BEHIND)

    asyncio.run(run())


def test_a_replica_whose_own_history_is_the_lost_one_is_behind(tmp_path: Path) -> None:
    """It has other transactions than the client, and the primary has the client's."""

    async def run() -> None:
        node = SaidNode("b", serving=False, at105=8)
        async with replica(tmp_path, node, SaidNode("a", serving=True, at105=9, at106=3)) as ask:
            assert was_told(await ask("GET", {DB: SEEN})) == BEHIND
            asking = asyncio.ensure_future(ask("GET", {DB: SEEN}))
            await asyncio.sleep(WAIT_S / 4)
            node.history = {105: 9}  # it has fetched the primary's
            assert was_told(await asking) == {}
        async with replica(tmp_path, node, SaidNode("a", serving=True, at105=6, at106=3)) as ask:
            node.history = {105: 6}
            assert was_told(await ask("GET", {DB: SEEN})) == LOST | {"Set-Cookie": cookie(f"{DB}={node.position}")}

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------------------- writes
def test_a_write_does_not_set_a_cookie_back(tmp_path: Path) -> None:
    """It wrote nothing, or to another database, on a node that has not yet what the client has seen."""

    async def run() -> None:
        primary = SaidNode("a", serving=True, at103=7, at105=9)
        async with replica(tmp_path, SaidNode("b", serving=False, at103=7), primary, writes="local") as ask:
            assert was_told(await ask("POST", {DB: SEEN})) == {}
            (tmp_path / f"{OTHER}-pos").write_text(f"{Position(4, 4)}\n")
            told = was_told(await ask("POST", {DB: SEEN}))
            assert told == {"Set-Cookie": cookie(f"{DB}={SEEN}", f"{OTHER}={Position(4, 4)}")}
            told = was_told(await ask("POST", {DB: Position(101, 1), OTHER: Position(5, 5)}))
            assert told == {"Set-Cookie": cookie(f"{DB}={Position(103, 7)}", f"{OTHER}={Position(5, 5)}")}, "each"
        (tmp_path / f"{OTHER}-pos").unlink()
        async with proxy(tmp_path, SaidNode("a", serving=False, at103=7), is_primary=True) as ask:
            assert was_told(await ask("POST", {DB: SEEN})) == {}, "nor does a primary that is none any more"

    asyncio.run(run())


def test_a_write_does_not_keep_what_is_lost_in_a_cookie(tmp_path: Path) -> None:
    """The client's next read is to wait for its write, which has a lower TXID."""

    async def run() -> None:
        now = {"Set-Cookie": cookie(f"{DB}={Position(103, 7)}")}
        async with proxy(tmp_path, SaidNode("a", serving=True, at103=7), is_primary=True) as ask:
            assert was_told(await ask("POST", {DB: SEEN})) == now
        node, primary = SaidNode("b", serving=False, at103=7), SaidNode("a", serving=True, at103=7)
        async with replica(tmp_path, node, primary, writes="local") as ask:
            assert was_told(await ask("POST", {DB: SEEN})) == now

    asyncio.run(run())
