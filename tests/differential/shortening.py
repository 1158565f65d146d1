"""Makes a program that shows a difference shorter: pieces are left out as long as it still differs.

Knows only that operations are a list; those that are not possible any more are skipped by whoever runs it.
"""

from collections.abc import Callable
from typing import Protocol

from tests.differential.operations import Operation


class Shows(Protocol):
    """What a run answers: the difference, or nothing."""

    @property
    def program(self) -> list[Operation]: ...


def shorten(program: list[Operation], run: Callable[[list[Operation]], Shows | None]) -> list[Operation]:
    """A part of ``program`` after whose last operation the two sides still differ (delta debugging, in halves)."""
    best = list(program)
    size = max(1, len(best) // 2)
    while size:
        at = 0
        while at < len(best):
            shorter = best[:at] + best[at + size :]
            found = run(shorter) if shorter else None
            if found is None:
                at += size
            else:
                best = list(found.program)
        size //= 2
    return best
