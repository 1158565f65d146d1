"""One node: its parts, wired by its role.

Knows which parts a role needs and who tells whom. Does not know how they are started and stopped as a whole
(node.main). Roles are fixed by the configuration: ``standalone`` and the static primary lead, others follow.
"""

import os
import signal
import socket

import structlog
import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.status import DatabaseStatus, NodeStatus, ReplicaPosition, ReplicaStatus
from litereplica.config import Settings
from litereplica.ltx.position import format_txid
from litereplica.mount.access import UNKNOWN_LAG_MS, Access
from litereplica.mount.guard import VersionGuard
from litereplica.mount.operations import Operations
from litereplica.mount.session import Session
from litereplica.mount.wait import AdaptiveWait
from litereplica.node.follow import Follower
from litereplica.node.lead import Warmer
from litereplica.node.scrub import SHOWN_PAGES, Scrubber
from litereplica.replication.client import ReplicationClient
from litereplica.replication.server import ReplicationServer
from litereplica.store.database import Database
from litereplica.store.replica_wal import ensure_wal
from litereplica.store.snapshot import FinishedSnapshot
from litereplica.store.store import Store

log = structlog.get_logger()

# Replicas get this long to take what they have not yet when the primary stops.
DRAIN_LIMIT_S = 2.0
CATCH_UP_STEP_S = 0.05
# The applier gets this long to finish what it was given; what it does not finish is redone from the log.
APPLIER_STOP_LIMIT_S = 5.0


