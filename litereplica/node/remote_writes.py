"""Transactions and locks that cross from one node to another: the parts that do it, on either role, put together.

Knows who hears what of connections and of changes of role. Does not know what any of it means: node.forwarder and
node.halt_client (this node's applications), node.committer and node.halting (other nodes').
"""

from collections.abc import Callable

import trio

from litereplica.applier.link import ApplierLink
from litereplica.cluster.messages import Halt, HaltState, Unhalt
from litereplica.config import Settings
from litereplica.mount.access import Access
from litereplica.mount.operations import Operations
from litereplica.node.committer import Committer
from litereplica.node.forward_counts import ForwardCounts
from litereplica.node.forwarder import Forwarder
from litereplica.node.halt_client import HaltClient
from litereplica.node.halting import Halting
from litereplica.replication.lines import Answer, DownLine, UpLine, Wish
from litereplica.store.database import Database
from litereplica.store.store import Store


class RemoteWrites:
    """``Upstream`` of this node as a replica, ``Downstream`` of it as a primary."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        operations: Operations,
        access: Access,
        *,
        link: Callable[[], ApplierLink],
        is_foreign: Callable[[str], bool],
        may_commit: Callable[[Database], bool],
        kill_applier: Callable[[], None],
    ) -> None:
        node, writes = settings.node.name, settings.writes
        self.counts = ForwardCounts()
        self._store = store
        self._access = access
        self._up: UpLine | None = None
        self._down: dict[str, DownLine] = {}
        self.halting = Halting(writes, node, store, link=link, tell=self._tell, epoch=lambda: store.epoch)
        self.halt_client = HaltClient(
            writes, node, store, self.halting,
            is_primary=lambda: access.primary, is_foreign=is_foreign, send=self._send, epoch=self._epoch,
        )  # fmt: skip
        access.lost_locks = self.halt_client.lost
        self.forwarder = Forwarder(
            store, access, self.halt_client, self.counts,
            timeout_s=writes.timeout_s, link=link, is_foreign=is_foreign, may_commit=may_commit,
        )  # fmt: skip
        self.committer = Committer(
            store, access, operations, self.halting, self.counts,
            timeout_s=writes.timeout_s, link=link, kill_applier=kill_applier,
        )  # fmt: skip
        if writes.on_replica != "refuse":
            access.elsewhere = self.forwarder

    async def begin(self, nursery: trio.Nursery) -> None:
        """Whatever is done in the background is done in ``nursery``."""
        await nursery.start(self.committer.run)
        nursery.start_soon(self.halting.run)
        nursery.start_soon(self.halt_client.run)

    def _epoch(self) -> int:
        return self._up.epoch if self._up is not None else self._store.epoch

    def _tell(self, node: str, state: HaltState) -> None:
        if (line := self._down.get(node)) is not None:
            line.say(state)

    def _send(self, message: Halt | Unhalt) -> bool:
        if self._up is None:
            return False
        self._up.say(message)
        return True

    # -- as a replica ----------------------------------------------------------------------------------------------

    def connected(self, line: UpLine) -> None:
        """A primary has welcomed this node."""
        self._up = line
        self.halt_client.connected()
        self.forwarder.connected(line)

    def disconnected(self, reason: str) -> None:
        """That connection has ended."""
        self._up = None
        self.halt_client.disconnected(reason)
        self.forwarder.disconnected()

    def parted(self, database: str) -> None:
        """What is here of a database is not the primary's."""
        self.halt_client.parted(database)

    def told(self, answer: Answer) -> None:
        """The primary has answered."""
        if isinstance(answer, HaltState):
            self.halt_client.told(answer)
        else:
            self.forwarder.told(answer)

    # -- as a primary ----------------------------------------------------------------------------------------------

    def joined(self, line: DownLine) -> None:
        """A replica is connected; transactions that another line of its name has sent are not over, its locks are."""
        if line.replica in self._down:
            self.halting.node_gone(line.replica)
        self._down[line.replica] = line
        self.committer.joined(line)

    def left(self, line: DownLine) -> None:
        """It is not any more."""
        self.committer.left(line)
        if self._down.get(line.replica) is line:
            del self._down[line.replica]
            self.halting.node_gone(line.replica)

    def take(self, line: DownLine, wish: Wish) -> None:
        """A replica wants something. Raises Corrupt."""
        if isinstance(wish, Halt):
            self.halting.halt(line.replica, wish)
        elif isinstance(wish, Unhalt):
            self.halting.unhalt(line.replica, wish)
        else:
            self.committer.take(line, wish)

    # -- a change of role ------------------------------------------------------------------------------------------

    def lead(self) -> None:
        """This node is the primary, in this very stretch."""
        self.halting.begin()
        self.halt_client.role_changed()
        self.forwarder.become_primary()

    def pause(self) -> None:
        """The role is about to be handed over: nothing is begun any more, every lock is lost."""
        self.halting.end("the primary hands its role over", handing_over=True)
        self.committer.pause()

    def resume(self) -> None:
        """It is known who is primary; if it is still this node, locks may be had again."""
        if self._access.primary:
            self.halting.begin()
        self.committer.resume()

    async def end(self) -> None:
        """This node is about to be a replica: return when the applier commits nothing more. The fence is closed."""
        self.halting.end("the node that gave it is no longer the primary")
        await self.committer.end()

    def follow(self) -> None:
        """This node is a replica, of nobody yet."""
        self.halt_client.role_changed()
