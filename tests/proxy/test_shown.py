"""What is committed and not shown yet is not taken for there: its writer stands still within COMMIT."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from litereplica.config import ProxySettings
from litereplica.ltx.position import Position
from litereplica.proxy.catch_up import CatchUp
from litereplica.proxy.local_node import LocalNode
from litereplica.proxy.node_api import NodeApi
from litereplica.proxy.primary import Primaries
from litereplica.proxy.upstream import make_session
from tests.proxy.site import DATABASE, Site
from tests.support.late import late
from tests.support.nodes import Nodes
from tests.support.sql import Session, run_sql
from tests.support.waiting import wait_until

# A COMMIT makes some calls, and its writer stands still after each.
LATE_S = 1.0


class TellingNode:
    """A replica that tells ``events``, and whose readers see up to ``shown``."""

    def __init__(self, newest: Position) -> None:
        self.newest = newest
        self.shown = newest.txid - 1
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.waits: list[str] = []

    def tell(self, newest: Position, **data: bool) -> None:
        self.newest = newest
        told = {"txID": f"{newest.txid:016x}", "postApplyChecksum": f"{newest.checksum:016x}"}
        self.events.put_nowait({"type": "tx", "db": DATABASE, "data": told | data})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        event: dict[str, Any] = {"type": "init", "data": {"isPrimary": False, "hostname": "a"}}
        while True:
            await answer.write(json.dumps(event).encode() + b"\n")
            event = await self.events.get()

    async def status(self, _: web.Request) -> web.Response:
        txid, checksum = f"{self.newest.txid:016x}", f"{self.newest.checksum:016x}"
        database = {"name": DATABASE, "txid": txid, "applied": txid, "checksum": checksum}
        return web.json_response({"node": "b", "databases": [database]})

    async def wait(self, request: web.Request) -> web.Response:
        self.waits.append(request.query["timeout"])
        txid = int(request.query["txid"], 16)
        if txid > self.shown:
            await asyncio.sleep(float(request.query["timeout"].removesuffix("ms")) / 1000)
        here = {"txid": f"{self.newest.txid:016x}", "checksum": f"{self.newest.checksum:016x}"}
        return web.json_response(here, status=200 if txid <= self.shown else 504)


@asynccontextmanager
async def followed(node: TellingNode) -> AsyncIterator[tuple[LocalNode, CatchUp]]:
    """What a proxy knows of it."""
    routes = web.Application()
    routes.router.add_get("/events", node.stream)
    routes.router.add_get("/status", node.status)
    routes.router.add_get("/wait", node.wait)
    runner = web.AppRunner(routes, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    session = make_session(ProxySettings().timeouts)
    local = LocalNode(session, f"http://127.0.0.1:{runner.addresses[0][1]}", (DATABASE,))
    api = NodeApi(session)
    listening = asyncio.create_task(local.run())
    try:
        async with asyncio.timeout(10):
            while not local.live:
                await asyncio.sleep(0.01)
        yield local, CatchUp(local, api, Primaries(local, api), 3.0)
    finally:
        listening.cancel()
        await session.close()
        await runner.cleanup()


async def told(local: LocalNode, at: Position) -> None:
    async with asyncio.timeout(10):
        await local.databases[DATABASE].wait(at.txid)


def test_what_was_told_is_there_only_when_it_is_shown() -> None:
    five, six, seven, eight = (Position(txid, txid) for txid in range(5, 9))

    async def run() -> None:
        node = TellingNode(five)
        async with followed(node) as (local, catch_up):
            assert not catch_up.is_there({DATABASE: five}), "a status names what is applied, and it may not be shown"
            node.tell(six, shown=False)
            await told(local, six)
            assert not catch_up.is_there({DATABASE: six})
            assert catch_up.is_there({DATABASE: five}), "the next one is built upon it"
            node.tell(seven, shown=True)
            await told(local, seven)
            assert catch_up.is_there(
                {
                    DATABASE: six,
                }
            )
            assert catch_up.is_there({DATABASE: seven})
            node.tell(eight)
            await told(local, eight)
            assert not catch_up.is_there({DATABASE: eight}), "a node of before this says nothing"

    asyncio.run(run())


def test_who_waits_for_it_goes_on_as_soon_as_the_node_says_so() -> None:
    five, six = Position(5, 5), Position(6, 6)

    async def run() -> None:
        node = TellingNode(five)
        async with followed(node) as (local, catch_up):
            node.tell(six, shown=False)
            await told(local, six)
            reaching = asyncio.create_task(catch_up.reach({DATABASE: six}))
            await asyncio.sleep(1)
            assert not reaching.done()
            assert 2 <= len(node.waits) <= 5, "it is asked again, and not all the time"
            node.shown = 6
            async with asyncio.timeout(1):
                assert not (await reaching).behind
            assert catch_up.is_there({DATABASE: six}), "and is asked once for all"

    asyncio.run(run())


def test_a_replica_says_of_its_own_applications_alone_that_theirs_may_not_be_shown(nodes: Nodes) -> None:
    """Of what comes from elsewhere nothing is to be asked."""
    primary = nodes.make_primary()
    replica = nodes.make_replica(primary)
    for node in (primary, replica):
        node.configure(writes={"on_replica": "forward"})
        node.start()
    run_sql(primary.path(), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY);")
    replica.wait_for(DATABASE, primary.position())
    with (
        Session(primary.path()) as there,
        Session(replica.path()) as here,
        httpx.stream("GET", f"{replica.url}/events", timeout=20, trust_env=False) as answer,
    ):
        lines = answer.iter_lines()
        assert json.loads(next(lines))["type"] == "init"
        for session, shown in ((there, True), (here, False), (here, False), (there, True)):
            session.run("INSERT INTO t DEFAULT VALUES")
            assert json.loads(next(lines))["data"]["shown"] is shown
            replica.wait_for(DATABASE, primary.position())


def test_a_read_waits_for_a_commit_of_its_own_node_that_has_not_returned(site: Site, tmp_path: Path) -> None:
    forward = {"writes": {"on_replica": "forward"}}
    primary = site.start(site.nodes.make_primary(), sections=forward)
    replica = site.start(site.nodes.make_replica(primary.node), sections=forward)
    run_sql(primary.node.path(DATABASE), "PRAGMA journal_mode=WAL; CREATE TABLE note (id INTEGER PRIMARY KEY, text);")
    before = primary.node.position(DATABASE)
    replica.node.wait_for(DATABASE, before)
    with Session(replica.node.path(DATABASE)) as writer, replica.client() as client:
        writer.run("PRAGMA synchronous=NORMAL")
        writer.run("SELECT count(*) FROM note")
        with late(writer, "pwrite64", LATE_S, tmp_path / "trace"):
            writer.send("INSERT INTO note (text) VALUES ('x')")
            wait_until(lambda: replica.node.position(DATABASE) != before, "it is logged", 20)
            position = replica.node.position(DATABASE)
            answer = client.get("/rows", headers={"Cookie": f"litereplica={DATABASE}={position}"})
            writer.receive()
    assert answer.json()["rows"] == ["x"]
    assert "Litereplica-Behind" not in answer.headers
