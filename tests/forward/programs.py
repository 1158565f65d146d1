"""Programs of a run: processes on the mounts of nodes, their logs outside of them, ended whatever happens.

Knows how program.py is started, watched and ended. What it says is history.py's.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.forward.history import Attempt, History, Misread, attempts_of
from tests.support.nodes import Node
from tests.support.waiting import wait_until

PROGRAM: Final = Path(__file__).with_name("program.py")
PREPARE_LIMIT_S: Final = 30.0
END_LIMIT_S: Final = 30.0
"""It ends after the transaction at hand, which has a limit of its own."""
KILL_LIMIT_S: Final = 5.0
PAUSE_S: Final = 0.005
"""Mean between two transactions of one program."""
BUSY_S: Final = 5.0


class Program(History):
    """One process; its log is read as it grows."""

    def __init__(self, folder: Path, name: str, node: Node, databases: Sequence[str], seed: str) -> None:
        super().__init__(name, node.name)
        self._log = folder / f"{name}.log"
        self._log.touch()
        self._offset = 0
        self.struck = False
        document: dict[str, Any] = {
            "do": "write",
            "name": name,
            "node": node.name,
            "paths": {each: str(node.path(each)) for each in databases},
            "log": str(self._log),
            "seed": seed,
            "pause_s": PAUSE_S,
            "busy_s": BUSY_S,
        }
        self.process = subprocess.Popen([sys.executable, PROGRAM, json.dumps(document)], stdin=subprocess.DEVNULL)

    def refresh(self) -> Self:
        """Take in what the process has said since."""
        with self._log.open(encoding="utf-8") as log:
            log.seek(self._offset)
            self.feed(log.read())
            self._offset = log.tell()
        return self

    @property
    def is_running(self) -> bool:
        return not self.struck and self.process.poll() is None

    def strike(self) -> None:
        """Kill -9, wherever it is; in a call that its mount holds it ends when that is answered."""
        self.struck = True
        self.process.kill()

    def end(self) -> list[str]:
        """End it after the transaction at hand; what is wrong with how it ended. Twice is once."""
        problems = []
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                problems.append(f"{self.writer} hangs: {self.refresh().last}")
                self.process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(KILL_LIMIT_S)
        self.refresh()
        # SIGTERM may have come before the program knew what to do with it.
        if self.process.poll() not in (0, -signal.SIGKILL, -signal.SIGTERM):
            problems.append(f"{self.writer} ended with {self.process.poll()}: {self.last}")
        return problems


class Programs:
    """All programs of one run; use it as a context. Names are unique over all runs on one database."""

    def __init__(self, folder: Path, seed: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._seed = seed
        self.all: list[Program] = []

    def start(self, node: Node, databases: Sequence[str]) -> Program:
        name = f"w{len(self.all)}-{node.name}-{time.monotonic_ns():x}"
        self.all.append(Program(self._folder, name, node, databases, self._seed))
        return self.all[-1]

    def running(self) -> list[Program]:
        return [each for each in self.all if each.is_running]

    @staticmethod
    def pause(seconds: float) -> None:
        """Let programs run so long, because what happens to them is a matter of chance and time."""
        time.sleep(seconds)

    def end(self) -> list[str]:
        """End all; what is wrong with how they ended."""
        for each in self.running():
            each.process.terminate()
        return [problem for each in self.all for problem in each.end()]

    # -- what they say ---------------------------------------------------------------------------------------------

    def attempts(self) -> list[Attempt]:
        return attempts_of(each.refresh() for each in self.all)

    def misread(self) -> list[Misread]:
        return [misread for each in self.all for misread in each.refresh().misread]

    def await_progress(self, programs: Mapping[str, Sequence[Program]], count: int, limit_s: float) -> None:
        """On every node so many more transactions in every database. AssertionError that names who stands still."""
        since = time.monotonic()
        wanted = {
            (node, database): 0
            for node, found in programs.items()
            for each in found
            for database in {attempt.database for attempt in each.refresh().attempts}
        }

        def behind() -> dict[tuple[str, str], int]:
            numbers = dict(wanted)
            for node, found in programs.items():
                for each in found:
                    for attempt in each.refresh().acknowledged(since):
                        numbers[node, attempt.database] = numbers.get((node, attempt.database), 0) + 1
            return {place: number for place, number in numbers.items() if number < count}

        try:
            wait_until(lambda: not behind(), f"{count} more transactions everywhere", limit_s)
        except AssertionError as error:
            last = {each.writer: each.last for found in programs.values() for each in found}
            raise AssertionError(f"{error}; behind are {behind()}; last attempts: {last}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems = self.end()
        assert kind is not None or not problems, problems


def prepare(path: Path, mode: str) -> None:
    """Make a database as an application makes one, on the mount that the path is in. AssertionError with its words."""
    options = json.dumps({"do": "prepare", "path": str(path), "mode": mode})
    done = subprocess.run(
        [sys.executable, PROGRAM, options], capture_output=True, text=True, timeout=PREPARE_LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{path} was not made: {done.stderr}"
