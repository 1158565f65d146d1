"""Who waits for the disk, and where.

Knows how to make a call that blocks on the disk without holding the event loop for long, and without paying a thread
switch for a disk that answers faster than the switch. Does not know what is made durable.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

# A hand-over to a worker thread and back costs 60-150 us on two cores; a fdatasync that has lately taken less than
# this is called in place. A disk that slows down costs the loop one slow call, and is then called from a thread.
INLINE_LIMIT_S: Final = 0.0005
# Weight of the newest call in the running mean: one slow call moves a fast disk over the limit at once.
_WEIGHT: Final = 0.25
MAX_THREADS: Final = 8


class BlockingCalls:
    """Runs blocking disk calls; remembers how long they take."""

    __slots__ = ("_limiter", "_mean_s")

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._limiter: trio.CapacityLimiter | None = None

    async def run(self, call: Callable[[], None]) -> None:
        """Call ``call``; its exceptions pass through. The caller's task may be suspended."""
        if self._mean_s < INLINE_LIMIT_S:
            self._timed(call)
            return
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(MAX_THREADS)
        await trio.to_thread.run_sync(self._timed, call, limiter=self._limiter)

    def _timed(self, call: Callable[[], None]) -> None:
        # The duration is taken around the call itself, in the thread too, so a disk that recovers is noticed.
        start = time.perf_counter()
        try:
            call()
        finally:
            self._mean_s += (time.perf_counter() - start - self._mean_s) * _WEIGHT
