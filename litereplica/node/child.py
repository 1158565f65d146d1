"""The application, supervised.

Knows how to start it, pass signals on, and take its exit code. Does not know when the node is ready.
"""

import signal
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from litereplica.errors import Misconfigured

log = structlog.get_logger()

# How long the application may take to end after SIGTERM before it is killed: what service managers allow by default
# is longer (90 s), so it is us who end it, and the node still stops cleanly.
STOP_LIMIT_S: Final = 30.0
# After SIGKILL: it may be in a request to the mount whose answer is still to come.
KILL_LIMIT_S: Final = 5.0
# What a shell reports for a command that a signal ended.
SIGNAL_BASE: Final = 128


class Child:
    """One process; ``run`` returns its exit code."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: trio.Process | None = None
        self.gone = trio.Event()

    async def run(self, ended: Callable[[int], None]) -> None:
        """Start it, wait for its end and tell its exit code; cancellation asks it to end first.

        Told then: its own code, or 0 when it was the signal that ended it. Raises Misconfigured when it cannot start.
        """
        try:
            self._process = await trio.lowlevel.open_process(self._command)
        except OSError as error:
            message = (
                f"the application {self._command[0]!r} cannot be started ({error.strerror}): check exec in the "
                "configuration or the command after --"
            )
            raise Misconfigured(message) from None
        log.info("application_started", command=self._command[0], process=self._process.pid)
        process = self._process
        try:
            await process.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._end(process)
            code = 0 if process.returncode == -signal.SIGTERM else self._code(process)
            ended(code)
            raise
        finally:
            self.gone.set()
        ended(self._code(process))

    @property
    def is_alive(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._process is not None and self._process.returncode is None

    @staticmethod
    def _code(process: trio.Process) -> int:
        # One that SIGKILL did not end yet has no code; it ends with the mount.
        code = -signal.SIGKILL if process.returncode is None else process.returncode
        log.info("application_ended", exit_code=code)
        return SIGNAL_BASE - code if code < 0 else code

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None and self.is_alive:
            self._process.send_signal(signal.Signals(number))

    async def _end(self, process: trio.Process) -> None:
        process.terminate()
        with trio.move_on_after(STOP_LIMIT_S):
            await process.wait()
            return
        log.warning("application_killed", after_s=STOP_LIMIT_S)
        process.kill()
        with trio.move_on_after(KILL_LIMIT_S):
            await process.wait()
            return
        log.error("application_unkillable", process=process.pid, after_s=KILL_LIMIT_S)
