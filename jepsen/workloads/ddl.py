"""Schema changes and VACUUM on the primary while rows are added there and everything is read on every node.

Each change notes itself in the same transaction, so a reader can compare the schema that it finds with the changes that
it finds.
"""

import random
import sqlite3
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jepsen.session import Session
from jepsen.workloads.base import Counting, Order, Request, Workload, is_read, payload

UNSET: Final = -1
"""In a column of a row that is older than the column."""
MOST: Final = 8
"""Columns, indexes and tables at a time, of each."""
READS: Final = 30
SCHEMA: Final = """
CREATE TABLE item (value INTEGER PRIMARY KEY, payload BLOB);
CREATE TABLE change (number INTEGER PRIMARY KEY, call INTEGER, what TEXT, name TEXT);
"""
STATEMENTS: Final = {
    "add-column": f"ALTER TABLE item ADD COLUMN {{name}} INTEGER DEFAULT {UNSET}",
    "drop-column": "ALTER TABLE item DROP COLUMN {name}",
    "create-index": "CREATE INDEX {name} ON item (value, payload)",
    "drop-index": "DROP INDEX {name}",
    "create-table": "CREATE TABLE {name} AS SELECT value, payload FROM item ORDER BY value DESC LIMIT 20",
    "drop-table": "DROP TABLE {name}",
}
LETTERS: Final = {"column": "c", "index": "i", "table": "t"}


class Ddl(Workload):
    """``look`` answers the changes, the schema and whether indexes and columns go with the rows, in one snapshot."""

    name: ClassVar[str] = "ddl"
    stale_reads: ClassVar[bool] = True

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._elements = Counting()
        self._names = Counting()
        self._there: dict[str, list[str]] = {kind: [] for kind in LETTERS}

    @property
    def schema(self) -> str:
        return SCHEMA

    def ask(self, numbers: random.Random) -> Request:
        database = self.databases[0]
        if is_read(numbers, READS, self._elements.count):
            return Request("read", None, database, "any")
        act = numbers.random()
        if act < 0.12:
            return Request("change", self._change(numbers), database)
        if act < 0.13:
            return Request("vacuum", None, database)
        if act < 0.3:
            return Request("look", None, database, "any")
        return Request("add", self._elements.next(), database)

    def _change(self, numbers: random.Random) -> list[str]:
        kind = numbers.choice(list(LETTERS))
        there = self._there[kind]
        if len(there) >= MOST or (there and numbers.random() < 0.4):
            return [f"drop-{kind}", numbers.choice(there)]
        verb = "add" if kind == "column" else "create"
        return [f"{verb}-{kind}", f"{LETTERS[kind]}{self._names.next()}"]

    def hear(self, request: Request, answer: object) -> None:
        """What was seen last is what the next change is about; a change that does not fit fails."""
        if request.f == "look":
            assert isinstance(answer, dict)
            self._there = {kind: answer[kind] for kind in LETTERS}

    def last(self, nodes: Sequence[str]) -> list[Request]:
        return [Request(f, None, self.databases[0], "home", node=each) for each in nodes for f in ("read", "look")]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:
        if order.f == "vacuum":
            return session.at_once(order.node, order.database, "VACUUM") or None
        if order.f == "add":
            with session.writing(order.node, order.database, order.index) as connection:
                self._add(connection, order.value, numbers)
            return order.value
        if order.f == "change":
            assert isinstance(order.value, list)
            what, name = order.value
            with session.writing(order.node, order.database, order.index) as connection:
                connection.execute(STATEMENTS[what].format(name=name))
                connection.execute("INSERT INTO change VALUES (NULL, ?, ?, ?)", (order.index, what, name))
            return order.value
        with session.reading(order.node, order.database) as connection:
            if order.f == "look":
                return _look(connection)
            return [value for (value,) in connection.execute("SELECT value FROM item ORDER BY value")]

    @staticmethod
    def _add(connection: sqlite3.Connection, element: object, numbers: random.Random) -> None:
        columns = _columns(connection)
        names = ", ".join(["value", "payload", *columns])
        places = ", ".join("?" * (2 + len(columns)))
        row = (element, payload(numbers), *[element] * len(columns))
        connection.execute(f"INSERT INTO item ({names}) VALUES ({places})", row)  # noqa: S608  names of our own


def _columns(connection: sqlite3.Connection) -> list[str]:
    """Of ``item``, without those that it always has."""
    rows = connection.execute("SELECT name FROM pragma_table_info('item')")
    return [name for (name,) in rows if name.startswith("c")]


def _look(connection: sqlite3.Connection) -> dict[str, Any]:
    schema = connection.execute("SELECT type, name FROM sqlite_schema ORDER BY name").fetchall()
    columns = sorted(_columns(connection))
    indexes = [name for kind, name in schema if kind == "index" and name.startswith("i")]
    rows = _count(connection, "NOT INDEXED")
    wrong = " OR ".join(f"{column} NOT IN ({UNSET}, value)" for column in columns)
    question = f"SELECT count(*) FROM item WHERE {wrong}"  # noqa: S608  names of our own
    changes = connection.execute("SELECT call, what, name FROM change ORDER BY number")
    return {
        "changes": [list(row) for row in changes],
        "column": columns,
        "index": indexes,
        "table": [name for kind, name in schema if kind == "table" and name.startswith("t")],
        "rows": rows,
        "by-index": {name: _count(connection, f"INDEXED BY {name}") for name in indexes},
        "wrong": connection.execute(question).fetchone()[0] if wrong else 0,
    }


def _count(connection: sqlite3.Connection, by: str) -> int:
    # Not what SQLite may answer from any index that it likes.
    question = f"SELECT count(*) FROM (SELECT value FROM item {by} WHERE value > 0 AND length(payload) >= 0)"  # noqa: S608
    found: int = connection.execute(question).fetchone()[0]
    return found
