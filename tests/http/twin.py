"""Nodes that are nothing but their HTTP interface: the port ``http.node.Node`` by hand, on real sockets.

A cluster of them knows who is primary, as a lease would; what the keeper of a real node decides is decided here in a
few lines.
"""

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import httpx
import trio

from litereplica.cluster.lease import Endpoint, Member, Reign, Standing
from litereplica.cluster.status import (
    DatabaseStatus,
    LeaseStatus,
    MemberStatus,
    NodeStatus,
    ReplicaStatus,
    WritesStatus,
)
from litereplica.config.units import Address
from litereplica.errors import LitereplicaError, Refused
from litereplica.http.app import build
from litereplica.http.listener import bind
from litereplica.http.server import serve
from litereplica.metrics import Metrics
from litereplica.store.database import Database

CLUSTER_ID = "0123456789abcdef"
EPOCH = 7
LISTENERS = 3


class TwinEvents:
    def __init__(self, node: "TwinNode") -> None:
        self._node = node
        self.channels: list[trio.MemorySendChannel[dict[str, Any]]] = []
        self.asked_for_transactions: list[bool] = []

    def listen(self, *, transactions: bool = True) -> "trio.MemoryReceiveChannel[dict[str, Any]] | None":
        self.asked_for_transactions.append(transactions)
        self.channels = [each for each in self.channels if each.statistics().open_receive_channels]
        if len(self.channels) >= LISTENERS:
            return None
        send, receive = trio.open_memory_channel[dict[str, Any]](1000)
        self.channels.append(send)
        send.send_nowait({"type": "init", "data": {"isPrimary": self._node.leads, "hostname": self._node.name}})
        return receive

    def tell(self, event: dict[str, Any]) -> None:
        for channel in self.channels:
            channel.send_nowait(event)

    def cut_off(self) -> None:
        for channel in self.channels:
            channel.close()


class TwinNode:
    """``ready``, ``databases`` and the rest are set by the test; ``asked`` is what failover was called with."""

    def __init__(self, cluster: "TwinCluster", name: str, url: str) -> None:
        self.cluster = cluster
        self.name = name
        self.url = url
        self.ready = True
        self.reason = ""
        self.candidate = True
        self.whole = True
        self.priority = 0
        self.databases: list[DatabaseStatus] = [database("app.db", 10)]
        self.replicas: list[ReplicaStatus] = []
        self.writes: WritesStatus | None = None
        self.lease: LeaseStatus | None = LeaseStatus("consul", "a", EPOCH, 5000, cluster=CLUSTER_ID)
        self.asked: list[tuple[str | None, bool]] = []
        self.refusal: LitereplicaError | None = None
        self.promotes_after_s = 0.0
        self.metrics = Metrics()
        self.events = TwinEvents(self)

    @property
    def leads(self) -> bool:
        return self.cluster.primary == self.name

    @property
    def role(self) -> Literal["primary", "replica"]:
        return "primary" if self.leads else "replica"

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.name, "1", self.url, "127.0.0.1:1")

    def status(self) -> NodeStatus:
        return NodeStatus(
            node=self.name,
            role=self.role,
            primary=self.cluster.primary,
            epoch=self.cluster.epoch,
            ready=self.ready,
            reason=self.reason,
            databases=self.databases,
            replicas=self.replicas,
            lease=self.lease,
            mount=f"/mnt/{self.name}",
            writes=self.writes,
            members=[
                MemberStatus(
                    each.endpoint.node,
                    each.endpoint.http,
                    each.endpoint.replication,
                    each.candidate,
                    each.priority,
                    each.standing.epoch,
                    each.standing.total,
                )
                for each in self.members()
            ],
        )

    def database(self, name: str) -> Database | None:  # noqa: ARG002  the port's
        return None

    async def wait_visible(self, database: Database, txid: int) -> int:
        raise NotImplementedError

    def found_damage(self, name: str, pgnos: list[int]) -> None:
        raise NotImplementedError

    def members(self) -> tuple[Member, ...]:
        if not self.cluster.has_lease:
            return ()
        return tuple(
            Member(each.endpoint, Standing(EPOCH, 10, whole=each.whole), each.candidate, each.priority)
            for each in self.cluster.nodes.values()
        )

    def history(self) -> tuple[Reign, ...]:
        return self.cluster.history

    async def failover(self, to: str | None, force: bool) -> Endpoint:
        self.asked.append((to, force))
        if self.refusal is not None:
            raise self.refusal
        if not self.leads and not force:
            raise Refused(f"{self.name} is not the primary")
        new = to or next(name for name in sorted(self.cluster.nodes) if name != self.name)
        return await self.cluster.promote(new)


