"""Work in turns: a step that cannot go on says when to try again, so that no database stalls another.

Knows growing delays within a limit. Does not know what is waited for, nor who gives the turns (child.py).
"""

import time
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from litereplica.errors import Unavailable

LOCK_WAIT_S: Final = 5.0
"""How long others may hold a lock before it is said. An application that writes here holds the WRITE lock as long as
its transaction is open, which is its own choice; a reader that runs recovery holds it for about 1 s a GiB."""

LOCK_DELAY_S: Final = 0.0003
"""Between two attempts to get the lock before others, at most: a busy writer leaves it free for less, but often."""

_FIRST_DELAY_S: Final = 0.0001
_LONGEST_DELAY_S: Final = 0.01
_FIRST_NUDGE_S: Final = 0.002
_NUDGE_GROWTH: Final = 1.5
_LONGEST_NUDGE_S: Final = 0.25

_Value = TypeVar("_Value")
Turns = Generator[float, None, _Value]
"""Each ``yield`` is the seconds until the next turn may get further."""


class TimedOut(Unavailable):
    """Others were in the way for the whole limit; nothing else is wrong."""


class Waits:
    """Growing delays within a limit."""

    __slots__ = ("_deadline", "_delay_s", "_limit_s", "_longest_s", "_nudge_s")

    def __init__(self, limit_s: float = LOCK_WAIT_S, longest_s: float = _LONGEST_DELAY_S) -> None:
        """``limit_s`` counts from the first delay."""
        self._deadline = 0.0
        self._delay_s = _FIRST_DELAY_S
        self._limit_s = limit_s
        self._longest_s = longest_s
        self._nudge_s = _FIRST_NUDGE_S

    @classmethod
    def until(cls, deadline: float, limit_s: float, longest_s: float) -> "Waits":
        """Delays up to an instant of the monotonic clock, which ``limit_s`` led to."""
        waits = cls(limit_s, longest_s)
        waits._deadline = deadline
        return waits

    def shorten(self, limit_s: float) -> None:
        """Wait no longer than ``limit_s`` in all, if that is less."""
        if limit_s < self._limit_s:
            if self._deadline:
                self._deadline -= self._limit_s - limit_s
            self._limit_s = limit_s

    def next_delay(self, problem: str | Callable[[], str], *, in_line: bool = False) -> float:
        """Seconds to wait now; raises TimedOut with ``problem`` when it has been long enough.

        A ``problem`` that takes a look to be told is asked for then. ``in_line``: the turn comes when the wait is over,
        and before that only as often as it is worth to look more closely.
        """
        now = time.monotonic()
        self._deadline = self._deadline or now + self._limit_s
        if now > self._deadline:
            raise TimedOut(f"{problem if isinstance(problem, str) else problem()}, for {self._limit_s:.3g} s now")
        if in_line:
            delay_s, self._nudge_s = self._nudge_s, min(_NUDGE_GROWTH * self._nudge_s, _LONGEST_NUDGE_S)
            return min(delay_s, self._deadline - now)
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, self._longest_s)
        return delay_s
