"""A primary, replicas and a line between them, in one process: real stores, real TCP, the applier played by hand."""

import errno
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from litereplica.config.units import Address
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.ltx.position import Position
from litereplica.replication.client import ReplicationClient
from litereplica.replication.server import ReplicationServer
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.snapshot import FinishedSnapshot
from litereplica.store.store import Store

PAGE = 4096
HEARTBEAT_S = 0.2
TIMEOUT_S = 1.5


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.002)


def content(database: Database) -> bytes:
    """The database's pages as its file and its log make them, checked against its position."""
    path = database.file_path
    pages = bytearray(path.read_bytes()) if path.exists() else bytearray()
    cursor = database.log.cursor(database.log.first_txid - 1)
    decoder = RecordDecoder()
    size = database.page_size
    while data := cursor.read(1 << 20):
        for event in decoder.feed(data):
            if isinstance(event, RecordHeader):
                wanted = event.commit * event.page_size
                pages[wanted:] = bytes(max(0, wanted - len(pages)))
            elif isinstance(event, PageBlock):
                for pgno, page in event.pages:
                    pages[(pgno - 1) * size : pgno * size] = page
    checksum = 0
    for pgno in range(1, database.page_count + 1):
        page = bytes(pages[(pgno - 1) * size : pgno * size])
        if page != bytes(size):
            checksum ^= page_checksum(pgno, page)
    assert checksum == database.position.checksum
    assert database.checksums.xor_range(1, database.page_count) == checksum
    return bytes(pages[: database.page_count * size])


class FailingDisk(Disk):
    """A disk that is full, or loses what it was asked to make durable, or cannot be read, while it is told to."""

    full = False
    loses = False
    unreadable: frozenset[Path] = frozenset()
    no_large_files = False
    # A large file gets its room when this is set.
    allocating: threading.Event | None = None
    # Told of each new folder, new name, reservation and fdatasync; says what to refuse.
    refuses: Callable[[str, Path], int] = staticmethod(lambda _, __: 0)

    def _ask(self, operation: str, path: Path) -> None:
        code = self.refuses(operation, path)
        if code:
            raise OSError(code, os.strerror(code))

    def mkdir(self, path: Path) -> None:
        self._ask("mkdir", path)
        super().mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._ask("rename", target)
        super().rename(source, target)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink() in self.unreadable:
            raise OSError(errno.EIO, "Input/output error")
        return super().pread(descriptor, size, offset)

    def allocate(self, descriptor: int, offset: int, size: int) -> None:
        self._ask("allocate", Path(f"/proc/self/fd/{descriptor}").readlink())
        if self.no_large_files and size > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.allocating is not None and size > 1_000_000:
            assert self.allocating.wait(20)
        super().allocate(descriptor, offset, size)

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwrite(descriptor, data, offset)

    def fdatasync(self, descriptor: int) -> None:
        self._ask("fdatasync", Path(f"/proc/self/fd/{descriptor}").readlink())
        if self.loses:
            raise OSError(errno.EIO, "Input/output error")
        super().fdatasync(descriptor)


