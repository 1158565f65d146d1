"""How something that must be quick gets a task going.

Knows one waiting task and the scheduler. Does not know what the task will do.
"""

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task


class Wake:
    """A flag that one task waits for. ``set`` costs 0.1 us while the task runs, about 1 us when it waits."""

    __slots__ = ("_set", "_task")

    def __init__(self) -> None:
        self._set = False
        self._task: Task | None = None

    def set(self) -> None:
        """Let the task go on, now or as soon as it waits. For the loop's thread only; never blocks."""
        if self._set:
            return
        self._set = True
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Return once the flag was set; it is clear then. Always lets other tasks run."""
        if self._set:
            self._set = False
            await trio.lowlevel.checkpoint()
            return
        assert self._task is None, "one task waits"
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._give_up)
        self._set = False

    def _give_up(self, _: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED
