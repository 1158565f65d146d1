"""``DB-halt``: the right to write a database, for as long as the file is open for writing.

Knows that its opening waits, what ends the wait, and that nothing is kept of what is written to it. Does not know who
gets the right when (Elsewhere.hold).
"""

import errno
from pathlib import Path
from typing import Final

import pyfuse3
import structlog
import trio

from litereplica.errors import LitereplicaError
from litereplica.mount.elsewhere import Elsewhere, HoldHandle

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
    """Wait for the right to write ``name``. Raises EINTR when a signal for the opener comes first, EIO if refused."""
    found: HoldHandle | None = None
    problem: LitereplicaError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_for_signal, task_id, nursery.cancel_scope)
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


async def _wait_for_signal(task_id: int, scope: trio.CancelScope) -> None:
    while not has_signal(task_id):  # noqa: ASYNC110  the kernel tells nobody
        await trio.sleep(SIGNAL_POLL_S)
    scope.cancel()


def has_signal(task_id: int) -> bool:
    """Whether a signal waits for the thread, which cannot take it while its open waits; or it is gone."""
    try:
        status = Path(f"/proc/{task_id}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    masks = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith(("Sig", "ShdPnd")))
    pending = int(masks["SigPnd"], 16) | int(masks["ShdPnd"], 16)
    return bool(pending & ~int(masks["SigBlk"], 16))
