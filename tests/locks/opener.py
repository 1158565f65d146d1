"""Programs that have ``DB-halt`` open, and the command line that does it for others."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Final, Self

from tests.support.nodes import ROOT, Node

LIMIT_S: Final = 30.0

_PROGRAM: Final = """
import os, signal, sys
if len(sys.argv) > 2:
    def ring(number, frame): raise KeyboardInterrupt
    signal.signal(signal.SIGUSR1, ring)
print("begun", flush=True)
try:
    lock = os.open(sys.argv[1], os.O_RDWR)
except OSError as error:
    print("refused", error.strerror, flush=True)
    sys.exit(1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(0)
print("held", flush=True)
sys.stdin.read()
"""


class Opener:
    """A process that opens ``DB-halt`` at once, and closes it at its end. ``handles``: SIGUSR1 has a handler."""

    def __init__(self, node: Node, database: str = "app.db", *, handles: bool = False) -> None:
        arguments = [f"{node.path(database)}-halt", *(["x"] if handles else [])]
        # Unbuffered: a second line that is there already must not be read with the first, where select cannot see it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        try:
            assert self.word() == "begun"
        except BaseException:
            self.close()
            raise

    def word(self, limit_s: float = LIMIT_S) -> str:
        """The next thing that it says; "" for nothing within the limit, or when it is over."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        return self._process.stdout.readline().decode().strip() if ready else ""

    def wait_held(self) -> None:
        word = self.word()
        assert word == "held", word

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        """End it: the lock is given back."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Command:
    """``litereplica lock`` on a node; ``said`` is its standard error when it has ended."""

    def __init__(self, node: Node, *arguments: str, config: bool = True) -> None:
        shared = ["--config", str(node.config)] if config else ["--url", node.url]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "litereplica", "lock", *shared, *arguments],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("LITEREPLICA")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self, limit_s: float = LIMIT_S) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        try:
            out, errors = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate(timeout=limit_s)
            raise
        return self.process.returncode, out, errors
