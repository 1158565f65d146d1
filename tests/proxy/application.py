"""A web application of the usual kind, for tests: rows in SQLite, uploads, downloads, streams, WebSockets.

A process of its own: ``application.py PORT DATABASE NAME``. Knows nothing of litereplica but the path of its database.
"""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import aiohttp
from aiohttp import web

PIECE = bytes(range(256)) * 256


class Application:
    def __init__(self, database: str, name: str) -> None:
        self.database = database
        self.name = name
        self.cancelled = 0
        self.closed: list[int | None] = []
        self.broken: Counter[str] = Counter()

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.database, timeout=10, isolation_level=None)
        connection.execute("PRAGMA busy_timeout = 10000")
        return connection

    async def rows(self, _: web.Request) -> web.Response:
        def read() -> list[str]:
            if not Path(self.database).exists():
                return []
            with contextlib.closing(self.connect()) as connection:
                return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY id")]

        return web.json_response({"node": self.name, "rows": await asyncio.to_thread(read)})

    async def add(self, request: web.Request) -> web.Response:
        text = await request.text()

        def write() -> int:
            with contextlib.closing(self.connect()) as connection:
                connection.execute("PRAGMA journal_mode = wal")
                connection.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text)")
                return connection.execute("INSERT INTO note (text) VALUES (?)", (text,)).lastrowid or 0

        return web.json_response({"node": self.name, "id": await asyncio.to_thread(write)}, status=201)

    async def echo(self, request: web.Request) -> web.Response:
        headers = [[name, value] for name, value in request.headers.items()]
        target = request.raw_path
        body = await request.read()
        document = {"node": self.name, "method": request.method, "target": target, "headers": headers}
        answer = web.json_response(document | {"body": body.decode("latin-1")})
        answer.headers.add("Set-Cookie", "one=1")
        answer.headers.add("Set-Cookie", "two=2; Path=/")
        answer.headers["Connection"] = "keep-alive, X-Private"
        answer.headers["X-Private"] = "for one connection"
        return answer

    async def upload(self, request: web.Request) -> web.Response:
        digest, size = hashlib.sha256(), 0
        async for piece in request.content.iter_any():
            digest.update(piece)
            size += len(piece)
        return web.json_response({"size": size, "sha256": digest.hexdigest(), "node": self.name})

    async def download(self, request: web.Request) -> web.StreamResponse:
        pieces = int(request.query["pieces"])
        answer = web.StreamResponse()
        if "length" in request.query:
            answer.content_length = pieces * len(PIECE)
        await answer.prepare(request)
        for _ in range(pieces if request.method == "GET" else 0):
            await answer.write(PIECE)
        return answer

    async def break_off(self, request: web.Request) -> web.StreamResponse:
        """Dies in the middle: before its answer (the first ``times`` of a path's requests), or in it."""
        assert request.transport is not None
        if request.query["when"] == "before":
            await request.read()
            self.broken[request.path] += 1
            if self.broken[request.path] > int(request.query.get("times", "1000000")):
                return web.Response(text="well")
            request.transport.abort()
            return web.Response()
        answer = web.StreamResponse()
        if "length" in request.query:
            answer.content_length = 10 * len(PIECE)
        await answer.prepare(request)
        await answer.write(PIECE)
        await asyncio.sleep(0.1)
        request.transport.abort()
        return answer

    async def early(self, _: web.Request) -> web.Response:
        """Does not want the body."""
        answer = web.Response(status=413, text="too much")
        answer.force_close()
        return answer

    async def events(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        try:
            for number in range(int(request.query.get("count", "1000000"))):
                await answer.write(f"data: {number}\n\n".encode())
                await asyncio.sleep(float(request.query.get("pause", "0.05")))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return answer

    async def slow(self, request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(float(request.query["seconds"]))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return web.Response(text="done")

    async def gone(self, _: web.Request) -> web.Response:
        return web.json_response({"cancelled": self.cancelled, "broken": self.broken, "closed": self.closed})

    async def socket(self, request: web.Request) -> web.StreamResponse:
        if "refuse" in request.query:
            return web.Response(status=403, text="no", headers={"X-Why": "because"})
        socket = web.WebSocketResponse(protocols=("chat",))
        await socket.prepare(request)
        await socket.send_str(json.dumps({"node": self.name, "protocol": socket.ws_protocol}))
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                if message.data in {"abort", "end"}:
                    assert request.transport is not None
                    (request.transport.abort if message.data == "abort" else request.transport.close)()
                    break
                if message.data == "close":
                    await socket.close(code=4001, message=b"as asked")
                    break
                await socket.send_str(f"{self.name}: {message.data}")
            elif message.type is aiohttp.WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        self.closed.append(socket.close_code)
        return socket


def build(database: str, name: str) -> web.Application:
    application = Application(database, name)
    server = web.Application(client_max_size=2**20)
    routes = server.router
    routes.add_get("/rows", application.rows)
    routes.add_post("/rows", application.add)
    routes.add_route("*", "/echo{rest:.*}", application.echo)
    routes.add_route("*", "/upload", application.upload)
    routes.add_get("/download", application.download)
    routes.add_route("*", "/break{rest:.*}", application.break_off)
    routes.add_post("/early", application.early)
    routes.add_get("/events", application.events)
    routes.add_route("*", "/slow", application.slow)
    routes.add_get("/gone", application.gone)
    routes.add_get("/socket", application.socket)
    return server


if __name__ == "__main__":
    port, database, name = sys.argv[1:]
    web.run_app(
        build(database, name),
        host="127.0.0.1",
        port=int(port),
        print=None,
        handler_cancellation=True,
        shutdown_timeout=1.0,
    )
