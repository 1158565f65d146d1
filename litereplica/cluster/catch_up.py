"""What a primary sends to a replica that has a given position of a database.

Knows positions and whether the log can tell that they are common history. Does not know how anything is sent.
"""

from collections.abc import Callable
from enum import Enum

from litereplica.ltx.position import Position


class CatchUp(Enum):
    """How a replica gets from its position to the primary's."""

    NOTHING = "nothing"
    """It is there."""
    RECORDS = "records"
    """Its position is one that the log knows: the records after it."""
    SNAPSHOT = "snapshot"
    """It is ahead, has another history, or the log begins later: every page, then records."""


def decide(replica: Position, primary: Position, checksum_at: Callable[[int], int | None]) -> CatchUp:
    """How to bring ``replica`` (Position.ZERO: it has nothing) to ``primary``.

    ``checksum_at(txid)`` is the rolling checksum after ``txid`` in the primary's log, None when the log does not reach
    back to it.
    """
    if replica == primary:
        return CatchUp.NOTHING
    if replica.txid >= primary.txid:
        return CatchUp.SNAPSHOT
    return CatchUp.RECORDS if checksum_at(replica.txid) == replica.checksum else CatchUp.SNAPSHOT
