"""Life as a replica: whom this node follows, and what feeds its applier.

Knows the connection to a primary (one at a time) and the follower, and ends both cleanly. Does not know when there is a
reason to (node.data_plane).
"""

from collections.abc import Callable
from typing import Final

import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.lease import Endpoint
from litereplica.config import Settings
from litereplica.config.units import Address
from litereplica.mount.access import UNKNOWN_LAG_MS, Access
from litereplica.mount.operations import Operations
from litereplica.node.follow import Follower
from litereplica.replication.client import ReplicationClient
from litereplica.replication.lines import Upstream
from litereplica.store.database import Database
from litereplica.store.replica_wal import ensure_wal
from litereplica.store.snapshot import FinishedSnapshot
from litereplica.store.store import Store

CATCH_UP_STEP_S: Final = 0.05


class Following:
    """``client``: the connection that is kept up, None when nobody is followed; ``follower``: None on the primary.

    ``caught_up``: readers here have seen, once, all that a primary had.
    """

    def __init__(
        self, settings: Settings, store: Store, operations: Operations, access: Access, upstream: Upstream
    ) -> None:
        """``upstream`` is told of the connection."""
        self.client: ReplicationClient | None = None
        self.follower: Follower | None = None
        self.followed: Endpoint | None = None
        self.caught_up = trio.Event()
        # Failsafe: asked by the primary (keeper.promise).
        self.promise: Callable[[int, float], bool] = lambda _epoch, _hold_s: False
        self._settings = settings
        self._store = store
        self._operations = operations
        self._access = access
        self._upstream = upstream
        self._client_scope: trio.CancelScope | None = None
        self._client_ended = trio.Event()
        self._follower_scope = trio.CancelScope()

    def begin(self, nursery: trio.Nursery, link: ApplierLink) -> None:
        """Feed the applier with whatever is logged."""
        follower = self.follower = Follower(self._store, self._operations, link)
        self._store.listeners.append(follower.changed)
        scope = self._follower_scope = trio.CancelScope()
        nursery.start_soon(self._run_follower, follower, scope)

    @staticmethod
    async def _run_follower(follower: Follower, scope: trio.CancelScope) -> None:
        with scope:
            await follower.run()

    def end(self) -> None:
        """The applier gets nothing more."""
        follower, self.follower = self.follower, None
        if follower is not None:
            self._store.listeners.remove(follower.changed)
        self._follower_scope.cancel()

    def feed_again(self) -> None:
        """The applier is a new one, or this node has not become the primary: it gets everything that it needs."""
        if self.follower is not None:
            self.follower.restarted()

    def lay_now(self, used: set[str]) -> list[Database]:
        """As Follower has it."""
        return self.follower.lay_now(used) if self.follower is not None else []

    def let_go(self) -> None:
        """As Follower has it."""
        if self.follower is not None:
            self.follower.let_go()

    async def connect(self, nursery: trio.Nursery, primary: Endpoint, address: Address) -> None:
        """Be a replica of the node at ``address``, until ``disconnect``."""
        await self.disconnect()
        self.followed = primary
        self._access.primary_name = primary.node
        replication = self._settings.replication
        client = self.client = ReplicationClient(
            self._store,
            self._settings.node.name,
            address,
            install=self._install,
            epoch=self._store.seen_epoch,
            heartbeat_s=replication.heartbeat_s,
            timeout_s=replication.timeout_s,
            promise=self._promise,
            upstream=self._upstream,
        )
        self._access.lag_ms = lambda: UNKNOWN_LAG_MS if (lag := client.lag_ms()) is None else lag
        try:
            await nursery.start(self._run_client, client)
        except BaseException:
            # Whoever asks again, for the same node, must not be told that it is followed.
            self.followed = self.client = self._access.primary_name = None
            raise

    def _promise(self, epoch: int, hold_s: float) -> bool:
        return self.promise(epoch, hold_s)

    async def _run_client(self, client: ReplicationClient, task_status: trio.TaskStatus[None]) -> None:
        ended = self._client_ended = trio.Event()
        try:
            with trio.CancelScope() as self._client_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.run)
                    task_status.started()
                    while not client.caught_up:  # noqa: ASYNC110  while starting; it depends on many places
                        await trio.sleep(CATCH_UP_STEP_S)
                    self.caught_up.set()
        finally:
            ended.set()

    async def disconnect(self) -> None:
        """Follow nobody; returns when nothing more can arrive."""
        self.followed = None
        self._access.primary_name = None
        if self._client_scope is not None:
            # If this is cancelled while it waits, the next call waits again.
            self._client_scope.cancel()
            await self._client_ended.wait()
        self._client_scope = self.client = None

    def ask_snapshot(self, name: str, reason: str) -> None:
        """Have a database replaced by the primary's, if one is heard."""
        if self.client is not None:
            self.client.resync(name, reason)

    async def _install(self, finished: FinishedSnapshot) -> None:
        """A snapshot has arrived: it becomes the database, at once or through the applier."""
        follower = self.follower
        assert follower is not None
        await follower.wait_closed(finished.database)
        known = self._store.get(finished.database)
        if not finished.apart or known is None or not known.exists:
            self._put(finished, apart=False)
        else:
            try:
                await follower.give_way(known)
                await self._operations.cut_off(known.name)
                self._put(finished, apart=True)
            finally:
                follower.go_on(known)
        await trio.lowlevel.checkpoint()

    def _put(self, finished: FinishedSnapshot, *, apart: bool) -> None:
        database = self._store.install(
            finished.database,
            finished.pages_file,
            finished.page_size,
            finished.page_count,
            finished.position,
            finished.checksums,
            finished.epoch,
            finished.timestamp_ms,
            apart=apart,
        )
        assert self.follower is not None
        self.follower.replaced(database)
        # No await since the file was put in place: nobody has opened it without.
        ensure_wal(database)
