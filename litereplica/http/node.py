"""What the routes need of a node: the port between HTTP and everything else.

Knows names and outcomes. Does not know who answers (node.node; in tests a twin).
"""

from typing import Any, Protocol

import trio

from litereplica.cluster.lease import Endpoint, Member, Reign
from litereplica.cluster.status import NodeStatus
from litereplica.store.database import Database


class Listening(Protocol):
    """Where events come from."""

    def listen(self, *, transactions: bool = True) -> "trio.MemoryReceiveChannel[dict[str, Any]] | None":
        """Events from now on, the first of which says what this node is; None when too many listen.

        Without ``transactions`` those are left out. The channel ends when its reader does not keep up.
        """


class Node(Protocol):
    """One node."""

    @property
    def events(self) -> Listening:
        """What happens here."""

    def status(self) -> NodeStatus:
        """Everything that is known now."""

    def database(self, name: str) -> Database | None:
        """A database by its name, also one that is about to arrive."""

    async def wait_visible(self, database: Database, txid: int) -> int:
        """Return when readers that begin now see ``txid``, which is applied: the TXID that they see, or an earlier one.

        Never one before ``txid``. The limit is the caller's.
        """

    def found_damage(self, name: str, pgnos: list[int]) -> None:
        """A verification has found pages that are not what they should be."""

    def members(self) -> tuple[Member, ...]:
        """Every node that is known, this one too; nothing without a lease."""

    def history(self) -> tuple[Reign, ...]:
        """Past and present primaries, oldest first."""

    async def failover(self, to: str | None, force: bool) -> Endpoint:  # noqa: FBT001  the words of the request
        """Have another primary; who it is, once it has the lease. Raises Refused, Unavailable.

        On a replica only with ``force``, for itself: when the primary does not renew its lease.
        """
