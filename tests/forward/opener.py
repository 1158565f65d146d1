"""An application that takes a database's lock: a process that has ``DB-halt`` open for writing, and nothing else."""

import contextlib
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

END_LIMIT_S: Final = 20.0
OPEN_LIMIT_S: Final = 30.0
# The two lines of the manual, and what tells us that it has the lock.
_PROGRAM: Final = """
import sys
try:
    lock = open(sys.argv[1], "w")
except OSError as error:
    print("refused", error.errno, error.strerror, flush=True)
    sys.exit()
print("held", flush=True)
sys.stdin.read()
lock.close()
"""


class Opener:
    """Use it as a context; the lock is asked for at once, and given back at the end at the latest."""

    def __init__(self, database: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, f"{database}-halt"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def word(self, limit_s: float = OPEN_LIMIT_S) -> str:
        """``held``, or ``refused`` with the error; AssertionError when there is none in time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        assert ready, f"the lock is neither had nor refused after {limit_s:g} s"
        return self._process.stdout.readline().strip()

    def wait_held(self, limit_s: float = OPEN_LIMIT_S) -> Self:
        word = self.word(limit_s)
        assert word == "held", word
        return self

    def has_answer(self) -> bool:
        """Whether a word is there; it stays to be read."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def close(self) -> None:
        """Close the file, and end. Twice is once."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        try:
            self._process.wait(END_LIMIT_S)
        finally:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()
