"""What was handed on and has not come back: how much, and since when.

Knows TXIDs with an instant and a size. Does not know clocks: any that rises will do.
"""

from collections import deque
from typing import Final

MARKS_LIMIT: Final = 512
"""Remembered hand-overs of one database; beyond it the newest ones are taken together, which makes lag look longer."""


class Marks:
    """Outstanding TXIDs of one database, in ascending order."""

    __slots__ = ("_entries", "size_bytes")

    def __init__(self) -> None:
        self._entries: deque[tuple[int, float, int]] = deque()
        self.size_bytes = 0

    def add(self, txid: int, at: float, size_bytes: int = 0) -> None:
        """``txid`` (and all before it) was handed on; the wait for it counts from ``at``."""
        self.size_bytes += size_bytes
        entries = self._entries
        if len(entries) >= MARKS_LIMIT:
            _, at, before = entries.pop()
            size_bytes += before
        entries.append((txid, at, size_bytes))

    def passed(self, txid: int) -> None:
        """Everything up to ``txid`` has come back."""
        entries = self._entries
        while entries and entries[0][0] <= txid:
            self.size_bytes -= entries.popleft()[2]

    def clear(self) -> None:
        """Nothing is waited for any more."""
        self._entries.clear()
        self.size_bytes = 0

    @property
    def since(self) -> float | None:
        """Since when the oldest one is waited for; None when nothing is outstanding."""
        return self._entries[0][1] if self._entries else None
