"""The interface of a lease.

Every method that talks to somebody has a limit of its own and ends when its task is cancelled. Outcomes: it returns
(done), raises Refused (a rule says no: somebody was faster, the token is wrong) or Unavailable (unknown: it may have
happened).
"""

from typing import Protocol

import trio

from litereplica.cluster.lease import Endpoint, Holding, Member, Reign, View


class Lease(Protocol):
    """One cluster's lease. An instance belongs to one start of one node's process."""

    async def join(self, known_cluster: str, member: Member) -> str:
        """Make sure that this is the cluster that the node knows ("" on its first start) and publish the member.

        The cluster's id, made once by compare-and-set. Raises Refused with what to do: another cluster's id, a key that
        something else uses, a node of the same name that lives, a newer protocol, no right to write.
        """

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep alive what makes the member's entry go away with the process, from ``join`` to ``close``; never ends.

        Makes it anew when it was lost, the cluster's id and the member's entry with it. Started at once.
        """

    async def watch(self, known: View | None, limit_s: float) -> View:
        """The lease as soon as it differs from ``known`` (at once for None), or as it is after ``limit_s``.

        A holding that went without being released (its session ended, somebody deleted it, the store was wiped or
        restored) is still shown: its holder may not know yet, and whoever wants it waits a ttl as ever.
        An index may be lower than the one before. Never from a server's stale memory. Raises Unavailable.
        """

    async def acquire(self, seen: View, me: Endpoint, ttl_s: float, seen_epoch: int) -> Holding:
        """Take the lease that is vacant, or whose holder did not change it since ``seen``; compare-and-set on that.

        The epoch is above ``seen_epoch`` and above every one before. Raises Refused when anything changed since.
        After Unavailable it may have been taken: the next call finds out by itself, and takes it under a new epoch.
        """

    async def renew(self, mine: Holding, offered_to: str = "", *, alone: bool = True) -> Holding:
        """Write the value anew, with the next counter. Raises Refused when it is no longer ours.

        After Unavailable it may have been written: the next call with the same ``mine`` finds out by itself. What went
        by accident is made anew, with the same epoch, if ``alone``: nobody else can have taken it since this node wrote
        it last, neither because it lapsed nor because it was offered. A store that has forgotten it does not know.
        """

    async def release(self, mine: Holding, *, alone: bool = True) -> None:
        """Give it up at once. Raises Refused when it was no longer ours, or nobody can say any more whose it is.

        What went by accident is given up if ``alone``, as in ``renew``; else it is left to lapse.
        """

    async def publish(self, member: Member) -> None:
        """Write what this node says of itself; it goes away by itself some time after the process.

        Raises Refused when a later start of this node has taken its name.
        """

    async def members(self) -> tuple[Member, ...]:
        """Everybody who is known, this node too."""

    async def add_reign(self, reign: Reign) -> None:
        """Append to the history; the oldest beyond 100 go."""

    async def history(self) -> tuple[Reign, ...]:
        """Past and present primaries, oldest first."""

    async def close(self) -> None:
        """Leave: the member entry and the connections go; a lease that is still held is released, not ``alone``."""
