"""Processes that a benchmark starts: clients with a limit on every wait, and daemons that are ended for certain.

Knows /proc and signals. Knows nothing of what the processes do.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.harness.errors import BenchmarkError

REPOSITORY = Path(__file__).resolve().parents[2]
# The slowest known system fills a gigabyte in about two minutes.
CLIENT_LIMIT_S = 900.0
# A SIGKILLed process whose system call hangs on a dead mount is given up after this.
KILL_LIMIT_S = 10.0
POLL_S = 0.005


class Client:
    """One run of ``benchmarks.client``; its lines are read with a limit, and it never outlives its ``with`` block."""

    def __init__(self, mode: str, options: Mapping[str, object]) -> None:
        self.mode = mode
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client", mode, json.dumps(options, default=str)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_LIMIT_S)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def line(self, limit_s: float = CLIENT_LIMIT_S) -> dict[str, Any]:
        """The next object that the client prints. BenchmarkError: it ended, or said nothing in time."""
        output = self._process.stdout
        assert output
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise BenchmarkError(f"client {self.mode}: no answer in {limit_s:g} s")
                data = os.read(output.fileno(), 1 << 20)
                if not data:
                    raise BenchmarkError(f"client {self.mode}: {self._last_words()}")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def go(self) -> None:
        """Ends a client's wait for its standard input."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_LIMIT_S)
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with {self._process.returncode} and said nothing"


def client(mode: str, limit_s: float = CLIENT_LIMIT_S, **options: object) -> dict[str, Any]:
    """Runs one client to its end; its result."""
    with Client(mode, options) as process:
        process.go()
        return process.line(limit_s)


@contextlib.contextmanager
def daemon(command: Sequence[str], log: Path, stop_limit_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its own session, its output in `log`; SIGTERM at the end, and SIGKILL to what is left of it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        terminate(process, stop_limit_s)


def terminate(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """SIGTERM, then SIGKILL to the process and its descendants. BenchmarkError: it had to be killed."""
    if process.poll() is not None:
        kill_session(process.pid)
        return
    process.terminate()
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        kill(process)
        raise BenchmarkError(f"process {process.pid} did not end within {limit_s:g} s of SIGTERM") from None
    finally:
        kill_session(process.pid)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and its end."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_LIMIT_S)


def kill_session(session: int) -> None:
    """SIGKILL to what a daemon left behind: it was started as the leader of a session of its own."""
    for pid in tree_of(session, by_session=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def tree_of(root: int, *, by_session: bool = False) -> list[int]:
    """The living descendants of `root` and itself; with `by_session` every process of the session `root`."""
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # proc(5): the name in parentheses may hold anything; state, parent, group, session follow the last one.
            state, parent, _, session = (directory / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                parents[int(directory.name)] = int(parent)
                sessions[int(directory.name)] = int(session)
    if by_session:
        return [pid for pid, session in sessions.items() if session == root]
    tree = [root] if root in parents else []
    for ancestor in tree:
        tree += [pid for pid, parent in parents.items() if parent == ancestor]
    return tree


def wait_until(condition: Any, limit_s: float, what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Polls until `condition()` holds. BenchmarkError: it did not in time, or `process` ended first."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if process and process.poll() is not None:
            raise BenchmarkError(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what}: not within {limit_s:g} s")
        time.sleep(POLL_S)
