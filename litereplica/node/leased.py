"""A node whose role a lease decides: what its keeper is made of.

Knows which settings become what. Does not know how roles are decided (node.keeper) or changed (node.data_plane).
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from litereplica.cluster.lease import Endpoint, Member, Standing, Timing
from litereplica.config import Settings
from litereplica.config.settings import ConsulSettings
from litereplica.lease.base import Lease
from litereplica.lease.will import Will
from litereplica.mount.access import fence_clock
from litereplica.node.data_plane import DataPlane
from litereplica.node.keeper import Keeper
from litereplica.store.store import Store


@contextmanager
def opened_will(settings: Settings) -> Iterator[Will | None]:
    """The child that ends the lease when this process does not, where there is a lease. Blocking.

    What raises has not stopped in order: nobody has given the lease up then. The caller has ended the event loop and
    taken the mount away by the time that this is left, so that no commit is accepted any more.
    """
    if settings.lease.type != "consul":
        yield None
        return
    will = Will()
    will.start()
    try:
        yield will
    except BaseException:
        trio.run(will.abandon)
        raise
    trio.run(will.close)


def make_keeper(settings: Settings, store: Store, plane: DataPlane, will: Will | None) -> Keeper:
    """The keeper of this start of the node."""
    http, replication = settings.http.advertised, settings.replication.advertised
    assert http is not None
    assert replication is not None
    consul = settings.lease.consul
    me = Endpoint(settings.node.name, uuid.uuid4().hex, http, str(replication))
    # Its id has to be the same at the next start.
    store.remember(lambda state: state)
    return Keeper(
        _open_lease(consul, me.instance, store.state.node_id, will),
        plane,
        me,
        Timing(consul.ttl_s),
        candidate=settings.node.candidate,
        priority=settings.node.priority,
        outage=consul.outage,
        clock=fence_clock,
        awake=time.monotonic,
        known_cluster=store.state.cluster,
    )


def configured_members(settings: Settings) -> tuple[Member, ...]:
    """Without a lease: this node and the static primary, if there is one."""
    primary = settings.lease.static.primary
    if settings.lease.type != "static" or primary is None:
        return ()
    unknown = Standing(0, 0)
    at = Endpoint(primary.name, "", primary.http, str(primary.replication))
    found = [Member(at, unknown, candidate=True, priority=0)]
    if settings.node.name != primary.name:
        http = settings.http.advertised or f"http://{settings.http.listen}"
        replication = settings.replication.advertised or settings.replication.listen
        me = Endpoint(settings.node.name, "", http, str(replication))
        found.append(Member(me, unknown, candidate=False, priority=0))
    return tuple(found)


def _open_lease(consul: ConsulSettings, instance: str, node_id: str, will: Will | None) -> Lease:
    # A node without Consul does not pay for its library: 9 MB, and most of a second.
    from litereplica.lease.consul import ConsulLease, ConsulOptions  # noqa: PLC0415

    return ConsulLease(ConsulOptions.of(consul), instance, node_id, will)