class TwinCluster:
    """``nodes`` by name; ``primary`` as the lease has it."""

    def __init__(self) -> None:
        self.nodes: dict[str, TwinNode] = {}
        self.primary: str | None = "a"
        self.epoch = EPOCH
        self.has_lease = True
        self.history: tuple[Reign, ...] = ()
        self._ends: dict[str, trio.Event] = {}
        self._ended: dict[str, trio.Event] = {}
        self._nursery: trio.Nursery | None = None

    def __getitem__(self, name: str) -> TwinNode:
        return self.nodes[name]

    async def promote(self, name: str) -> Endpoint:
        """The lease is ``name``'s at once; it serves a little later."""
        node = self.nodes[name]
        self.primary, self.epoch = name, self.epoch + 1
        if node.promotes_after_s:
            node.ready, node.reason = False, "promoting"
            assert self._nursery is not None
            self._nursery.start_soon(self._become_ready, node)
        return node.endpoint

    @staticmethod
    async def _become_ready(node: TwinNode) -> None:
        await trio.sleep(node.promotes_after_s)
        node.ready, node.reason = True, ""

    async def stop(self, name: str) -> None:
        """Nobody listens at its URL any more."""
        self._ends[name].set()
        await self._ended[name].wait()

    def stop_all(self) -> None:
        for each in self._ends.values():
            each.set()

    async def start(self, nursery: trio.Nursery, *names: str) -> None:
        self._nursery = nursery
        for name in names:
            listener = bind(Address("127.0.0.1", 0), "http.listen")
            node = self.nodes[name] = TwinNode(self, name, f"http://127.0.0.1:{listener.getsockname()[1]}")
            self._ends[name], self._ended[name] = trio.Event(), trio.Event()
            nursery.start_soon(self._serve, node, listener)

    async def _serve(self, node: TwinNode, listener: socket.socket) -> None:
        await serve(build(node, node.metrics, f"/data/{node.name}"), listener, self._ends[node.name].wait)
        self._ended[node.name].set()


def database(name: str, txid: int, lag_ms: int | None = 0, damaged: tuple[int, ...] = ()) -> DatabaseStatus:
    return DatabaseStatus(name, f"{txid:016x}", f"{txid * 3:016x}", f"{txid:016x}", "wal", 4096, 12, lag_ms, damaged)


@asynccontextmanager
async def running(*names: str) -> AsyncIterator[TwinCluster]:
    """A cluster of nodes, the first of which is primary."""
    cluster = TwinCluster()
    async with trio.open_nursery() as nursery:
        await cluster.start(nursery, *names)
        try:
            yield cluster
        finally:
            cluster.stop_all()
            nursery.cancel_scope.deadline = trio.current_time() + 10


@contextmanager
def running_beside(*names: str) -> Iterator[TwinCluster]:
    """The same in a thread of its own, for tests that start programs; prepared before the first question."""
    clusters: list[TwinCluster] = []
    token: list[trio.lowlevel.TrioToken] = []
    started = threading.Event()

    async def live() -> None:
        async with running(*names) as cluster:
            clusters.append(cluster)
            token.append(trio.lowlevel.current_trio_token())
            started.set()
            await trio.sleep_forever()

    async def main() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await live()

    scopes: list[trio.CancelScope] = []
    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield clusters[0]
    finally:
        token[0].run_sync_soon(scopes[0].cancel)
        thread.join(20)
        assert not thread.is_alive()


@asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as asking:
        yield asking
