"""Applications that write, as they do on a primary: real SQLite, a process each.

Knows how to run one that does what it is told, one that writes without a pause, and one that dies in a transaction.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.applier.support import Client

_WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=float(sys.argv[2]))
print("up", flush=True)
for line in sys.stdin:
    try:
        print(repr(connection.execute(line).fetchall()), flush=True)
    except sqlite3.Error as error:
        print(repr(error.sqlite_errorname), flush=True)
"""

_BUSY = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
connection.execute("PRAGMA synchronous=OFF")
print("up", flush=True)
while True:
    connection.execute("INSERT INTO t (n) VALUES (1)")
"""


class Application(Client):
    """Runs statements; ``busy_timeout_s`` is its patience. An error is answered by its name (SQLITE_BUSY)."""

    def __init__(self, path: Path, busy_timeout_s: float = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(busy_timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "up"
        self.described = f"process {self._process.pid} ({Path(f'/proc/{self._process.pid}/comm').read_text().strip()})"

    def begin(self, sql: str) -> None:
        """Run a statement whose answer ``end`` takes."""
        assert self._process.stdin
        self._process.stdin.write(sql + "\n")
        self._process.stdin.flush()

    def end(self) -> Any:
        return eval(self._read(), {})


@contextlib.contextmanager
def application(path: Path, busy_timeout_s: float = 0) -> Iterator[Application]:
    """An application that is killed at the end of the block, whatever it is in."""
    found = Application(path, busy_timeout_s)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def busy_writer(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """One small transaction after the other."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY, str(path)], stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def open_files(pid: int) -> list[str]:
    """Paths that a process has open."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(each.readlink()))
    return found
