"""What a change of role does to the parts of a node: mount, store, applier, replication.

Knows how they are brought from one role to the other without a remount, and in which order. Does not know why
(node.keeper decides, or the configuration).

Promotion: the last primary is not heard any more; what is logged is applied; the applier lets go of every database and
says how far its WAL goes; in one stretch without an await the mount follows the WALs from there and accepts commits
(as far as the fence lets it).
Demotion: no commit is accepted any more; those under way end, this way or that; whoever has a database open for writing
gets an error from then on; the applier learns how far each WAL is committed, before it appends to it.
Readers notice neither.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog
import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.lease import Endpoint, Holding, Reign, Standing
from litereplica.cluster.messages import GOODBYE_NOT_PRIMARY
from litereplica.config import Settings
from litereplica.config.units import parse_address
from litereplica.errors import Corrupt, Unavailable
from litereplica.mount.access import FOR_EVER, Access
from litereplica.mount.operations import Operations
from litereplica.mount.wait import AdaptiveWait
from litereplica.node.following import Following
from litereplica.node.gathering import Gathering
from litereplica.node.hearing import Hearing
from litereplica.node.how_far import how_far
from litereplica.node.lead import Warmer
from litereplica.node.remote_writes import RemoteWrites
from litereplica.node.scrub import Scrubber
from litereplica.node.visibility import Visibility
from litereplica.node.writers import Writers
from litereplica.replication.server import ReplicationServer
from litereplica.store.cluster_state import ClusterState
from litereplica.store.database import Database
from litereplica.store.store import Store

log = structlog.get_logger()

DRAIN_LIMIT_S: Final = 30.0
"""A promotion waits so long for what is logged and not applied; replication stops reading before it is that much."""
DRAIN_STEP_S: Final = 0.5
"""How often it is asked meanwhile whether that can be applied at all: the lease is somebody else's chance."""
RELEASE_LIMIT_S: Final = 10.0
"""The applier closes a database in about a millisecond; a machine that is busy has thousands of them."""
LAY_LIMIT_S: Final = 0.1
"""Of that, for what the files lack of databases that nobody has open (store.unlaid): milliseconds for the applier."""
HELD_LIMIT_S: Final = 0.5
"""A promotion takes hundredths of a second and then commits what is held here. One that does not get on may wait for
the applier, and that in the kernel for a file of a held commit (as root, SQLite changes the owner of what it opens)."""


