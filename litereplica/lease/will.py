"""The daemon's side of last_will.py: start the child, tell it what to undo, part with it.

Knows the pipe and its end. Does not know Consul: what is told is a document for the child. A kill -9 of the daemon
breaks the pipe, because no other process has its writing end (descriptors are not inherited).
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog
import trio

log = structlog.get_logger(__name__)

_PROGRAM: Final = Path(__file__).with_name("last_will.py")
END_LIMIT_S: Final = 2.0
"""The child ends as soon as it reads the end of the pipe, after a goodbye; else when Consul has answered it."""


class Will:
    """One child at a time. ``start`` it early: a small process forks quicker than a large one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child. It shares nothing with us: no descriptor, no terminal, no folder, no process group."""
        assert self._process is None
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def update(self, document: Mapping[str, Any]) -> None:
        """Say what to undo from now on."""
        assert self._process is not None
        line = json.dumps(document).encode() + b"\n"
        if not self._write(line):
            log.warning("last_will_started_again")
            self._discard()
            self.start()
            self._write(line)

    async def close(self) -> None:
        """Part in peace: nothing is undone."""
        if self._process is not None:
            self._write(b'"goodbye"\n')
        if (process := await self._part()) is not None:
            process.kill()
            process.wait()

    async def abandon(self) -> None:
        """Leave everything to the child, as a process does that is killed; no commit may be accepted any more.

        It has the time that an agent takes to answer; if none does, it goes on without us.
        """
        if (process := await self._part()) is not None:
            log.warning("lease_left_to_child", process=process.pid)

    async def _part(self) -> "subprocess.Popen[bytes] | None":
        """Break the pipe; the child, if it has not ended in time."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        process.stdin.close()
        try:
            await trio.to_thread.run_sync(process.wait, END_LIMIT_S)
        except subprocess.TimeoutExpired:
            return process
        return None

    def _write(self, line: bytes) -> bool:
        """Whether all of it is in the pipe, which is empty but for a moment and holds 64 KiB."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            return os.write(self._process.stdin.fileno(), line) == len(line)
        except OSError:  # the child is gone, or stands still
            return False

    def _discard(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.kill()  # before the pipe breaks: it must not undo anything
        process.wait()
        process.stdin.close()
        self._process = None
