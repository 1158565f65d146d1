"""One node: its parts, wired by its role.

Knows which parts a role needs and who tells whom. Does not know how they are started and stopped as a whole
(node.main), nor how a change of role is done (node.data_plane) or decided (node.keeper). Without a lease the
configuration decides: ``standalone`` and the static primary lead, others follow.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.lease import Endpoint, Member, Reign
from litereplica.cluster.status import (
    DatabaseStatus,
    HaltStatus,
    LeaseStatus,
    MemberStatus,
    NodeStatus,
    ReplicaPosition,
    ReplicaStatus,
)
from litereplica.config import Settings
from litereplica.errors import Refused
from litereplica.lease.will import Will
from litereplica.ltx.position import format_txid
from litereplica.metrics import Metrics
from litereplica.mount.access import Access, fence_clock
from litereplica.mount.guard import VersionGuard
from litereplica.mount.operations import Operations
from litereplica.mount.session import Session
from litereplica.mount.wait import AdaptiveWait
from litereplica.node.data_plane import DataPlane
from litereplica.node.events import Events
from litereplica.node.keeper import Keeper
from litereplica.node.leased import configured_members, make_keeper
from litereplica.node.published import warn_when_elsewhere
from litereplica.node.scrub import SHOWN_PAGES
from litereplica.node.writes_status import halt_text, writes_status
from litereplica.store.database import Database
from litereplica.store.replica_wal import ensure_wal
from litereplica.store.store import Store

log = structlog.get_logger()

# Replicas get this long to take what they have not yet when the primary stops.
DRAIN_LIMIT_S: Final = 2.0
# The primary gets this long to answer what a replica that stops has sent it.
ANSWER_LIMIT_S: Final = 2.0
# The applier gets this long to finish what it was given; what it does not finish is redone from the log.
APPLIER_STOP_LIMIT_S: Final = 5.0
CHECK_DISK: Final = "check the disk, then restart this node"


class Node:
    """State of this process; ``status`` is safe to call at any time."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        http: socket.socket,
        *,
        will: Will | None = None,
        direct: "Direct | None" = None,
    ) -> None:
        """``will``: who ends the lease when this process is killed. ``direct``: decides the role; tests have theirs."""
        self._direct: Direct = direct or direct_by_settings
        self.will = will
        self.keeper: Keeper | None = None
        self.metrics = Metrics()
        self.settings = settings
        self.store = store
        self.http = http
        self.mount_lost = False
        self.is_stopping = False
        self._session: Session | None = None
        self._wait = AdaptiveWait()
        self._ready = trio.Event()
        self.waits_for = "starting"
        self._guard = VersionGuard()
        primary = settings.lease.static.primary
        names_us = primary is not None and primary.name == settings.node.name
        self.is_fixed_primary = settings.lease.type == "standalone" or (settings.lease.type == "static" and names_us)
        self.access = Access()
        self.access.primary = self.is_fixed_primary
        self.operations = Operations(store, self.access)
        self.plane = DataPlane(settings, store, self.operations, self.access, self._wait)
        is_shown = self.plane.visibility.is_shown
        self.events = Events(self.store, self._primary_name, lambda: self.access.primary, is_shown)
        self.plane.role_listeners.append(self._role_changed)
        writes = self.plane.writes
        writes.halting.changed = writes.halt_client.changed = self.events.halted
        writes.forwarder.not_committed = self.events.not_forwarded
        self.access.halt_text = lambda name: halt_text(name, writes)

    # -- before and after the event loop ---------------------------------------------------------------------------

    def make_wals(self) -> None:
        """Before ``mount``: readers find what a replica's databases have a WAL for. Raises OSError."""
        if not self.is_fixed_primary:
            for database in self.store.databases.values():
                ensure_wal(database)

    def mount(self) -> None:
        """Mount; nothing is answered until ``serve_mount`` runs."""
        session = Session(self.operations, self._wait)
        mount = self.settings.mount
        session.open(mount.dir, allow_other=mount.allow_other, guarded=mount.guard)
        self._session = session

    def unmount(self) -> None:
        """Take the mount away; twice is once."""
        if self._session is not None:
            session, self._session = self._session, None
            session.close()

    # -- while the event loop runs ---------------------------------------------------------------------------------

    async def serve_mount(self, task_status: trio.TaskStatus[trio.Event]) -> None:
        """Answer the kernel; the event is set when the mount is gone."""
        assert self._session is not None
        ended = trio.Event()
        task_status.started(ended)
        await self._session.serve()
        ended.set()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Live the role until cancelled."""
        plane = self.plane
        async with trio.open_nursery() as nursery:
            link = ApplierLink(self.settings.mount.dir, plane.hearing)
            await plane.begin(nursery, link)
            if self.is_fixed_primary:
                # Nothing waits for its hints: a primary is ready before its applier is.
                nursery.start_soon(self._start_applier, link, nursery)
                lease = self.settings.lease
                await plane.run_as_fixed_primary(serves_replicas=lease.type == "static")
                if lease.type == "static" and lease.static.primary is not None:
                    name, published = self.settings.node.name, lease.static.primary.replication
                    nursery.start_soon(warn_when_elsewhere, name, published)
            else:
                await self._start_applier(link, nursery)
                await self._direct(self, nursery)
            nursery.start_soon(plane.scrubber.run)
            nursery.start_soon(self._watch_ready)
            if plane.following.caught_up.is_set():
                self._set_ready()
            task_status.started()

    async def _start_applier(self, link: ApplierLink, nursery: trio.Nursery) -> None:
        await nursery.start(link.run)
        self.access.applier_pid = link.pid or 0

    async def _watch_ready(self) -> None:
        await self.plane.following.caught_up.wait()
        if not self._ready.is_set():
            self._set_ready()

    def look_at_versions(self) -> None:
        """Warn about the SQLite that writes here, where that is to be said."""
        if self.access.primary:
            for database in self.store.databases.values():
                self._guard.look(database)

    def _set_ready(self) -> None:
        self.waits_for = ""
        self._ready.set()
        log.info("ready", node=self.settings.node.name)

    async def wait_ready(self) -> None:
        """Return when applications may start."""
        await self._ready.wait()

    def _primary_name(self) -> str | None:
        return self.settings.node.name if self.access.primary else self.access.primary_name

    def _role_changed(self, role: str, primary: Endpoint | None, epoch: int, reason: str) -> None:
        name = primary.node if primary is not None else None
        self.events.primary_changed(name, reason, epoch, leads=role == "primary")
        self.metrics.role_changed(role, reason)

    async def stop(self) -> None:
        """The parts that have to be told; the rest is cancelled."""
        if self.keeper is not None:
            await self.keeper.stop()
        server = self.plane.server
        if server is not None:
            await server.drain(DRAIN_LIMIT_S)
            await server.dismiss_all("stopping", f"{self.settings.node.name} stops")
        # The applier's end closes files, for which it may have to wait for a write that is held here.
        await self.plane.writes.forwarder.stop(ANSWER_LIMIT_S)
        await self.plane.link.stop(APPLIER_STOP_LIMIT_S)

    def give_up(self) -> None:
        """It ends, by whatever: nothing is committed any more, and nobody is kept waiting for it."""
        if self.access.fenced is None:
            self.access.fenced = "this node ends"
        self.plane.writes.forwarder.give_up()

    def kill_applier(self) -> None:
        """At once."""
        self.plane.kill_applier()

    # -- what HTTP asks --------------------------------------------------------------------------------------------

    def database(self, name: str) -> Database | None:
        """A database that is here, or on its way."""
        found = self.store.get(name)
        return found if found is not None and (found.exists or found.applied < found.position.txid) else None

    async def wait_visible(self, database: Database, txid: int) -> int:
        """Return when readers here see what is applied."""
        return await self.plane.visibility.wait(database, txid)

    def found_damage(self, name: str, pgnos: list[int]) -> None:
        """Somebody has verified a database: the self-check looks at once, and a replica fetches it anew."""
        self.plane.scrubber.report(name, pgnos)

    def members(self) -> tuple[Member, ...]:
        """Every node that is known; nothing when this one is alone."""
        if self.keeper is not None:
            return self.keeper.members
        return configured_members(self.settings)

    def history(self) -> tuple[Reign, ...]:
        """Past and present primaries, oldest first."""
        return self.store.state.reigns

    async def failover(self, to: str | None, force: bool) -> Endpoint:  # noqa: FBT001  the words of the request
        """Have another primary. Raises Refused, Unavailable."""
        if self.keeper is None:
            raise Refused(
                f"lease.type is {self.settings.lease.type}: the configuration says who is primary, and only a change "
                f"of it (and a restart) makes another one primary; lease.type consul has failover"
            )
        return await self.keeper.failover(to, force=force)

    def status(self) -> NodeStatus:
        """Everything that is known now."""
        is_primary = self.access.primary
        ready, reason = self._readiness()
        halts = self.plane.writes.halting.statuses() if is_primary else {}
        found = [each for _, each in sorted(self.store.databases.items()) if each.exists]
        return NodeStatus(
            node=self.settings.node.name,
            role="primary" if is_primary else "replica",
            primary=self._primary_name(),
            epoch=self.store.epoch if is_primary else self.store.seen_epoch,
            ready=ready,
            reason=reason,
            databases=[self._database_status(each, halts.get(each.name)) for each in found],
            replicas=self._replica_statuses(),
            lease=self._lease_status(),
            mount=str(self.settings.mount.dir),
            proxy=self.settings.proxy.advertised or "",
            writes=writes_status(self.settings.writes.on_replica, self.plane.writes),
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

    def _lease_status(self) -> LeaseStatus | None:
        keeper = self.keeper
        if keeper is None:
            return None
        remaining_ms = max(0, int((self.access.accepts_until - fence_clock()) * 1000)) if self.access.primary else None
        return LeaseStatus(
            type=self.settings.lease.type,
            holder=keeper.primary.node if keeper.primary is not None else None,
            epoch=keeper.epoch,
            ttl_ms=int(self.settings.lease.consul.ttl_s * 1000),
            remaining_ms=remaining_ms,
            outage=keeper.outage,
            unyielding=list(self.plane.writers.unyielding),
            cluster=self.store.state.cluster,
        )

    def _readiness(self) -> tuple[bool, str]:  # noqa: PLR0911  each return is one reason
        plane, is_primary = self.plane, self.access.primary
        ready, reason = self._ready.is_set(), self.waits_for
        if self.is_stopping:
            return False, "this node is stopping"
        if self.access.fenced is not None:
            return False, self.access.fenced
        known = self.store.databases.values()
        if incomplete := [each.name for each in known if each.install_failure is not None]:
            return False, f"the disk does not take the new content of {', '.join(incomplete)}: it is tried again"
        if failed := [each.name for each in known if each.log.failure is not None]:
            return False, f"the log of {', '.join(failed)} failed: {CHECK_DISK}"
        if is_primary and (problem := self.access.problem()) is not None:
            return False, problem
        if self.keeper is not None and (held_back := self.keeper.held_back):
            return ready, held_back
        if not is_primary and ready and (plane.following.client is None or not plane.following.client.connected):
            return ready, "not connected to the primary"
        if plane.following.follower is not None and plane.following.follower.stuck:
            return False, "; ".join(f"{name}: {why}" for name, why in sorted(plane.following.follower.stuck.items()))
        if plane.scrubber.damaged:
            # A replica's readers have others to turn to; the primary is the only one there is.
            then = "see docs/operations.md, Damage" if is_primary else "they are being fetched anew"
            return ready and is_primary, f"damaged pages in {', '.join(sorted(plane.scrubber.damaged))}: {then}"
        if failed := [each.name for each in known if each.file_failure is not None]:
            # The log has it all, and the next start makes the files of it.
            return ready, f"the files of {', '.join(failed)} could not be made durable: {CHECK_DISK}"
        return ready, reason

    def _database_status(self, database: Database, halt: HaltStatus | None) -> DatabaseStatus:
        client = self.plane.following.client
        lag_ms = 0 if self.access.primary else client.lag_ms(database.name) if client is not None else None
        return DatabaseStatus(
            name=database.name,
            txid=format_txid(database.position.txid),
            checksum=f"{database.position.checksum:016x}",
            applied=format_txid(database.applied),
            journal_mode=database.journal_mode,
            page_size=database.page_size,
            pages=database.page_count,
            lag_ms=lag_ms,
            damaged=tuple(self.plane.scrubber.damaged.get(database.name, ())[:SHOWN_PAGES]),
            halt=halt,
        )

    def _replica_statuses(self) -> list[ReplicaStatus]:
        server = self.plane.server
        if server is None or not self.access.primary:
            return []
        return [
            ReplicaStatus(
                name=each.name,
                connected=each.connected,
                address=each.address,
                lag_ms=each.lag_ms(),
                databases={
                    name: ReplicaPosition(format_txid(at.logged), format_txid(at.applied))
                    for name, at in sorted(each.databases.items())
                },
            )
            for _, each in sorted(server.replicas.items())
        ]


Direct = Callable[[Node, trio.Nursery], Awaitable[None]]
"""Begins life as a replica of nobody, and sees to it that this changes."""


async def direct_by_settings(node: Node, nursery: trio.Nursery) -> None:
    """Do what the lease says, or follow the static primary."""
    if node.settings.lease.type == "consul":
        keeper = node.keeper = make_keeper(node.settings, node.store, node.plane, node.will)
        node.plane.following.promise = keeper.promise
        node.plane.saw_epoch = keeper.saw_epoch
        node.plane.renewed = node.metrics.renewed
        node.access.told_fenced = keeper.unfit
        node.access.accepts_until = 0.0
        node.waits_for = "no primary is known yet"
        await node.plane.run_as_replica(may_lead=True)
        await nursery.start(keeper.run)
        return
    primary = node.settings.lease.static.primary
    assert primary is not None
    await node.plane.run_as_replica(may_lead=False)
    await node.plane.follow_primary(Endpoint(primary.name, "", primary.http, str(primary.replication)))
    node.waits_for = f"has not yet caught up with {primary.name} at {primary.replication}"