class DataPlane:
    """Life as a primary or as a replica; a replica of nobody to begin with, unless the configuration says otherwise."""

    def __init__(
        self, settings: Settings, store: Store, operations: Operations, access: Access, wait: AdaptiveWait
    ) -> None:
        self.store = store
        self.operations = operations
        self.access = access
        self.writes = RemoteWrites(
            settings, store, operations, access,
            link=lambda: self.link, is_foreign=self._is_foreign, may_commit=self._may_commit,
            kill_applier=self.kill_applier,
        )  # fmt: skip
        self.following = Following(settings, store, operations, access, self.writes)
        self.writers = Writers(operations, access)
        self.visibility = Visibility(operations, access, lambda: self.link)
        self.hearing = Hearing(
            store, self.following, self.writers, self.writes, self.visibility,
            applied=self._forget_committed, stopped=self._wake_up, restarted=self._applier_restarted,
        )  # fmt: skip
        self.server: ReplicationServer | None = None
        scrub = settings.data.scrub
        self.scrubber = Scrubber(store, scrub.rate_bytes, scrub.pause_s)
        # Told of every change: (role, primary, epoch, reason).
        self.role_listeners: list[Callable[[str, Endpoint | None, int, str], None]] = []
        # Told of a higher epoch than this primary's, and of what becomes of renewals (done, refused, unknown).
        self.saw_epoch: Callable[[int], None] = lambda _epoch: None
        self.renewed: Callable[[str], None] = lambda _outcome: None
        self._link: ApplierLink | None = None
        self._settings = settings
        self._wait = wait
        self._nursery: trio.Nursery | None = None
        # At the last demotion: salts and committed frames of each WAL, for an applier that starts later. Until one has
        # compared.
        self._committed: dict[str, tuple[int, int, int]] = {}
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def link(self) -> ApplierLink:
        """The applier."""
        assert self._link is not None
        return self._link

    @property
    def applier_pid(self) -> int | None:
        """Process id of the applier while it is up."""
        return None if self._link is None else self._link.pid

    # -- start -----------------------------------------------------------------------------------------------------

    async def begin(self, nursery: trio.Nursery, link: ApplierLink) -> None:
        """Whatever is done in the background is done in ``nursery``. ``link`` tells ``hearing``."""
        self._nursery, self._link = nursery, link
        await self.writes.begin(nursery)

    async def run_as_fixed_primary(self, *, serves_replicas: bool) -> None:
        """The configuration says that this node is the primary, for good; nothing of it was open before."""
        if serves_replicas:
            await self._serve()
        self._begin_leading()
        self.following.caught_up.set()

    async def run_as_replica(self, *, may_lead: bool) -> None:
        """A replica, of nobody yet."""
        if may_lead:
            await self._serve()
        self._begin_following()

    async def _serve(self) -> None:
        assert self._nursery is not None
        replication = self._settings.replication
        server = self.server = ReplicationServer(
            self.store,
            self._settings.node.name,
            lambda: self.store.epoch,
            is_primary=lambda: self.access.primary,
            saw_epoch=self._saw_epoch,
            downstream=self.writes,
            heartbeat_s=replication.heartbeat_s,
            timeout_s=replication.timeout_s,
        )
        await self._nursery.start(server.serve, replication.listen.host, replication.listen.port)
        self.store.listeners.append(self._hurry)

    def _saw_epoch(self, epoch: int) -> None:
        self.saw_epoch(epoch)

    def _hurry(self, database: Database) -> None:  # noqa: ARG002  a listener of the store
        """There is something to send: the scheduler gets its turn soon."""
        self._wait.hurry = True

    # -- what a keeper asks ----------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """How far the log is here, and whether this node may be promoted."""
        databases = self.store.databases.values()
        whole = (
            not (self.following.client is not None and self.following.client.sinks)
            and not self.scrubber.damaged
            and not (self.following.follower is not None and self.following.follower.stuck)
            and not self._failing()
            and self.access.fenced is None
            and all(each.pending_install is None and each.log.failure is None for each in databases)
        )
        client = self.following.client
        parted = not self.access.primary and (self.store.state.parted or bool(client is not None and client.foreign))
        epoch, total = how_far(databases)
        return Standing(epoch, total, whole, parted)

    def _failing(self) -> dict[str, str]:
        return self.following.follower.failing if self.following.follower is not None else {}

    def seen_epoch(self) -> int:
        """The highest epoch that this node knows of."""
        return self.store.seen_epoch

    async def note_epoch(self, epoch: int) -> None:
        """An epoch was seen; durable when this returns. Raises OSError."""
        if epoch > self.store.state.epoch:
            await self._remember(lambda state: replace(state, epoch=max(epoch, state.epoch)))

    async def note_cluster(self, cluster: str) -> None:
        """This node belongs to a cluster; durable when this returns. Raises OSError."""
        await self._remember(lambda state: replace(state, cluster=cluster))

    async def note_reigns(self, reigns: tuple[Reign, ...]) -> None:
        """Keep the history of primaries here too. Raises OSError."""
        await self._remember(lambda state: state.with_reigns(reigns))

    async def _remember(self, change: Callable[[ClusterState], ClusterState]) -> None:
        await trio.to_thread.run_sync(self.store.remember, change)

    def role_changed(self, role: str, primary: Endpoint | None, epoch: int, reason: str) -> None:
        """This node has another role, or follows somebody else."""
        for listener in self.role_listeners:
            listener(role, primary, epoch, reason)

    def positions(self) -> dict[str, str]:
        """``TXID/checksum`` of every database here."""
        return {name: str(each.position) for name, each in sorted(self.store.databases.items()) if each.exists}

    def replicas(self) -> tuple[str, ...]:
        """Names of the replicas that are connected."""
        if self.server is None:
            return ()
        return tuple(name for name, each in self.server.replicas.items() if each.connected)

    def set_fence(self, until: float) -> None:
        """Commits are accepted before this instant of CLOCK_BOOTTIME."""
        self.access.accepts_until = until

    async def follow(self, holding: Holding | None) -> None:
        """Be a replica of the lease's holder; of nobody (None), and go on serving reads."""
        holder = holding.holder if holding is not None else None
        if holder == self.following.followed or self.access.primary:
            return
        if holder is None:
            await self.following.disconnect()
        else:
            await self.follow_primary(holder)

    async def follow_primary(self, primary: Endpoint) -> None:
        """Be a replica of a node that the lease or the configuration names."""
        assert self._nursery is not None
        await self.following.connect(self._nursery, primary, parse_address(primary.replication))

    def _begin_following(self) -> None:
        assert self._nursery is not None
        self.following.begin(self._nursery, self.link)
        self.access.writer_gone = self.link.republish
        self.scrubber.ask_snapshot = self.following.ask_snapshot

    # -- promotion and demotion ------------------------------------------------------------------------------------

    async def promote(self, epoch: int) -> None:
        """Become the primary of ``epoch``. Raises Unavailable when it cannot be: then this is a replica of nobody.

        The same when it is cancelled.
        """
        await self.following.disconnect()
        assert self._nursery is not None
        scope = trio.CancelScope()
        self._nursery.start_soon(self._give_up_held, scope)
        try:
            with trio.move_on_after(DRAIN_LIMIT_S):
                await self._drain()
            self._check_applied()
            await self._change_hands_whatever_is_lost()
        finally:
            scope.cancel()
        self.following.end()
        self.scrubber.ask_snapshot = None
        self._committed = {}
        self.store.epoch = epoch
        self.access.primary = True
        self._begin_leading()
        self.following.caught_up.set()

    async def _change_hands_whatever_is_lost(self) -> None:
        """Where databases have lost history a person has decided so (keeper_eligible.py): it is the cluster's now.

        That is durable before the first commit: a primary that dies after one would be no candidate with it, and others
        would go on without. Who does not become the primary is what it was.
        """
        if not self.store.state.parted:
            await self._change_hands()
            return
        try:
            await self._note_parted(parted=False)
            await self._change_hands()
        except BaseException as error:
            with trio.CancelScope(shield=True):
                try:
                    await self._note_parted(parted=True)
                except OSError as refused:
                    log.error("parted_not_noted", error=str(refused))  # noqa: TRY400  the disk's words say it all
            if isinstance(error, OSError):
                raise Unavailable(f"the data directory cannot be written: {error}") from error
            raise

    async def _note_parted(self, *, parted: bool) -> None:
        await self._remember(lambda state: replace(state, parted=parted))

    async def _change_hands(self) -> None:
        """The mount goes on where the applier has stopped; when this returns, in the very same stretch, it leads."""
        self.following.let_go()
        try:
            frames = await self._release(self.operations.indexed_databases())
            # One stretch from here on: whoever opens a file for writing finds either role, never half of one.
            self._check_applied()
            self.operations.begin_as_primary(frames)
        except BaseException as error:
            self.following.feed_again()
            if isinstance(error, OSError | Corrupt):
                raise Unavailable(f"the WALs here cannot be gone on with: {error}") from error
            raise
        for database in self.store.databases.values():
            # Of what is held, and of what is still to be heard from the applier.
            database.unlaid.overtake()
            if database.exists and database.name not in frames:
                self.link.release(database.name)

    async def _give_up_held(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                await trio.sleep(HELD_LIMIT_S)
                self.writes.forwarder.give_up_held()
        self.writes.forwarder.promotion_ended()

    def _check_applied(self) -> None:
        if behind := self._behind():
            raise Unavailable(f"what is logged of {', '.join(behind)} could not be applied within {DRAIN_LIMIT_S:g} s")

    def _behind(self) -> list[str]:
        return [each.name for each in self.store.databases.values() if each.is_behind]

    async def _drain(self) -> None:
        """Return when readers here see everything that is logged. Raises Unavailable: it cannot be applied."""
        self.store.listeners.append(self._wake_up)
        # Perhaps nobody changes these for long, and with that their page 1 (mount.first_page).
        laid = self.following.lay_now(self.operations.databases_in_use())
        try:
            with trio.move_on_after(LAY_LIMIT_S):
                while any(each.unlaid for each in laid):
                    await self._lot.park()
            while self._behind():
                if failing := self._failing():
                    reasons = "; ".join(f"{name}: {why}" for name, why in sorted(failing.items()))
                    raise Unavailable(f"what is logged cannot be applied here: {reasons}")
                with trio.move_on_after(DRAIN_STEP_S):
                    await self._lot.park()
        finally:
            self.store.listeners.remove(self._wake_up)

    def _wake_up(self, database: Database | None = None) -> None:  # noqa: ARG002  a listener of the store
        self._lot.unpark_all()

    async def _release(self, indexed: set[str]) -> dict[str, int]:
        """Have the applier let go of databases; committed frames of each WAL.

        Not of all: it has to look for what others have no file of, and a journal's end that is held keeps the kernel's
        lock on the folder.
        """
        names = [each.name for each in self.store.databases.values() if each.exists and each.name in indexed]
        asked = self.hearing.released = Gathering(names)
        for name in names:
            self.link.release(name)
        try:
            await asked.wait(RELEASE_LIMIT_S)
        finally:
            self.hearing.released = None
        if asked.missing:
            raise Unavailable(f"the applier did not let go of {', '.join(sorted(asked.missing))}")
        return asked.found

    def _begin_leading(self) -> None:
        warmer = Warmer(self.link)
        self.access.primary_name = None
        self.access.wal_restarted, self.access.wal_removed = warmer.restarted, warmer.removed
        self.access.writer_gone = self.link.republish
        self.writes.lead()

    async def demote(self) -> None:
        """Become a replica, of nobody yet. The fence is down: no commit is accepted any more."""
        if not self.access.primary:
            return
        assert self.access.accepts_until != FOR_EVER
        # What the applier writes as a primary's must not be taken for what it writes as a replica's.
        await self.writes.end()
        self.access.primary = False
        self.writes.follow()
        await self.access.wait_idle()
        wals = await self.operations.end_as_primary()
        self.access.wal_restarted, self.access.wal_removed = _ignore_restart, _ignore_removal
        if self.server is not None:
            await self.server.dismiss_all(GOODBYE_NOT_PRIMARY, f"{self._settings.node.name} is no longer the primary")
        self._committed = wals
        self._tell_committed()
        self._begin_following()

    def _tell_committed(self) -> None:
        """A writer may have died before it published its commit: nothing may be appended over that."""
        for name, (salt1, salt2, frames) in self._committed.items():
            self.link.republish(name, salt1, salt2, frames)

    def _forget_committed(self, name: str) -> None:
        """The applier has written to the WAL, so it shows all that was committed before; soon it may begin again."""
        self._committed.pop(name, None)

    # -- handoff ---------------------------------------------------------------------------------------------------

    async def quiesce(self, limit_s: float) -> tuple[str, ...]:
        """Hold back whoever writes here; who did not yield in time."""
        self.writes.pause()
        return await self.writers.quiesce(self.link, limit_s)

    async def resume_writers(self) -> None:
        """Let them go on."""
        self.writers.resume(self.link)
        self.writes.resume()
        await trio.lowlevel.checkpoint()

    async def acknowledged(self, node: str, limit_s: float) -> bool:
        """Whether a replica has logged all that is committed here, within the limit."""
        return self.server is not None and await self.server.acknowledged(node, limit_s)

    async def drain(self, limit_s: float) -> None:
        """Let every connected replica log what is committed here; the fence is down, so that there is an end of it."""
        if self.server is None or not self.access.primary:
            return
        drained = False
        with trio.move_on_after(limit_s):
            # What was begun before the fence closed may still be logged.
            await self.access.wait_idle()
            drained = await self.server.drain(limit_s)
        if not drained:
            log.warning("replicas_lack_transactions", limit_s=round(limit_s, 2))

    async def ask_promises(self, nodes: frozenset[str], hold_s: float, limit_s: float) -> frozenset[str]:
        """Failsafe: which of ``nodes`` promise not to become primary for ``hold_s``."""
        if self.server is None:
            return frozenset()
        return await self.server.ask_promises(nodes, hold_s, limit_s)

    # -- the applier -----------------------------------------------------------------------------------------------

    def _applier_restarted(self) -> None:
        self.access.applier_pid = self.link.pid or 0
        self._tell_committed()
        for each in self.store.databases.values():
            each.unlaid.over()
        self.following.feed_again()

    def kill_applier(self) -> None:
        """End the applier's process at once, if there is one; another one is started."""
        if (pid := self.applier_pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _may_commit(self, database: Database) -> bool:
        return self.following.follower is None or self.following.follower.may_commit(database)

    def _is_foreign(self, name: str) -> bool:
        """What is here of a database is not (yet) of the primary's history."""
        return self.following.client is not None and name in self.following.client.foreign


def _ignore_restart(name: str, size: int) -> None:
    """On a replica."""


def _ignore_removal(name: str) -> None:
    """On a replica."""
