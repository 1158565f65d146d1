"""Databases in every journal mode, and one that is switched from mode to mode: transactions stay whole in all."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jepsen.session import Session
from jepsen.workloads.base import Counting, Order, Request, Workload, is_read, read_each

MODES: Final = ("delete", "truncate", "persist", "wal")
SWITCHED: Final = "switched"
SWITCHED_SHARE: Final = 0.2
"""Of the calls to that database."""
READS: Final = 200
CACHE_PAGES: Final = 5
"""So few that a transaction spills: its pages go to the file before it is committed, and the journal is needed."""
ROWS: Final = 20
"""Of a transaction in the second table."""
ROW_BYTES: Final = 800


class Journal(Workload):
    """An element is a row of one table and ``ROWS`` of another: both or none."""

    name: ClassVar[str] = "journal"
    stale_reads: ClassVar[bool] = True

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._elements = Counting()
        self._modes = {f"{tag}-{mode}.db": mode for mode in (*MODES, SWITCHED)}

    @property
    def databases(self) -> tuple[str, ...]:
        return tuple(self._modes)

    @property
    def schema(self) -> str:
        return (
            "CREATE TABLE element (value INTEGER PRIMARY KEY);\n"
            "CREATE TABLE part (id INTEGER PRIMARY KEY, element INTEGER, payload BLOB);\n"
        )

    def mode(self, database: str) -> str:
        mode = self._modes[database]
        return "wal" if mode == SWITCHED else mode

    def ask(self, numbers: random.Random) -> Request:
        database = numbers.choice(self.databases)
        if self._modes[database] == SWITCHED and numbers.random() < SWITCHED_SHARE:
            return Request("switch", {"database": database, "mode": numbers.choice(MODES)}, database)
        if is_read(numbers, READS, self._elements.count):
            return Request("read", {"database": database}, database, "any")
        return Request("add", {"database": database, "element": self._elements.next()}, database)

    def last(self, nodes: Sequence[str]) -> list[Request]:
        return read_each(nodes, self.databases)

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:
        try:
            return self._perform(session, order, numbers)
        finally:
            if self._modes[order.database] == SWITCHED:
                # A mode is switched by who is alone: nobody keeps a connection.
                session.close(order.node, order.database)

    def _perform(self, session: Session, order: Order, numbers: random.Random) -> object:
        assert isinstance(order.value, dict)
        value: dict[str, Any] = order.value
        if order.f == "switch":
            ((mode,),) = session.at_once(order.node, order.database, f"PRAGMA journal_mode={value['mode']}")
            return {"database": order.database, "mode": mode}
        if order.f == "add":
            element = value["element"]
            session.connection(order.node, order.database).execute(f"PRAGMA cache_size={CACHE_PAGES}")
            with session.writing(order.node, order.database, order.index) as connection:
                connection.execute("INSERT INTO element VALUES (?)", (element,))
                rows = [(element, numbers.randbytes(ROW_BYTES)) for _ in range(ROWS)]
                connection.executemany("INSERT INTO part VALUES (NULL, ?, ?)", rows)
            return value
        with session.reading(order.node, order.database) as connection:
            elements = [each for (each,) in connection.execute("SELECT value FROM element ORDER BY value")]
            question = "SELECT element, count(*), count(length(payload)) FROM part GROUP BY element ORDER BY element"
            parts = connection.execute(question).fetchall()
        whole = [element for element, rows, _ in parts if rows == ROWS]
        return {"database": order.database, "elements": elements, "whole": whole, "parts": len(parts)}
