"""Where this node's databases are at this moment, for the cookie after a write.

Knows ``DB-pos`` in the mount, and whom to ask when that cannot be read. Does not know cookies.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Final

from litereplica.errors import Corrupt, Unavailable
from litereplica.ltx.position import Position
from litereplica.proxy.node_api import NodeApi, position_in

POSITION_SUFFIX: Final = "-pos"
LONGEST_POSITION_BYTES: Final = 64
# The mount answers in a tenth of a millisecond; a node that stands still holds whoever reads.
READ_LIMIT_S: Final = 1.0

Found = dict[str, Position]


class MountPositions:
    """Reads in a thread, because a node that does not answer must not hold the loop; one reading serves many."""

    def __init__(self, mount: Path, databases: tuple[str, ...], api: NodeApi, url: str) -> None:
        self._files = {name: f"{mount / name}{POSITION_SUFFIX}" for name in databases}
        self._api = api
        self._url = url
        self._reader = _Reader(self._read)
        # The reading that has begun, and the one that everybody waits for who came after that.
        self._under_way: asyncio.Future[Found] | None = None
        self._next: asyncio.Task[Found] | None = None

    async def now(self) -> Found | None:
        """Every database that there is, as it is now or later; None when nobody answers."""
        if self._next is None:
            self._next = asyncio.create_task(self._read_next())
        # No right to the mount, no mount, or nothing in it: then the node knows whether there is a database.
        with contextlib.suppress(OSError, Corrupt, TimeoutError):
            async with asyncio.timeout(READ_LIMIT_S):
                return await asyncio.shield(self._next)
        try:
            return await self._ask()
        except Unavailable:
            return None

    def close(self) -> None:
        """A thread that is held ends with the process."""
        self._reader.close()
        if self._next is not None:
            self._next.cancel()

    async def _read_next(self) -> Found:
        if self._under_way is not None:
            await asyncio.wait([self._under_way])
        # From here on it is too late to join: the answer may be from before whatever is done now.
        self._next = None
        reading = self._under_way = asyncio.wrap_future(self._reader.read())
        return await reading

    def _read(self) -> Found:
        found = {}
        for name, file in self._files.items():
            try:
                descriptor = os.open(file, os.O_RDONLY)  # half the time of open(), which asks for size and kind
            except FileNotFoundError:
                continue
            try:
                text = os.read(descriptor, LONGEST_POSITION_BYTES)
            finally:
                os.close(descriptor)
            found[name] = Position.parse(text.decode("ascii", "replace").rstrip("\n"))
        if not found:
            raise FileNotFoundError("no database: there is none yet, or the mount is away")
        return found

    async def _ask(self) -> Found:
        """From the node. Raises Unavailable: also when it says neither where a database is nor that there is none."""
        found = {}
        for name in self._files:
            code, document = await self._api.ask(self._url, "/position", {"db": name})
            position = position_in(document)
            if code == HTTPStatus.OK and position is not None:
                found[name] = position
            elif code != HTTPStatus.NOT_FOUND:
                raise Unavailable(f"{self._url} answers {code} when asked where {name} is")
        return found


class _Reader:
    """A thread that nobody waits for. The process ends though it is held, which one of concurrent.futures prevents.

    That module joins its threads at exit (_python_exit in concurrent/futures/thread.py).
    """

    def __init__(self, read: Callable[[], Found]) -> None:
        self._read = read
        self._wanted: SimpleQueue[Future[Found] | None] = SimpleQueue()
        Thread(target=self._run, name="positions", daemon=True).start()

    def read(self) -> "Future[Found]":
        """What was read, after those that were asked for before; or what that raised."""
        future: Future[Found] = Future()
        self._wanted.put(future)
        return future

    def close(self) -> None:
        """No more is read."""
        self._wanted.put(None)

    def _run(self) -> None:
        while (future := self._wanted.get()) is not None:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                found = self._read()
            except BaseException as error:  # noqa: BLE001 - whoever asked raises it
                future.set_exception(error)
            else:
                future.set_result(found)
