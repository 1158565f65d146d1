"""SQLite as applications use it: in processes of their own, so that nothing of a mount can hang a test.

Knows how to run scripts and to keep a session open. Every wait has a limit.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from tests.support.waiting import wait_until

# A statement that needs longer hangs; big ones ask for more.
LIMIT_S: Final = 60.0
FOLD_LIMIT_S: Final = 30.0

# Reads one repr of (sql, parameters) a line, answers one repr of ("rows", …), ("error", class, code name, text).
_PROGRAM: Final = r"""
import sqlite3, sys
uri, busy_s = sys.argv[1], float(sys.argv[2])
def answer(*values):
    sys.stdout.write(repr(values) + "\n")
    sys.stdout.flush()
def failed(error):
    answer("error", type(error).__name__, getattr(error, "sqlite_errorname", ""), str(error))
try:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_s)
except sqlite3.Error as error:
    failed(error)
    sys.exit(0)
answer("open")
for line in sys.stdin:
    sql, parameters, times = eval(line, {"__builtins__": {}})
    try:
        for _ in range(times):
            rows = connection.execute(sql, parameters).fetchall()
        answer("rows", rows)
    except (sqlite3.Error, sqlite3.Warning) as error:
        failed(error)
connection.close()
"""


class SqlError(Exception):
    """What SQLite said. ``code`` is its name, such as SQLITE_READONLY."""

    def __init__(self, kind: str, code: str, text: str) -> None:
        super().__init__(f"{kind} {code}: {text}")
        self.code = code
        self.text = text


class Session:
    """One connection of an ordinary application, open until ``close`` (or ``kill``)."""

    def __init__(self, path: Path, *, mode: str = "rwc", busy_s: float = 20.0) -> None:
        self._process = subprocess.Popen(
            # As few modules as possible: tests start thousands of these.
            [sys.executable, "-I", "-S", "-c", _PROGRAM, f"file:{quote(str(path))}?mode={mode}", str(busy_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._buffer = b""
        try:
            self._expect("open", LIMIT_S)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, sql: str, *parameters: Any, times: int = 1, limit_s: float = LIMIT_S) -> list[tuple[Any, ...]]:
        """Rows of one statement (of its last execution). Raises SqlError."""
        self.send(sql, *parameters, times=times)
        return self.receive(limit_s)

    def send(self, sql: str, *parameters: Any, times: int = 1) -> None:
        """Have one statement executed, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{(sql, parameters, times)!r}\n".encode())

    def receive(self, limit_s: float = LIMIT_S) -> list[tuple[Any, ...]]:
        """Rows of the oldest statement that was sent and not answered. Raises SqlError."""
        rows: list[tuple[Any, ...]] = self._expect("rows", limit_s)[1]
        return rows

    def _expect(self, kind: str, limit_s: float) -> tuple[Any, ...]:
        # Our own program says this. Not ast.literal_eval: in two threads at once that may fail (CPython, gh-106905).
        answer = eval(self._line(limit_s), {"__builtins__": {}})
        if answer[0] == "error":
            raise SqlError(*answer[1:])
        assert answer[0] == kind, answer
        return tuple(answer)

    def _line(self, limit_s: float) -> str:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        end = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"SQLite did not answer within {limit_s:g} s"
            piece = os.read(descriptor, 1 << 20)
            assert piece, f"the application ended with {self._process.wait(10)}"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def close(self, limit_s: float = 20.0) -> None:
        """Close the connection as an application does, and end. Kills it at the limit."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        if self._process.stdout is not None:
            self._process.stdout.close()

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.send_signal(signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None and kind is not None:
            self.kill()
        else:
            self.close()


def split(script: str) -> Iterator[str]:
    """The statements of a script, each up to its semicolon at a line's or the script's end."""
    import sqlite3

    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                yield statement.strip()
            statement = ""
    if statement.strip(" \n;"):
        yield statement.strip()


def refusal(session: Session, sql: str, *parameters: Any) -> str:
    """The code with which SQLite refuses a statement. AssertionError when it does not."""
    try:
        session.run(sql, *parameters)
    except SqlError as told:
        return told.code
    raise AssertionError(f"it was not refused: {sql}")


def run_sql(
    path: Path, script: str, *parameters: Any, mode: str = "rwc", limit_s: float = LIMIT_S, busy_s: float = 20.0
) -> list[tuple[Any, ...]]:
    """Run a script in a process of its own; the rows of its last statement that has any. Raises SqlError.

    ``parameters`` go to every statement that has a question mark.
    """
    rows: list[tuple[Any, ...]] = []
    with Session(path, mode=mode, busy_s=busy_s) as session:
        for statement in split(script):
            found = session.run(statement, *(parameters if "?" in statement else ()), limit_s=limit_s)
            rows = found or rows
    return rows


def make_database(path: Path, *, page_size: int = 4096, rows: int = 0) -> None:
    """A database in WAL mode with the table ``t (id INTEGER PRIMARY KEY, v)`` and rows 1 … ``rows`` in it."""
    run_sql(
        path,
        f"PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v);"
        + (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO t SELECT i, 'row ' || i FROM n;"
            if rows
            else ""
        ),
        *([rows] if rows else []),
    )


def fold(path: Path) -> None:
    """Checkpoint the whole WAL into the database file. AssertionError when a reader stays in the way.

    SQLite does not wait for another checkpoint, and the applier's may be under way.
    """
    wait_until(lambda: run_sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0, f"{path} is folded", FOLD_LIMIT_S)


def integrity(path: Path, *, mode: str = "ro") -> str:
    """SQLite's own verdict, "ok" when there is none."""
    return "; ".join(str(row[0]) for row in run_sql(path, "PRAGMA integrity_check", mode=mode))


def byte_equal(one: Path, other: Path, limit_s: float = LIMIT_S) -> bool:
    """Whether two files have the same bytes (their WALs are not looked at); False when one is missing."""
    done = subprocess.run(["cmp", "-s", str(one), str(other)], timeout=limit_s, check=False)
    return done.returncode == 0


def shell(path: Path, *commands: str, limit_s: float = LIMIT_S) -> "subprocess.CompletedProcess[str]":
    """The sqlite3 shell; each command is a line of its input."""
    return subprocess.run(
        ["sqlite3", "-batch", str(path)],
        input="".join(f"{command}\n" for command in commands),
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
