"""One cluster's leases, wherever they are kept."""

import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator
from typing import Any

import trio

from litereplica.cluster.lease import Endpoint, Holding, Member, Standing
from litereplica.errors import Unavailable
from litereplica.lease.base import Lease
from litereplica.lease.consul import ConsulLease, ConsulOptions
from litereplica.lease.memory import MemoryLease, MemoryStore
from tests.support.consul import Agent
from tests.support.nodes import Node, Nodes

TTL_S = 3.0
LIMIT_S = 5.0
_STARTS = itertools.count()


def endpoint(node: str, instance: str = "") -> Endpoint:
    return Endpoint(node, instance or f"{node}-{next(_STARTS)}", f"http://{node}:20202", f"{node}:20203")


def member(at: Endpoint, *, epoch: int = 0, total: int = 0, vacancy: int = 0) -> Member:
    return Member(at, Standing(epoch, total), candidate=True, priority=0, vacancy=vacancy)


class Place:
    """Where the leases of one cluster are kept."""

    def __init__(self, agent: Agent | None, **options: Any) -> None:
        self.agent = agent
        self.store = MemoryStore()
        self.options = {"ttl_s": TTL_S, "key": f"litereplica/{uuid.uuid4().hex[:8]}"} | options
        self._made: list[Lease] = []

    def lease(self, at: Endpoint, node_id: str = "", **options: Any) -> Lease:
        """A client that has not joined."""
        made: Lease
        if self.agent is None:
            made = MemoryLease(self.store, at.node, TTL_S, node_id or at.node)
        else:
            chosen: dict[str, Any] = {"urls": [self.agent.url], "token": self.agent.token} | self.options | options
            made = ConsulLease(ConsulOptions(**chosen), at.instance, node_id or at.node)
        self._made.append(made)
        return made

    async def joined(
        self, node: str, *, cluster: str = "", node_id: str = "", **options: Any
    ) -> tuple[Lease, Endpoint]:
        """A client of a new start of a node, joined."""
        at = endpoint(node)
        made = self.lease(at, node_id, **options)
        await made.join(cluster, member(at))
        return made, at

    def forget(self) -> None:
        """The store loses everything of this cluster."""
        if self.agent is None:
            self.store.wipe()
        else:
            assert self.agent.ask("DELETE", f"/v1/kv/{self.options['key']}?recurse") is True

    def end_session(self, holder: Endpoint) -> None:
        """The session with which the lease is held ends, whatever its holder does."""
        if self.agent is None:
            self.store.end_session(holder.instance)
        else:
            (entry,) = self.agent.ask("GET", f"/v1/kv/{self.options['key']}?consistent")
            assert self.agent.ask("PUT", f"/v1/session/destroy/{entry['Session']}") is True

    async def close(self) -> None:
        for made in self._made:
            await made.close()


@contextlib.asynccontextmanager
async def place(agent: Agent | None, **options: Any) -> AsyncIterator[Place]:
    """Close every client at the end."""
    made = Place(agent, **options)
    try:
        yield made
    finally:
        await made.close()


async def held(kept: Place, node: str = "a", **options: Any) -> tuple[Lease, Holding]:
    lease, at = await kept.joined(node, **options)
    return lease, await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)


async def until_done(call: Any, *arguments: Any, limit_s: float = 30.0) -> Any:
    """Repeat what is Unavailable; as every user of a lease does."""
    with trio.fail_after(limit_s):
        while True:
            try:
                return await call(*arguments)
            except Unavailable:
                await trio.sleep(0.05)


def leased_node(
    nodes: Nodes, name: str, url: str, key: str, *, ttl_s: float = TTL_S, ports: tuple[int, int] | None = None,
    reached_at: int = 0, timeout: str = "10s", on_replica: str = "refuse",
) -> Node:  # fmt: skip
    """A real node that is not started.

    ``ports``: of HTTP and replication, any by default. ``reached_at``: the port at which others find its replication,
    if not its own. ``timeout``: of replication.
    """
    node = nodes.make(name, ports=ports)
    place = f"127.0.0.1:{node.replication_port}"
    node.configure(
        http={"listen": f"127.0.0.1:{node.http_port}", "advertise": node.url},
        replication={
            "listen": place,
            "advertise": f"127.0.0.1:{reached_at}" if reached_at else place,
            "timeout": timeout,
        },
        lease={"type": "consul", "consul": {"urls": [url], "key": key, "ttl": f"{ttl_s:g}s"}},
        writes={"on_replica": on_replica},
    )
    return node
