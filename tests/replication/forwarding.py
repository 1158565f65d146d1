"""Nodes that forward: a primary whose applier is a twin, replicas whose applications are; real stores, real TCP."""

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pyfuse3
import trio

from litereplica.applier.link import ApplierLink
from litereplica.config import NodeSettings, Settings, WritesSettings
from litereplica.config.units import Seconds
from litereplica.errors import Unavailable
from litereplica.ltx.decode import PageBlock, RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.mount.access import Access
from litereplica.mount.elsewhere import BecamePrimary, commit_elsewhere
from litereplica.mount.operations import Operations
from litereplica.node.forwarder import Forwarder
from litereplica.node.remote_writes import RemoteWrites
from litereplica.replication.client import ReplicationClient
from litereplica.replication.server import ReplicationServer
from tests.replication.nodes import PAGE, Node


class TwinApplier:
    """Does what the applier and the mount do together: takes a lock, and commits what is expected.

    ``busy``: an application has the lock. ``dead``: there is no child; what is asked is lost.
    """

    def __init__(self, node: "WritingNode") -> None:
        self.node = node
        self.busy = False
        self.dead = False
        self.pid = 4711
        self.commits = 0
        self.waiting: list[Callable[[], None]] = []
        self.kills = 0

    def commit(self, database: str, number: int, record: bytes | Path, length: int, limit_s: float) -> None:  # noqa: ARG002
        if self.dead:
            return
        data = record if isinstance(record, bytes) else record.read_bytes()
        assert len(data) == length

        def do() -> None:
            committer = self.node.writes.committer
            try:
                self._commit(database, data)
            except pyfuse3.FUSEError:
                committer.on_commit_refused(database, number, "the mount refused it", busy=False)
            else:
                committer.on_committed(database, number)

        self.commits += 1
        self.waiting.append(do)
        self.run()

    def run(self) -> None:
        """Do what waits, unless an application has the lock."""
        while self.waiting and not self.busy:
            self.waiting.pop(0)()

    def _commit(self, name: str, data: bytes) -> None:
        node = self.node
        header, pages = None, []
        for event in RecordDecoder().feed(data):
            if isinstance(event, RecordHeader):
                header = event
            elif isinstance(event, PageBlock):
                pages += [(pgno, bytes(page)) for pgno, page in event.pages]
        assert header is not None
        node.access.check(name)
        origin = node.access.take_expected(name, node.position(name))
        database = node.store.get(name) or node.store.create(name)
        if not database.exists:
            database.set_page_size(header.page_size)
        database.commit(pages, header.commit, lambda: None, origin)

    def give_up(self, database: str, number: int) -> None:
        """The lock was not to be had."""
        self.waiting.clear()
        self.node.writes.committer.on_commit_refused(database, number, "process 1 (sqlite3)", busy=True)

    def die(self) -> None:
        """Another child is up, which knows of nothing."""
        self.waiting.clear()
        self.node.writes.committer.on_restarted()
        self.node.writes.halting.on_restarted()
        self.node.writes.forwarder.on_restarted()

    def kill(self) -> None:
        self.kills += 1
        self.die()

    def hold(self, database: str, number: int, limit_s: float) -> None:  # noqa: ARG002
        # Never inside the call: the applier is another process.
        trio.lowlevel.current_trio_token().run_sync_soon(self.node.writes.halting.on_held, database, number)

    def unhold(self, database: str) -> None:
        pass

    def report(self, database: str, number: int) -> None:
        found = self.node.store.databases[database]
        if self.node.applies:
            found.set_applied(found.position.txid)
        self.node.writes.forwarder.on_reported(number)


@dataclasses.dataclass
class Pages:
    """What an application has written (mount.elsewhere.LocalPages)."""

    pages: dict[int, bytes]
    commit: int
    page_size: int = PAGE

    @property
    def pgnos(self) -> list[int]:
        return sorted(self.pages)

    def read(self, start: int, end: int) -> list[tuple[int, bytes]]:
        return [(pgno, self.pages[pgno]) for pgno in self.pgnos[start:end]]


class WritingNode(Node):
    """A node with all that forwards, on either role."""

    def __init__(self, root: Path, name: str, epoch: int = 1, timeout_s: float = 5.0) -> None:
        super().__init__(root, name, epoch)
        self.access = Access()
        self.applier = TwinApplier(self)
        self.client: ReplicationClient | None = None
        self.completed: list[int] = []
        settings = dataclasses.replace(
            Settings(), node=NodeSettings(name=name), writes=WritesSettings("forward", timeout_s=Seconds(timeout_s))
        )
        self.writes = RemoteWrites(
            settings,
            self.store,
            Operations(self.store, self.access),
            self.access,
            link=lambda: cast("ApplierLink", self.applier),
            is_foreign=lambda database: self.client is not None and database in self.client.foreign,
            may_commit=lambda _database: True,
            kill_applier=self.applier.kill,
        )

    @property
    def forwarder(self) -> Forwarder:
        return self.writes.forwarder

    @property
    def forwarded(self) -> dict[str, int]:
        """Transactions of applications here, by outcome; none that is not there."""
        return {name: count for name, count in self.writes.counts.figures().forwarded.items() if count}

    # -- roles

    def lead(self) -> None:
        self.access.primary = True
        self.writes.lead()

    @asynccontextmanager
    async def leading(self, port: int = 0, **options: Any) -> AsyncIterator[ReplicationServer]:
        self.lead()
        async with trio.open_nursery() as nursery:
            await self.writes.begin(nursery)
            async with self.serving(
                port, downstream=self.writes, is_primary=lambda: self.access.primary, **options
            ) as it:
                yield it
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def forwarding(self, port: int, **options: Any) -> AsyncIterator[ReplicationClient]:
        """Follow, and forward what ``write`` writes."""
        async with self.following(port, upstream=self.writes, **options) as self.client:
            yield self.client
        self.client = None

    # -- what an application of a replica does

    def change(self, name: str = "app.db", pages: int = 2) -> Pages:
        """Some pages of a database changed, none added."""
        count = self.database(name).page_count
        pgnos = {1, *(self.random.randint(1, count) for _ in range(pages - 1))}
        return Pages({pgno: self.random.randbytes(PAGE) for pgno in pgnos}, count)

    async def write(self, pages: Pages | None = None, name: str = "app.db", *, durable: bool = False) -> int:
        """Commit as an application does, and as the mount does when this node is promoted meanwhile; the TXID.

        Raises Refused, Unavailable.
        """
        database = self.store.get(name) or self.store.create(name, PAGE)
        written = pages if pages is not None else self.change(name)
        txid = database.position.txid + 1
        try:
            known = await commit_elsewhere(
                self.access, database, written, lambda: None, lambda: self.completed.append(txid), durable=durable
            )
        except BecamePrimary:
            assert self.access.primary
            database.commit(written.read(0, len(written.pages)), written.commit, lambda: None)
            return txid
        if durable and not known:
            raise Unavailable("it is not known whether it is durable")
        assert database.applied >= txid
        return txid
