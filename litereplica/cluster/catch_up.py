"""What a primary sends to a replica that has a given position of a database, and how their last common one is found.

Knows positions and whether a log can tell that they are common history. Does not know how anything is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from litereplica.cluster.messages import SAMPLES_LIMIT
from litereplica.ltx.position import Point


class CatchUp(Enum):
    """How a replica gets from its position to the primary's."""

    NOTHING = "nothing"
    """It is there."""
    RECORDS = "records"
    """Its position is one that the log knows: the records after it."""
    SNAPSHOT = "snapshot"
    """The log begins later: every page, then records."""
    SEARCH = "search"
    """It is ahead, or has another history: the last position that both have is to be found first."""


def decide(replica: Point, primary: Point, point_at: Callable[[int], Point | None]) -> CatchUp:
    """How to bring ``replica`` (Point.ZERO: it has nothing) to ``primary``.

    ``point_at(txid)`` is that of the primary's log, None when the log does not reach back to it.
    """
    if replica.is_common(primary):
        return CatchUp.NOTHING
    if replica.txid >= primary.txid:
        return CatchUp.SEARCH
    point = point_at(replica.txid)
    if point is None:
        return CatchUp.SNAPSHOT
    return CatchUp.RECORDS if point.is_common(replica) else CatchUp.SEARCH


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The last common TXID is ``low`` or between it and ``high``, which is known not to be common.

    ``low`` is known to be common, or before all that this node's log can tell. Histories that part once are different
    from there on: also where contents become equal again (both dropped the database), their records are others.
    """

    low: int
    high: int

    @property
    def done(self) -> bool:
        """Nothing is left in between."""
        return self.high - self.low <= 1

    def samples(self) -> list[int]:
        """TXIDs to ask for, ascending: all that are left, or those that cut them into equal parts."""
        left = self.high - self.low - 1
        if left <= SAMPLES_LIMIT:
            return list(range(self.low + 1, self.high))
        parts = SAMPLES_LIMIT + 1
        return [self.low + number * (left + 1) // parts for number in range(1, parts)]

    def narrowed(self, found: int) -> "Narrowing":
        """After the answer ``found``: the newest of ``samples()`` that is common, 0 for none of them."""
        samples = self.samples()
        if not found:
            return Narrowing(self.low, samples[0])
        assert found in samples
        newer = [txid for txid in samples if txid > found]
        return Narrowing(found, newer[0] if newer else self.high)
