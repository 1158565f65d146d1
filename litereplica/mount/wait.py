"""How the FUSE descriptor is waited for.

Knows pyfuse3's worker loop: each worker takes a lock, waits until the descriptor is readable, reads one request and
answers it. With trio's own lock and epoll that is two turns of the scheduler a request (measured: 51 us for a write);
a commit is two or three requests that follow each other within microseconds. So the descriptor is polled for a short
time before the task goes to sleep, and the lock costs nothing while nobody holds it.

Does not know what requests mean. ``pyfuse3.trio`` is the module's documented hook (its asyncio back end replaces it in
the same way).
"""

import select
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace, TracebackType
from typing import Final, cast

import pyfuse3
import trio

# How long to poll before going to sleep: longer than an application needs between the writes of one commit
# (10-30 us), short enough that a lone request burns no CPU to speak of.
POLL_S: Final = 40e-6
# The scheduler gets a turn after so many requests in a row, however busy the descriptor is: replication, timers and
# HTTP live there. With work pending (``hurry``) at once, unless it had one this recently.
TURNS: Final = 64
HURRY_S: Final = 0.001
# Workers that may sit idle. The loop starts one when none waits; each held request occupies one.
IDLE_WORKERS: Final = 80
# Requests that may be held at once: far above any number of databases and lock openers on one machine. At the limit
# nothing is read from the descriptor any more, not even what would release the held ones.
MAX_WORKERS: Final = 65_536


class _Done(tuple[()]):
    """An awaitable that is done: ``await`` asks it for an iterator, which ends at once, without a Python frame."""

    __slots__ = ()
    __await__ = tuple.__iter__


_DONE: Final = cast("Awaitable[None]", _Done())


class FastLock:
    """A lock for tasks of one thread: no coroutine when it is free; the longest waiter is woken first."""

    __slots__ = ("_held", "_waiters")

    def __init__(self) -> None:
        self._held = False
        self._waiters: deque[trio.lowlevel.Task] = deque()

    def __aenter__(self) -> Awaitable[None]:
        if self._held:
            return self._acquire()
        self._held = True
        return _DONE

    async def _acquire(self) -> None:
        while self._held:
            task = trio.lowlevel.current_task()
            self._waiters.append(task)

            def abort(_: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._waiters.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._held = True

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Awaitable[None]:
        self._held = False
        if self._waiters:
            trio.lowlevel.reschedule(self._waiters.popleft())
        return _DONE


class AdaptiveWait:
    """Waits for one descriptor: polls it for a while, then sleeps in trio's epoll."""

    __slots__ = ("_poll", "_turns", "_yielded_s", "hurry")

    def __init__(self) -> None:
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._turns = 0
        self._yielded_s = 0.0
        # Set by whoever has work for other tasks (a commit to send); cleared when the scheduler had its turn.
        self.hurry = False

    def wait_readable(self, descriptor: int) -> Awaitable[None]:
        """An awaitable that is done once the descriptor is readable."""
        poll = self._poll
        if poll is None:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poll = self._poll = poller.poll
        clock = time.perf_counter
        turns = self._turns = self._turns + 1
        if turns < TURNS and not (self.hurry and clock() - self._yielded_s > HURRY_S):
            if poll(0):
                return _DONE
            end = clock() + POLL_S
            while clock() < end:
                if poll(0):
                    return _DONE
        self._turns = 0
        self._yielded_s = clock()
        self.hurry = False
        return trio.lowlevel.wait_readable(descriptor)  # noqa: ASYNC105  the caller awaits it


def install(wait: AdaptiveWait) -> None:
    """Make pyfuse3's workers use ``wait``. Call before ``pyfuse3.main``."""
    pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]  # a global of the module, not of its stub
        Lock=FastLock,
        ClosedResourceError=trio.ClosedResourceError,
        open_nursery=trio.open_nursery,
        lowlevel=SimpleNamespace(
            wait_readable=wait.wait_readable,
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
            notify_closing=trio.lowlevel.notify_closing,
        ),
    )