class Node:
    def __init__(self, root: Path, name: str, epoch: int = 1) -> None:
        self.root = root
        self.name = name
        self.disk = FailingDisk()
        self.store = Store.open(root, self.disk, name)
        self.store.epoch = epoch
        self.random = random.Random(7)
        self.applies = True
        self.store.listeners.append(self._apply)

    def _apply(self, database: Database) -> None:
        if self.applies and database.applied < database.position.txid:
            database.set_applied(database.position.txid)

    def close(self) -> None:
        self.store.close()

    def database(self, name: str = "app.db") -> Database:
        found = self.store.get(name)
        assert found is not None
        return found

    def position(self, name: str = "app.db") -> Position:
        found = self.store.get(name)
        return Position.ZERO if found is None else found.position

    # -- what an application would do

    def commit(self, pgnos: list[int], commit: int, name: str = "app.db", page_size: int = PAGE) -> None:
        database = self.store.get(name) or self.store.create(name)
        if not database.exists:
            database.set_page_size(page_size)
        pages = [(pgno, self.random.randbytes(page_size)) for pgno in sorted(pgnos)]
        database.commit(pages, commit, lambda: None)

    def grow(self, pages: int, name: str = "app.db", step: int = 64) -> None:
        found = self.store.get(name)
        before = 0 if found is None else found.page_count
        for first in range(before + 1, before + pages + 1, step):
            last = min(first + step - 1, before + pages)
            self.commit(list(range(first, last + 1)), last, name)

    def touch(self, times: int = 1, name: str = "app.db") -> None:
        for _ in range(times):
            count = self.database(name).page_count
            self.commit([1, self.random.randint(2, count)], count, name)

    def checkpoint(self, name: str = "app.db") -> None:
        database = self.database(name)
        pages = content(database)
        database.file_path.parent.mkdir(parents=True, exist_ok=True)
        database.file_path.write_bytes(pages)
        database.file_complete()

    async def begin_segment(self, name: str = "app.db") -> None:
        """The next record begins a new segment, as if the newest were full."""
        database = self.database(name)
        await database.log.sync()
        newest = database.log._newest
        assert newest is not None
        database.log._seal(newest)
        database.log._begin()
        database.log._limit = -1

    async def trim(self) -> None:
        """Forget what retention may forget, at once."""
        for database in self.store.databases.values():
            await database.log.sync()
        await self.store.maintain(-60.0, 1 << 40)

    async def install(self, finished: FinishedSnapshot) -> None:
        database = self.store.install(
            finished.database, finished.pages_file, finished.page_size, finished.page_count, finished.position,
            finished.checksums, finished.epoch, finished.timestamp_ms,
        )  # fmt: skip
        if database.pending_install is not None:
            database.file_path.write_bytes(database.pending_install.read_bytes())
            database.installed()
        database.set_applied(finished.position.txid)

    # -- roles

    @asynccontextmanager
    async def serving(self, port: int = 0, **options: Any) -> AsyncIterator[ReplicationServer]:
        options = {"heartbeat_s": HEARTBEAT_S, "timeout_s": TIMEOUT_S, **options}
        server = ReplicationServer(self.store, self.name, lambda: self.store.epoch, **options)
        async with trio.open_nursery() as nursery:
            self.port = await nursery.start(server.serve, "127.0.0.1", port)
            yield server
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def following(self, port: int, **options: Any) -> AsyncIterator[ReplicationClient]:
        options = {"heartbeat_s": HEARTBEAT_S, "timeout_s": TIMEOUT_S, "install": self.install, **options}
        client = ReplicationClient(self.store, self.name, Address("127.0.0.1", port), **options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield client
            nursery.cancel_scope.cancel()


def same(primary: Node, replica: Node, name: str = "app.db") -> bool:
    return replica.position(name) == primary.position(name)


async def old(primary: Node, pages: int, *names: str) -> None:
    """Databases (app.db) whose logs no longer begin at their beginning: only a snapshot can bring them."""
    chosen = names or ("app.db",)
    for name in chosen:
        primary.grow(pages, name, step=512)
        primary.checkpoint(name)
        await primary.begin_segment(name)
        primary.touch(1, name)
    await primary.trim()
    assert all(primary.database(name).log.first_txid > 1 for name in chosen)


class Line:
    """A network between a replica and a primary that can be cut, with or without the ends being told."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.cut_after_bytes: int | None = None
        self.sent_bytes = 0
        self._open = trio.Event()
        self._open.set()
        self._scopes: set[trio.CancelScope] = set()

    @asynccontextmanager
    async def to(self, port: int) -> AsyncIterator["Line"]:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]

        async def handle(near: trio.SocketStream) -> None:
            self.connections += 1
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                async with near, await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, False, scope)
                    nursery.start_soon(self._pump, far, near, True, scope)
            self._scopes.discard(scope)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handle, listeners)
            yield self
            nursery.cancel_scope.cancel()

    async def _pump(self, source: trio.SocketStream, target: trio.SocketStream, counted: bool,
                    scope: trio.CancelScope) -> None:  # fmt: skip
        try:
            while data := await source.receive_some(64 * 1024):
                await self._open.wait()
                if counted and self.cut_after_bytes is not None:
                    data = data[: max(0, self.cut_after_bytes - self.sent_bytes)]
                await target.send_all(data)
                if counted:
                    self.sent_bytes += len(data)
                    if self.cut_after_bytes is not None and self.sent_bytes >= self.cut_after_bytes:
                        self.cut_after_bytes = None
                        break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    def cut(self) -> None:
        for scope in self._scopes:
            scope.cancel()

    def go_silent(self) -> None:
        """Bytes vanish, nobody is told."""
        self._open = trio.Event()

    def speak(self) -> None:
        self._open.set()
