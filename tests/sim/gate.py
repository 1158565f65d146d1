"""Tasks that can be stopped and continued, as SIGSTOP and SIGCONT do with a process.

A task that belongs to a gate (by its context, which its children inherit) runs only while the gate is open: whatever
wakes it up waits. Time goes on, and so does everybody else. Reproducible: ``run`` seeds the scheduler.
"""

import contextvars
import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

_GATE: contextvars.ContextVar["Gate | None"] = contextvars.ContextVar("gate", default=None)
_NOTHING = object()


class Gate:
    """The tasks of one process."""

    def __init__(self) -> None:
        self.is_open = True
        self.waiting: list[trio.lowlevel.Task] = []

    def close(self) -> None:
        self.is_open = False

    def open(self) -> None:
        self.is_open = True
        waiting, self.waiting = self.waiting, []
        for task in waiting:
            trio.lowlevel.reschedule(task)

    def start_soon(self, nursery: trio.Nursery, function: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Start a task that belongs to this gate."""
        context = contextvars.copy_context()
        context.run(_GATE.set, self)
        context.run(nursery.start_soon, function, *arguments)


class _GatedCoroutine:
    """Stands in the place of a task's coroutine."""

    def __init__(self, coroutine: Any, gate: Gate, task: trio.lowlevel.Task) -> None:
        self._coroutine = coroutine
        self._gate = gate
        self._task = task
        self._held: object = _NOTHING

    def send(self, value: object) -> object:
        if self._held is not _NOTHING:
            value, self._held = self._held, _NOTHING
        if self._gate.is_open:
            return self._coroutine.send(value)
        self._held = value
        self._gate.waiting.append(self._task)
        # The message to the scheduler, in the coroutine's place.
        return trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED).send(None)  # noqa: ASYNC105

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)


class _Gates(trio.abc.Instrument):
    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        gate = task.context.get(_GATE)
        if gate is not None:
            task.coro = _GatedCoroutine(task.coro, gate, task)  # type: ignore[assignment]


def run(function: Callable[[], Awaitable[object]], seed: int) -> None:
    """Run with gates, in time that passes by itself, in an order that ``seed`` decides."""
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r = random.Random(seed)
    try:
        trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[_Gates()])
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before
