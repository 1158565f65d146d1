"""An application that was never told of litereplica, in a process of its own: a loop of transactions on SQLite.

One argument, a JSON object; ``do`` is one of
``prepare`` (``path``, ``mode``): makes a database with the tables below, in that journal mode;
``write`` (``name``, ``node``, ``paths``: {database: path}, ``log``, ``seed``, ``pause_s``, ``busy_s``):
numbered transactions, each in one of the databases by chance, until SIGTERM; after an error it goes on with a new
number, on the same connection or on a new one.

Every transaction adds one row of its own to ``entry`` and one to the counter, and notes in ``place`` what the counter
was before: in the order in which they were committed, rows have the places 0, 1, 2 and so on. Kinds: ``small``;
``several`` (rows of another table too); ``deferred`` (reads first, locks late); ``auto`` (one statement without BEGIN);
``bulk`` (pages by the hundred, that replace those of the one before).

Lines of the log, outside any mount, each written at once; instants are of the system's monotonic clock:
``B number database kind at``: about to be tried;
``A number commit done``: acknowledged, with the instants of its COMMIT;
``F number stage commit at code text``: an error, at one of open, begin, statement, commit; ``commit`` is 0 before it;
``M number what``: read something that cannot be;
``S number``: after the error the row is there all the same.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any, Final

PREPARE_BUSY_S: Final = 20.0
PAYLOAD_BYTES: Final = 120
BULK_BYTES: Final = 1_300_000
"""More than a node keeps in memory of one transaction that it forwards."""
SEVERAL: Final = 5
KINDS: Final = {"small": 60, "several": 15, "deferred": 10, "auto": 14.6, "bulk": 0.4}
COUNTED: Final = 0.1
"""The share of transactions after which the counter is compared with the rows."""
CACHE_PAGES: Final = (-2000, 20)
"""SQLite's default, and so few that transactions spill."""

SCHEMA: Final = """
CREATE TABLE entry (id INTEGER PRIMARY KEY, writer TEXT, number INTEGER, node TEXT, place INTEGER, payload BLOB);
CREATE INDEX entry_writer ON entry (writer, number);
CREATE TABLE counter (id INTEGER PRIMARY KEY, value INTEGER);
INSERT INTO counter VALUES (1, 0);
CREATE TABLE side (writer TEXT, number INTEGER, place INTEGER);
CREATE TABLE bulk (writer TEXT PRIMARY KEY, number INTEGER, payload BLOB);
CREATE VIEW arriving AS SELECT writer, number, node, payload FROM entry;
CREATE TRIGGER arrives INSTEAD OF INSERT ON arriving BEGIN
  INSERT INTO entry SELECT NULL, new.writer, new.number, new.node, value, new.payload FROM counter;
  UPDATE counter SET value = value + 1;
END;
"""

stopped: list[int] = []
PARENT: Final = os.getppid()


def goes_on() -> bool:
    """Whether nobody has ended us, nor the one who started us."""
    return not stopped and os.getppid() == PARENT


def connect(path: str, busy_s: float, mode: str) -> sqlite3.Connection:
    """While a node is down there may be an empty directory instead of its mount: ``rw`` makes no file there."""
    return sqlite3.connect(f"file:{path}?mode={mode}", uri=True, isolation_level=None, timeout=busy_s)


def prepare(options: dict[str, Any]) -> None:
    with contextlib.closing(connect(options["path"], PREPARE_BUSY_S, "rwc")) as connection:
        wanted = options["mode"]
        found = connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0]
        assert found == wanted, (wanted, found)
        connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}COMMIT;")


