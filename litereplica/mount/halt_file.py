"""``DB-halt``: the right to write a database, for as long as the file is open for writing.

Knows that its opening waits, what ends the wait, and that nothing is kept of what is written to it. Does not know who
gets the right when (Elsewhere.hold).
"""

import errno
from typing import Final

import pyfuse3
import structlog
import trio

from litereplica.errors import LitereplicaError
from litereplica.mount.elsewhere import Elsewhere, HoldHandle
from litereplica.mount.opener import has_signal

log = structlog.get_logger()

SIGNAL_POLL_S: Final = 0.05
"""Between two looks at the opener's signals: Ctrl-C is felt at once, and a wait costs nothing to speak of."""


class HaltHandle:
    """``DB-halt``, opened. ``hold``: None when it was only opened to be read."""

    __slots__ = ("_content", "_hold")

    def __init__(self, content: bytes, hold: HoldHandle | None) -> None:
        self._content = content
        self._hold = hold

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    async def write_request(self, offset: int, data: bytes) -> int:  # noqa: ARG002  every handle's form
        return len(data)

    async def sync(self) -> None:
        """Nothing to make durable."""

    def release(self) -> None:
        """It is closed, or its process is dead."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.release()


async def open_halt(elsewhere: Elsewhere, name: str, task_id: int) -> HoldHandle:
    """Wait for the right to write ``name``. Raises EINTR when a signal for the opener comes first, EIO if refused.

    Of an opener that is hidden (mount.opener) nobody can say whether it has a signal, or lives: EINTR after
    ``writes.timeout``, so that it takes its signals, and opens it again if it still wants to.
    """
    found: HoldHandle | None = None
    problem: LitereplicaError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_for_signal, task_id, elsewhere.limit_s, nursery.cancel_scope)
        try:
            found = await elsewhere.hold(name)
        except LitereplicaError as error:
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        log.info("halt_refused", database=name, reason=problem.message)
        raise pyfuse3.FUSEError(errno.EIO)
    if found is None:
        raise pyfuse3.FUSEError(errno.EINTR)
    return found


async def _wait_for_signal(task_id: int, hidden_limit_s: float, scope: trio.CancelScope) -> None:
    while (interrupted := has_signal(task_id)) is False:  # noqa: ASYNC110  the kernel tells nobody
        await trio.sleep(SIGNAL_POLL_S)
    if interrupted is None:
        await trio.sleep(hidden_limit_s)
    scope.cancel()
