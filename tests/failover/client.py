"""What an application does, in a process of its own: run as a script, it knows SQLite and nothing of litereplica.

One argument, a JSON object; ``do`` is one of
``prepare`` (``path``): makes a WAL database with the table that the others use;
``write`` (``name``, ``places``: [[node, path], …], ``log``, ``pause_s``, ``retry_s``, ``busy_s``): numbered rows, one
transaction each, at the first place that takes them; goes on to the next place when it is refused, round and round,
with a pause after each round, until SIGTERM;
``read`` (``path``, ``log``, ``pause_s``): reads until SIGTERM.

Lines of the log; instants are of the system's monotonic clock:
``A number node began done``: acknowledged, with the instants of its COMMIT;
``F number node stage at code held``: refused; SQLite's write lock had been got at ``held``, 0 when it had not;
``R rows at``: what a reader sees, now and then.
"""

import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

PAYLOAD_BYTES: Final = 120
READ_SAID_EVERY_S: Final = 0.05

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entry (writer TEXT, number INTEGER, node TEXT, payload BLOB, PRIMARY KEY (writer, number));
"""

stopped: list[int] = []
PARENT: Final = os.getppid()


def goes_on() -> bool:
    """Whether nobody has ended us, nor the one who started us."""
    return not stopped and os.getppid() == PARENT


def connect(path: str, busy_s: float, mode: str = "rw") -> sqlite3.Connection:
    """Never makes a file: while a node is down there may be an empty directory instead of its mount."""
    return sqlite3.connect(f"file:{path}?mode={mode}", uri=True, isolation_level=None, timeout=busy_s)


def prepare(options: dict[str, Any]) -> None:
    Path(options["path"]).parent.mkdir(parents=True, exist_ok=True)
    connection = connect(options["path"], 20, "rwc")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(SCHEMA)
    connection.close()


class Writing:
    """One writer, at one place at a time."""

    def __init__(self, options: dict[str, Any], say: Callable[[str], None]) -> None:
        self._name: str = options["name"]
        self._busy_s: float = options["busy_s"]
        self._say = say
        self._connection: sqlite3.Connection | None = None
        self._number = 0
        self._stage = ""
        self._held = 0.0

    def try_at(self, node: str, path: str) -> bool:
        """One transaction; whether it was acknowledged."""
        try:
            began = self._transaction(node, path)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", type(error).__name__)
            self._say(f"F {self._number} {node} {self._stage} {time.monotonic():.6f} {code} {self._held:.6f}\n")
            self.close()
            return False
        self._say(f"A {self._number} {node} {began:.6f} {time.monotonic():.6f}\n")
        return True

    def _transaction(self, node: str, path: str) -> float:
        # A number is used once: what became of one that was refused is its own affair.
        self._number += 1
        self._held = 0.0
        self._stage = "open"
        if self._connection is None:
            self._connection = connect(path, self._busy_s)
            self._connection.execute("PRAGMA synchronous=NORMAL")
        self._stage = "begin"
        self._connection.execute("BEGIN IMMEDIATE")
        self._stage = "statement"
        payload = os.urandom(PAYLOAD_BYTES)
        got = time.monotonic()
        self._connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (self._name, self._number, node, payload))
        # Not before: BEGIN IMMEDIATE succeeds on a database that is read-only, and locks nothing.
        self._held = got
        self._stage = "commit"
        began = time.monotonic()
        self._connection.execute("COMMIT")
        return began

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def write(options: dict[str, Any], say: Callable[[str], None]) -> None:
    writing, at, refused = Writing(options, say), 0, 0
    places: list[list[str]] = options["places"]
    while goes_on():
        if writing.try_at(*places[at]):
            refused = 0
            time.sleep(options["pause_s"])
            continue
        at, refused = (at + 1) % len(places), refused + 1
        if refused % len(places) == 0:
            time.sleep(options["retry_s"])
    writing.close()


def read(options: dict[str, Any], say: Callable[[str], None]) -> None:
    connection: sqlite3.Connection | None = None
    said = 0.0
    while goes_on():
        try:
            if connection is None:
                connection = connect(options["path"], 5, "ro")
            rows = connection.execute("SELECT max(rowid) FROM entry").fetchone()[0] or 0
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", type(error).__name__)
            say(f"F 0 - read {time.monotonic():.6f} {code} 0\n")
            if connection is not None:
                connection.close()
                connection = None
        else:
            if time.monotonic() - said > READ_SAID_EVERY_S:
                said = time.monotonic()
                say(f"R {rows} {said:.6f}\n")
        time.sleep(options["pause_s"])


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    if options["do"] == "prepare":
        prepare(options)
        return
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    log = os.open(options["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    {"write": write, "read": read}[options["do"]](options, lambda line: void(os.write(log, line.encode())))


def void(_value: object) -> None:
    """For a callback that answers nothing."""


if __name__ == "__main__":
    main()
