"""Whether this node may try to have the lease now.

Knows rests after attempts, promises to a primary that is cut off, and that a node which stops wants nothing. Does not
know what the lease looks like.
"""

from collections.abc import Callable
from typing import Final

from litereplica.cluster.lease import Member
from litereplica.cluster.role import Event

REST_S: Final = {
    # The watch shows within one round trip who was faster, or whether the attempt without an answer succeeded.
    Event.BEATEN: 0.25,
    Event.UNKNOWN: 0.25,
    # Whatever kept the data from being promoted takes a while to change, and another candidate should have its turn.
    Event.FAILED: 5.0,
}


class Eligibility:
    """A promise of an earlier start needs no memory: after a start, too, a ttl passes before a lease has lapsed."""

    def __init__(self, clock: Callable[[], float], member: Callable[[], Member]) -> None:
        self._clock = clock
        self._member = member
        self._rests_until = 0.0
        self._stands_back_until = 0.0
        self._for = ""
        self.leaving = False

    def rest(self, after: Event) -> None:
        """An attempt came to nothing."""
        self._rests_until = max(self._rests_until, self._clock() + REST_S[after])

    def stand_back(self, hold_s: float, reason: str) -> None:
        """There may be a primary that the lease does not show."""
        self._stands_back_until, self._for = max(self._stands_back_until, self._clock() + hold_s), reason

    def why_not(self, *, forced: bool = False) -> str:
        """Why this node may not try now; "" when it may. ``forced``: a person wants what is here, whatever is lost."""
        now, member = self._clock(), self._member()
        if self.leaving:
            return "this node stops"
        if not member.candidate:
            return "this node is not a candidate (node.candidate)"
        if reason := unusable(member, forced=forced):
            return reason
        if now < self._stands_back_until:
            return f"{self._for}: this node stands back for {self._stands_back_until - now:.1f} s more"
        if now < self._rests_until:
            return f"the last attempt came to nothing; the next one in {self._rests_until - now:.1f} s"
        return ""

    def next_change_s(self) -> float:
        """When time alone may change the answer, from now on; 0.0: never."""
        now = self._clock()
        return min((at - now for at in (self._rests_until, self._stands_back_until) if at > now), default=0.0)


def unusable(member: Member, *, forced: bool) -> str:
    """What is wrong with the databases of this node; "" when nothing is."""
    if not member.standing.whole:
        return (
            "this node is in the middle of a snapshot, has damaged pages or a disk that failed, or cannot apply what "
            "is logged"
        )
    if member.standing.parted and not forced:
        return (
            "databases here may still be of a history that was given up, and as the primary this node would bring it "
            "back: start the last primary; if that is gone for good, use 'litereplica failover --force' on this node"
        )
    if member.standing.emptied and not forced:
        return (
            "nothing is here, and the cluster has had transactions, which all others would give up if this node led: "
            "start the nodes that have them; if they are gone for good, use 'litereplica failover --force' on this node"
        )
    return ""
