"""What became of transactions that replicas forward, counted since this process was started.

Knows the outcomes' names, on both ends. Does not know who shows them (cluster.status, metrics).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

COMMITTED: Final = "committed"
STALE: Final = "stale"
BUSY: Final = "busy"
REFUSED: Final = "refused"
UNKNOWN: Final = "unknown"
BECAME_PRIMARY: Final = "became_primary"
NOT_PRIMARY: Final = "not_primary"
OUTCOMES: Final = (COMMITTED, STALE, BUSY, REFUSED, UNKNOWN, BECAME_PRIMARY)
"""Of a transaction of this node: ``became_primary``: this node was promoted meanwhile and committed it itself."""


@dataclass(frozen=True, slots=True)
class ForwardFigures:
    """``forwarded``: transactions of applications here, by outcome, every outcome named; ``waiting``: without one yet.

    ``taken``: transactions of replicas, by what they were answered (``not_primary``: to be sent again).
    """

    forwarded: dict[str, int]
    taken: dict[str, int]
    waiting: int


class ForwardCounts:
    """Counts; all of it on the loop's thread."""

    def __init__(self) -> None:
        self.waiting = 0
        self._forwarded: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._taken: Counter[str] = Counter()

    def forwarded(self, outcome: str) -> None:
        """A transaction of an application here has ended so (one of OUTCOMES)."""
        assert outcome in OUTCOMES, outcome
        self._forwarded[outcome] += 1

    def taken(self, outcome: str) -> None:
        """A replica's transaction was answered so."""
        self._taken[outcome] += 1

    def figures(self) -> ForwardFigures:
        """All of it now."""
        return ForwardFigures(dict(self._forwarded), dict(self._taken), self.waiting)
