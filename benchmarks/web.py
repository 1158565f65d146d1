"""A small web application, and clients that ask as fast as they are answered: processes of their own.

``python -m benchmarks.web serve PORT DATABASE`` reads or adds one row for each request. ``… load {JSON}`` keeps
``connections`` connections to ``port`` busy with GET or POST for ``seconds`` and prints every answer's time. Knows HTTP
and SQLite, and nothing of litereplica.
"""

import asyncio
import json
import sqlite3
import sys
import time
from typing import Any

from aiohttp import web

START_LIMIT_S = 20.0
ANSWER_LIMIT_S = 30.0


def serve(port: int, path: str) -> None:
    connection: sqlite3.Connection | None = None

    def database() -> sqlite3.Connection:
        nonlocal connection
        if connection is None:
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    async def read(_: web.Request) -> web.Response:
        row = database().execute("SELECT id, text FROM page WHERE id = 1").fetchone()
        return web.json_response({"id": row[0], "text": row[1]})

    async def add(request: web.Request) -> web.Response:
        row = database().execute("INSERT INTO page (text) VALUES (?)", (await request.text(),)).lastrowid
        return web.json_response({"id": row})

    application = web.Application()
    application.router.add_get("/", read)
    application.router.add_post("/", add)
    web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)


def prepare(path: str) -> None:
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE page (id INTEGER PRIMARY KEY, text)")
        connection.execute("INSERT INTO page (text) VALUES (?)", ("x" * 2000,))
    connection.close()


async def load(options: dict[str, Any]) -> dict[str, Any]:
    """One request after the other on each connection; the cookie of an answer is sent from then on, as browsers do."""
    taken: list[int] = []
    end = time.monotonic() + options["seconds"]

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", options["port"])
        body = b"y" * 100 if options["method"] == "POST" else b""
        length = b"Content-Length: 100\r\n" if body else b""
        head = f"{options['method']} / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n".encode() + length
        cookie = f"Cookie: {options['cookie']}\r\n".encode() if options.get("cookie") else b""
        while time.monotonic() < end:
            begin = time.perf_counter_ns()
            writer.write(head + cookie + b"\r\n" + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = dict(line.split(": ", 1) for line in answer.split("\r\n")[1:] if line)
            if not answer.startswith("HTTP/1.1 200"):
                raise SystemExit(f"an answer that is no success: {answer}")
            await reader.readexactly(int(fields["Content-Length"]))
            taken.append(time.perf_counter_ns() - begin)
            if "Set-Cookie" in fields:
                cookie = f"Cookie: {fields['Set-Cookie'].partition(';')[0]}\r\n".encode()
        writer.close()
        last["cookie"] = cookie.decode().strip().removeprefix("Cookie: ")

    last = {"cookie": ""}
    begin = time.monotonic()
    async with asyncio.timeout(options["seconds"] + ANSWER_LIMIT_S), asyncio.TaskGroup() as tasks:
        for _ in range(options["connections"]):
            tasks.create_task(ask())
    return {"taken_ns": taken, "seconds": time.monotonic() - begin} | last


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "prepare":
        prepare(sys.argv[2])
    else:
        print(json.dumps(asyncio.run(load(json.loads(sys.argv[2])))))
