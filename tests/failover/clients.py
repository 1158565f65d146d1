"""Applications of a field: processes that write and read on its mounts, and what they say that happened.

Knows the log lines of client.py. Every instant is of the system's monotonic clock, the same in every process.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.waiting import wait_until

PROGRAM: Final = Path(__file__).with_name("client.py")
PREPARE_LIMIT_S: Final = 20.0
END_LIMIT_S: Final = 3.0
"""A client ends after the transaction at hand; one that hangs in a mount that answers nothing is killed then."""
PAUSE_S: Final = 0.004
RETRY_S: Final = 0.02
BUSY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A transaction whose COMMIT, begun at ``began_s``, was answered at ``done_s``."""

    writer: str
    number: int
    node: str
    began_s: float
    done_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A transaction that was refused, at one of the stages open, begin, statement, commit; or a read.

    ``held_s``: when its writer had got SQLite's write lock, 0 when it had not.
    """

    writer: str
    number: int
    node: str
    stage: str
    at_s: float
    code: str
    held_s: float


class Client:
    """One process; its log is read as it grows."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._log.touch()
        self._offset = 0
        self._rest = ""
        self.acknowledged: list[Acknowledged] = []
        self.failed: list[Failed] = []
        self.seen: list[tuple[int, float]] = []
        """(rows, instant) of a reader."""
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, json.dumps(options | {"log": str(self._log), "name": name})],
            stdin=subprocess.DEVNULL,
        )

    def refresh(self) -> Self:
        """Take in what the process has said since."""
        with self._log.open(encoding="ascii") as log:
            log.seek(self._offset)
            text = log.read()
            self._offset = log.tell()
        *lines, self._rest = (self._rest + text).split("\n")
        for kind, *fields in map(str.split, lines):
            if kind == "A":
                number, node, began, done = fields
                self.acknowledged.append(Acknowledged(self.name, int(number), node, float(began), float(done)))
            elif kind == "F":
                number, node, stage, at, code, held = fields
                self.failed.append(Failed(self.name, int(number), node, stage, float(at), code, float(held)))
            else:
                self.seen.append((int(fields[0]), float(fields[1])))
        return self

    def end(self) -> None:
        """End it; twice is once."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(END_LIMIT_S)
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Clients:
    """All clients of one run; their names are unique, so that every row has one writer. Use it as a context."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self.writers: list[Client] = []
        self.readers: list[Client] = []

    def writer(self, *places: tuple[str, Path], pause_s: float = PAUSE_S, retry_s: float = RETRY_S) -> Client:
        """Writes at the first of the (node, path) that takes it."""
        options = {
            "do": "write",
            "places": [[node, str(path)] for node, path in places],
            "pause_s": pause_s,
            "retry_s": retry_s,
            "busy_s": BUSY_S,
        }
        # The instant makes names of different runs on one database differ.
        name = f"w{len(self.writers)}-{time.monotonic_ns():x}"
        self.writers.append(self._stack.enter_context(Client(self._folder, name, options)))
        return self.writers[-1]

    def reader(self, node: str, path: Path, pause_s: float = PAUSE_S) -> Client:
        name = f"r{len(self.readers)}-{node}"
        options = {"do": "read", "path": str(path), "pause_s": pause_s}
        self.readers.append(self._stack.enter_context(Client(self._folder, name, options)))
        return self.readers[-1]

    def end(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    # -- what they say ---------------------------------------------------------------------------------------------

    def acknowledged(self) -> list[Acknowledged]:
        """Everything so far, by the instant of the answer."""
        found = [each for writer in self.writers for each in writer.refresh().acknowledged]
        return sorted(found, key=lambda each: each.done_s)

    def failed(self) -> list[Failed]:
        return sorted((each for writer in self.writers for each in writer.refresh().failed), key=lambda each: each.at_s)

    def await_from(self, nodes: Iterable[str], since_s: float, limit_s: float, count: int = 1) -> Acknowledged:
        """The ``count``-th acknowledgement of one of ``nodes`` after an instant. AssertionError at the limit."""
        wanted = set(nodes)

        def found() -> Sequence[Acknowledged]:
            fit = [each for each in self.acknowledged() if each.done_s > since_s and each.node in wanted]
            return fit[count - 1 : count]

        return wait_until(found, f"{sorted(wanted)} acknowledge {count} transactions", limit_s)[0]


def prepare(path: Path) -> None:
    """A WAL database with the table that the clients use."""
    options = json.dumps({"do": "prepare", "path": str(path)})
    subprocess.run([sys.executable, PROGRAM, options], check=True, timeout=PREPARE_LIMIT_S, capture_output=True)


def longest_gap_s(acknowledged: Sequence[Acknowledged], since_s: float, until_s: float) -> float:
    """Longest time without an answer to anybody, between two instants."""
    instants = [since_s, *(each.done_s for each in acknowledged if since_s < each.done_s < until_s), until_s]
    return max(later - earlier for earlier, later in itertools.pairwise(instants))