class Program:
    """One loop; a connection to each database that it has used."""

    def __init__(self, options: dict[str, Any], say: Callable[[str], None]) -> None:
        self._name: str = options["name"]
        self._node: str = options["node"]
        self._paths: dict[str, str] = options["paths"]
        self._busy_s: float = options["busy_s"]
        self._pause_s: float = options["pause_s"]
        self._random = random.Random(f"{options['seed']} {self._name}")
        self._say = say
        self._connections: dict[str, sqlite3.Connection] = {}
        self._number = 0
        self._stage = ""
        self._commit_s = 0.0

    def run(self) -> None:
        while goes_on():
            self._try()
            time.sleep(self._random.expovariate(1 / self._pause_s))
        for database in list(self._connections):
            self._close(database)

    def _try(self) -> None:
        self._number += 1
        database = self._random.choice(list(self._paths))
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        self._say(f"B {self._number} {database} {kind} {time.monotonic():.6f}")
        self._stage, self._commit_s = "open", 0.0
        try:
            connection = self._connection(database)
            self._transaction(connection, kind)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", type(error).__name__)
            self._say(f"F {self._number} {self._stage} {self._commit_s:.6f} {time.monotonic():.6f} {code} {error}")
            self._after_error(database)
            return
        self._say(f"A {self._number} {self._commit_s:.6f} {time.monotonic():.6f}")
        self._read_back(database, connection)

    def _connection(self, database: str) -> sqlite3.Connection:
        if database not in self._connections:
            connection = connect(self._paths[database], self._busy_s, "rw")
            self._connections[database] = connection
            connection.execute(f"PRAGMA synchronous={self._random.choice(('NORMAL', 'FULL'))}")
            connection.execute(f"PRAGMA cache_size={self._random.choice(CACHE_PAGES)}")
        return self._connections[database]

    def _transaction(self, connection: sqlite3.Connection, kind: str) -> None:
        size = PAYLOAD_BYTES if self._random.random() < 0.9 else self._random.randint(0, 20_000)
        row = (self._name, self._number, self._node, self._random.randbytes(size))
        if kind == "auto":
            self._commit(lambda: connection.execute("INSERT INTO arriving VALUES (?, ?, ?, ?)", row))
            return
        self._stage = "begin"
        connection.execute("BEGIN" if kind == "deferred" else "BEGIN IMMEDIATE")
        self._stage = "statement"
        # What was read is what is written: a transaction on top of others that it has not seen would show.
        place = connection.execute("SELECT value FROM counter").fetchone()[0]
        connection.execute("INSERT INTO entry VALUES (NULL, ?, ?, ?, ?, ?)", (*row[:3], place, row[3]))
        connection.execute("UPDATE counter SET value = ?", (place + 1,))
        if kind == "several":
            rows = [(self._name, self._number, place) for place in range(SEVERAL)]
            connection.executemany("INSERT INTO side VALUES (?, ?, ?)", rows)
        if kind == "bulk":
            bulk = (self._name, self._number, self._random.randbytes(BULK_BYTES))
            connection.execute("INSERT OR REPLACE INTO bulk VALUES (?, ?, ?)", bulk)
        self._commit(lambda: connection.execute("COMMIT"))

    def _commit(self, how: Callable[[], object]) -> None:
        self._stage, self._commit_s = "commit", time.monotonic()
        how()

    def _rows(self, connection: sqlite3.Connection) -> int:
        """How often the row of the transaction at hand is there."""
        question = "SELECT count(*) FROM entry WHERE writer = ? AND number = ?"
        found: int = connection.execute(question, (self._name, self._number)).fetchone()[0]
        return found

    def _read_back(self, database: str, connection: sqlite3.Connection) -> None:
        """What was acknowledged is there at once, and nothing is half there. A read may fail: its node may be gone."""
        try:
            if (found := self._rows(connection)) != 1:
                self._say(f"M {self._number} own row {found} times in {database}")
            if self._random.random() < COUNTED:
                question = "SELECT value, (SELECT count(*) FROM entry) FROM counter"
                counter, rows = connection.execute(question).fetchone()
                if counter != rows:
                    self._say(f"M {self._number} counter {counter}, rows {rows} in {database}")
        except sqlite3.Error:
            self._close(database)

    def _after_error(self, database: str) -> None:
        """As applications do: roll back and go on, or open the database anew."""
        connection = self._connections.get(database)
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if self._rows(connection):
                self._say(f"S {self._number}")
        except sqlite3.Error:
            self._close(database)
        else:
            if self._random.random() < 0.5:
                self._close(database)

    def _close(self, database: str) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connections.pop(database).close()


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    if options["do"] == "prepare":
        prepare(options)
        return
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    log = os.open(options["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(line: str) -> None:
        os.write(log, f"{line}\n".encode())

    Program(options, say).run()


if __name__ == "__main__":
    main()
