"""The two places where a program runs: a directory and the worker processes that use it.

Knows processes and their answers. Does not know what is on the directory: a mount or a plain disk.
"""

import ast
import contextlib
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

WORKER: Final = Path(__file__).with_name("worker.py")
# Nearly every statement takes less than a second. The longest, 6 MB in one transaction through a cache of one page,
# syncs its journal 9,000 times: that took 60 s on a machine with two cores that did much else besides.
ANSWER_S: Final = 150.0
END_S: Final = 20.0


class Silent(Exception):
    """A worker did not answer within ANSWER_S, or ended by itself."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``error`` is the name of SQLite's code (or of a Python error), "" when there was none; ``text`` explains it."""

    rows: tuple[Any, ...]
    error: str
    text: str
    in_transaction: bool

    def __str__(self) -> str:
        said = f"{self.error}: {self.text}" if self.error else repr(list(self.rows))
        return said + (" (in a transaction)" if self.in_transaction else "")


class Process:
    """One worker."""

    def __init__(self, library: str, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, WORKER, library, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._root = root
        self._buffer = b""

    def send(self, *request: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{request!r}\n".encode())

    def receive(self, limit_s: float = ANSWER_S) -> Answer:
        """Raises Silent."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        end = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Silent(f"no answer within {limit_s:g} s from an application in {self._root}")
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                raise Silent(f"the application ended by itself, with {self._process.wait(END_S)}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        kind, *rest = ast.literal_eval(line.decode())
        if kind == "rows":
            return Answer(tuple(rest[0]), "", "", rest[1])
        return Answer((), rest[0], rest[1], rest[2])

    def kill(self) -> None:
        """Kill -9; returns when the kernel has let go of all its files."""
        self._process.kill()
        self._process.wait(END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def end(self) -> None:
        """Its input ends, so it does; connections that are open are not closed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self.kill()


class Side:
    """A directory with its workers, which are started when first needed."""

    def __init__(self, name: str, root: Path, libraries: dict[str, str]) -> None:
        """``libraries``: sqlite3 or apsw by worker."""
        self.name = name
        self.root = root
        self._libraries = libraries
        self._processes: dict[str, Process] = {}

    def worker(self, name: str) -> Process:
        if name not in self._processes:
            self._processes[name] = Process(self._libraries[name], self.root)
        return self._processes[name]

    def ask(self, worker: str, *request: Any) -> Answer:
        """Raises Silent."""
        process = self.worker(worker)
        process.send(*request)
        return process.receive()

    def kill(self, worker: str) -> None:
        if worker in self._processes:
            self._processes.pop(worker).kill()

    def kill_all(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def end_all(self) -> None:
        for name in list(self._processes):
            self._processes.pop(name).end()
