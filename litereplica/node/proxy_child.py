"""The HTTP proxy, supervised: started with the node, started again when it ends.

Knows its process and how it is told its settings. Does not know what it does: nothing of litereplica.proxy is loaded
here.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import structlog
import trio

from litereplica.config import Settings, settings_document
from litereplica.http.listener import bind

log = structlog.get_logger()

# One that cannot start must not take the node's processor.
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
# One that has lived so long starts again at once.
PROVEN_S: Final = 30.0
# On top of proxy.timeouts.stop, which it gives its requests.
STOP_ALLOWANCE_S: Final = 3.0
# What the proxy reads of the configuration, and what that is checked against: a default in its place may not fit. The
# rest, and every secret, stays here.
SECTIONS: Final = ("node", "mount", "data", "http", "replication", "proxy", "log")


class ProxyChild:
    """One process at a time, on one socket: connections that come while it starts again wait in the socket's queue."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self.pid: int | None = None

    async def run(self) -> None:
        """Keep it running until cancelled; then it finishes its requests."""
        pause_s = FIRST_PAUSE_S
        while True:
            began = trio.current_time()
            code, reason = None, None
            try:
                code = await self._run_once()
            except OSError as error:  # no process, no memory, no descriptor is to be had: that may pass
                reason = error.strerror
            pause_s = FIRST_PAUSE_S if trio.current_time() - began > PROVEN_S else min(2 * pause_s, LONGEST_PAUSE_S)
            if reason is None:
                log.error("proxy_ended", exit_code=code, again_in_s=pause_s)
            else:
                log.error("proxy_not_started", reason=reason, again_in_s=pause_s)
            await trio.sleep(pause_s)

    async def _run_once(self) -> int:
        with _told(self._settings) as told:
            listener = self._listener.fileno()
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "litereplica", "-c", f"/dev/fd/{told}", "proxy", "--supervised", str(listener)],
                # It ends when this process is gone, however: its standard input ends then.
                stdin=subprocess.PIPE,
                pass_fds=(told, listener),
                env={name: value for name, value in os.environ.items() if not name.startswith("LITEREPLICA_")},
            )
            self.pid = process.pid
            try:
                return await process.wait()
            finally:
                if process.returncode is None:
                    with trio.CancelScope(shield=True):
                        await self._end(process)

    async def _end(self, process: trio.Process) -> None:
        process.terminate()
        with trio.move_on_after(self._settings.proxy.timeouts.stop_s + STOP_ALLOWANCE_S):
            await process.wait()
            return
        log.warning("proxy_killed")
        process.kill()
        await process.wait()


@contextlib.contextmanager
def opened_proxy(settings: Settings) -> Iterator[ProxyChild | None]:
    """The proxy with its socket, if one is configured. Raises Refused when the port is taken."""
    if settings.proxy.listen is None:
        yield None
        return
    with contextlib.closing(bind(settings.proxy.listen, "proxy.listen")) as listener:
        yield ProxyChild(settings, listener)


@contextlib.contextmanager
def _told(settings: Settings) -> Iterator[int]:
    """A file in memory with the settings in force: those of the file may have changed, or come from the environment."""
    document = settings_document(settings)
    text = json.dumps({section: _escaped(document[section]) for section in SECTIONS}).encode()
    descriptor = os.memfd_create("litereplica-proxy")
    try:
        os.write(descriptor, text)
        yield descriptor
    finally:
        os.close(descriptor)


def _escaped(value: Any) -> Any:
    """Values are final: nothing in them is a variable."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
