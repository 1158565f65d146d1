"""Who waits for the disk, and where.

Knows how to make a call that blocks on the disk without holding the event loop for long, and without paying a thread
switch for a disk that answers faster than the switch. Does not know what is made durable.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

# A hand-over to a worker thread and back costs 60-150 us on two cores, and while the loop is busy the thread also waits
# for the interpreter; a call that lately took less than this is made in place.
INLINE_LIMIT_S: Final = 0.001
# Weight of the newest call in the running mean, and what one call counts for at most: a single slow one (the disk's own
# housekeeping) does not change the way, a few in a row do.
_WEIGHT: Final = 0.25
_LONGEST_S: Final = 0.002
# In a thread the time that a call takes cannot be told from the time that the thread waits, so one of so many calls is
# made in place to see whether the disk is fast (again): a slow disk costs the loop that one.
PROBE_EVERY: Final = 64
MAX_THREADS: Final = 8


class BlockingCalls:
    """Runs blocking disk calls; remembers how long they take."""

    __slots__ = ("_in_threads", "_limiter", "_mean_s")

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._in_threads = 0
        self._limiter: trio.CapacityLimiter | None = None

    async def run(self, call: Callable[[], None]) -> None:
        """Call ``call``; its exceptions pass through. The caller's task may be suspended."""
        if self._mean_s < INLINE_LIMIT_S or self._in_threads >= PROBE_EVERY:
            self._in_threads = 0
            self._timed(call)
            return
        self._in_threads += 1
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(MAX_THREADS)
        await trio.to_thread.run_sync(call, limiter=self._limiter)

    def _timed(self, call: Callable[[], None]) -> None:
        start = time.perf_counter()
        try:
            call()
        finally:
            took_s = min(time.perf_counter() - start, _LONGEST_S)
            self._mean_s += (took_s - self._mean_s) * _WEIGHT