class Node:
    """State of this process; ``status`` is safe to call at any time."""

    def __init__(self, settings: Settings, store: Store, http: socket.socket) -> None:
        self.settings = settings
        self.store = store
        self.http = http
        self.mount_lost = False
        self._session: Session | None = None
        self._wait = AdaptiveWait()
        self._ready = trio.Event()
        self._reason = "starting"
        self._link: ApplierLink | None = None
        self._server: ReplicationServer | None = None
        self._client: ReplicationClient | None = None
        self._follower: Follower | None = None
        self._warmer: Warmer | None = None
        scrub = settings.data.scrub
        self._scrubber = Scrubber(store, scrub.rate_bytes, scrub.pause_s)
        self._guard = VersionGuard()
        primary = settings.lease.static.primary
        self.is_primary = settings.lease.type == "standalone" or (
            primary is not None and primary.name == settings.node.name
        )
        self.access = Access()
        self.access.primary = self.is_primary
        self.access.primary_name = None if self.is_primary or primary is None else primary.name
        self.operations = Operations(store, self.access)

    # -- before and after the event loop ---------------------------------------------------------------------------

    def mount(self) -> None:
        """Mount; nothing is answered until ``serve_mount`` runs."""
        if not self.is_primary:
            for database in self.store.databases.values():
                ensure_wal(database)
        session = Session(self.operations, self._wait)
        session.open(self.settings.mount.dir, allow_other=self.settings.mount.allow_other)
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
        async with trio.open_nursery() as nursery:
            link = self._link = ApplierLink(self.settings.mount.dir, self)
            if self.is_primary:
                # Nothing waits for its hints: a primary is ready before its applier is.
                nursery.start_soon(link.run)
                await self._lead(nursery, link)
            else:
                await nursery.start(link.run)
                self.access.applier_pid = link.pid or 0
                await self._follow(nursery, link)
            nursery.start_soon(self._scrubber.run)
            task_status.started()

    async def _lead(self, nursery: trio.Nursery, link: ApplierLink) -> None:
        warmer = self._warmer = Warmer(link)
        self.access.wal_restarted, self.access.wal_removed = warmer.restarted, warmer.removed
        self.access.writer_gone = link.republish
        if self.settings.lease.type == "static":
            replication = self.settings.replication
            server = self._server = ReplicationServer(
                self.store,
                self.settings.node.name,
                lambda: self.store.epoch,
                heartbeat_s=replication.heartbeat_s,
                timeout_s=replication.timeout_s,
            )
            await nursery.start(server.serve, replication.listen.host, replication.listen.port)
            self.store.listeners.append(self._hurry)
        self._set_ready()

    def _hurry(self, database: Database) -> None:  # noqa: ARG002  a listener of the store
        """There is something to send: the scheduler gets its turn soon."""
        self._wait.hurry = True

    async def _follow(self, nursery: trio.Nursery, link: ApplierLink) -> None:
        primary = self.settings.lease.static.primary
        assert primary is not None
        follower = self._follower = Follower(self.store, self.operations, link)
        self.store.listeners.append(follower.changed)
        client = self._client = ReplicationClient(
            self.store,
            self.settings.node.name,
            primary.replication,
            install=self._install,
            epoch=self.store.epoch,
            heartbeat_s=self.settings.replication.heartbeat_s,
            timeout_s=self.settings.replication.timeout_s,
        )
        self.access.lag_ms = lambda: UNKNOWN_LAG_MS if (lag := client.lag_ms()) is None else lag
        self._scrubber.ask_snapshot = client.resync
        self._reason = f"has not yet caught up with {primary.name} at {primary.replication}"
        nursery.start_soon(follower.run)
        nursery.start_soon(client.run)
        nursery.start_soon(self._watch_catch_up, client)

    async def _watch_catch_up(self, client: ReplicationClient) -> None:
        while not client.caught_up:  # noqa: ASYNC110  only while starting; what it depends on changes in many places
            await trio.sleep(CATCH_UP_STEP_S)
        self._set_ready()

    async def _install(self, finished: FinishedSnapshot) -> None:
        """A snapshot has arrived: it becomes the database, at once or through the applier."""
        assert self._follower is not None
        await self._follower.wait_closed(finished.database)
        database = self.store.install(
            finished.database,
            finished.pages_file,
            finished.page_size,
            finished.page_count,
            finished.position,
            finished.checksums,
            finished.epoch,
            finished.timestamp_ms,
        )
        assert self._follower is not None
        self._follower.replaced(database)
        # No await since the file was put in place: nobody has opened it without.
        ensure_wal(database)
        await trio.lowlevel.checkpoint()

    def look_at_versions(self) -> None:
        """Warn about the SQLite that writes here, where that is to be said."""
        if self.is_primary:
            for database in self.store.databases.values():
                self._guard.look(database)

    def _set_ready(self) -> None:
        self._reason = ""
        self._ready.set()
        log.info("ready", node=self.settings.node.name)

    async def wait_ready(self) -> None:
        """Return when applications may start."""
        await self._ready.wait()

    async def stop(self) -> None:
        """The parts that have to be told; the rest is cancelled."""
        if self._server is not None:
            await self._server.drain(DRAIN_LIMIT_S)
            await self._server.dismiss_all("stopping", f"{self.settings.node.name} stops")
        if self._link is not None:
            await self._link.stop(APPLIER_STOP_LIMIT_S)

    def kill_applier(self) -> None:
        """At once."""
        if self._link is not None and self._link.pid is not None:
            os.kill(self._link.pid, signal.SIGKILL)

    # -- what the applier says -------------------------------------------------------------------------------------

    def on_applied(self, database: str, txid: int) -> None:
        """Every reader that begins now sees ``txid``."""
        if self._follower is not None:
            self._follower.applied(database, txid)

    def on_checkpointed(self, database: str, txid: int, *, truncated: bool) -> None:  # noqa: ARG002  the link's form
        """Everything up to ``txid`` is in the database file."""
        if self._follower is not None:
            self._follower.checkpointed(database, txid)

    def on_failed(self, database: str, txid: int, reason: str, *, retry: bool) -> None:
        """The records from ``txid`` on were not applied."""
        if self._follower is not None:
            self._follower.failed(database, txid, reason, retry=retry)

    def on_closed(self, database: str) -> None:
        """The applier has let go of a dropped database."""
        if self._follower is not None:
            self._follower.closed(database)

    def on_restarted(self) -> None:
        """The applier died and there is a new one."""
        assert self._link is not None
        self.access.applier_pid = self._link.pid or 0
        if self._follower is not None:
            self._follower.restarted()

    # -- what HTTP asks --------------------------------------------------------------------------------------------

    def database(self, name: str) -> Database | None:
        """A database that is here, or on its way."""
        found = self.store.get(name)
        return found if found is not None and (found.exists or found.applied < found.position.txid) else None

    def found_damage(self, name: str, pgnos: list[int]) -> None:
        """Somebody has verified a database: the self-check looks at once, and a replica fetches it anew."""
        self._scrubber.report(name, pgnos)

    def status(self) -> NodeStatus:
        """Everything that is known now."""
        primary = self.settings.lease.static.primary
        ready, reason = self._ready.is_set(), self._reason
        if self.access.fenced is not None:
            ready, reason = False, self.access.fenced
        elif failed := [each.name for each in self.store.databases.values() if each.log.failure is not None]:
            ready, reason = False, f"the log of {', '.join(failed)} failed: check the disk, then restart this node"
        elif self._client is not None and ready and not self._client.connected:
            reason = "not connected to the primary"
        elif self._follower is not None and self._follower.stuck:
            ready, reason = False, "; ".join(f"{name}: {why}" for name, why in sorted(self._follower.stuck.items()))
        elif self._scrubber.damaged:
            # A replica's readers have others to turn to; the primary is the only one there is.
            ready = ready and self.is_primary
            then = "see docs/operations.md, Damage" if self.is_primary else "they are being fetched anew"
            reason = f"damaged pages in {', '.join(sorted(self._scrubber.damaged))}: {then}"
        return NodeStatus(
            node=self.settings.node.name,
            role="primary" if self.is_primary else "replica",
            primary=self.settings.node.name if self.is_primary else primary.name if primary else None,
            epoch=self.store.epoch,
            ready=ready,
            reason=reason,
            databases=[self._database_status(each) for _, each in sorted(self.store.databases.items()) if each.exists],
            replicas=self._replica_statuses(),
        )

    def _database_status(self, database: Database) -> DatabaseStatus:
        lag_ms = 0 if self.is_primary else self._client.lag_ms(database.name) if self._client is not None else None
        return DatabaseStatus(
            name=database.name,
            txid=format_txid(database.position.txid),
            checksum=f"{database.position.checksum:016x}",
            applied=format_txid(database.applied),
            journal_mode=database.journal_mode,
            page_size=database.page_size,
            pages=database.page_count,
            lag_ms=lag_ms,
            damaged=tuple(self._scrubber.damaged.get(database.name, ())[:SHOWN_PAGES]),
        )

    def _replica_statuses(self) -> list[ReplicaStatus]:
        if self._server is None:
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
            for _, each in sorted(self._server.replicas.items())
        ]
