"""Work in turns: a step that cannot go on says when to try again, so that no database stalls another.

Knows growing delays within a limit. Does not know what is waited for, nor who gives the turns (child.py).
"""

import time
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from litereplica.errors import Unavailable

LOCK_WAIT_S: Final = 5.0
"""How long the WRITE lock may be held by others; on a replica only recovery by a reader can, for about 1 s a GiB."""

_FIRST_DELAY_S: Final = 0.0001
_LONGEST_DELAY_S: Final = 0.01

_Value = TypeVar("_Value")
Turns = Generator[float, None, _Value]
"""Each ``yield`` is the seconds until the next turn may get further."""


class Waits:
    """Growing delays within a limit."""

    __slots__ = ("_deadline", "_delay_s", "_limit_s", "_longest_s")

    def __init__(self, limit_s: float = LOCK_WAIT_S, longest_s: float = _LONGEST_DELAY_S) -> None:
        self._deadline = 0.0
        self._delay_s = _FIRST_DELAY_S
        self._limit_s = limit_s
        self._longest_s = longest_s

    def next_delay(self, problem: str | Callable[[], str]) -> float:
        """Seconds to wait now; raises Unavailable with ``problem`` when it has been long enough.

        A ``problem`` that takes a look to be told is asked for then.
        """
        now = time.monotonic()
        self._deadline = self._deadline or now + self._limit_s
        if now > self._deadline:
            raise Unavailable(f"{problem if isinstance(problem, str) else problem()}, for {self._limit_s:.0f} s now")
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, self._longest_s)
        return delay_s
