"""Registers that are read, written, and compared and set: the part that workloads with registers share."""

import random
import sqlite3
from typing import Any, Final

from jepsen.session import Session, Undone
from jepsen.workloads.base import Counting, Order, payload

SCHEMA: Final = "CREATE TABLE register (key INTEGER PRIMARY KEY, value INTEGER, payload BLOB);\n"
ACTIVE: Final = 5
CALLS_OF_A_KEY: Final = 150
"""Then another key takes its place: judging a register costs more than its share when it is used for long."""


class Registers:
    """Which keys are in use, and what somebody saw in them last. Every value is written once."""

    def __init__(self) -> None:
        self._keys = Counting()
        self._values = Counting()
        self._calls: dict[int, int] = {self._keys.next(): 0 for _ in range(ACTIVE)}
        self._seen: dict[int, int | None] = {}

    def call(self, numbers: random.Random) -> tuple[str, list[Any]]:
        """(what, value) of a new call."""
        key = numbers.choice(list(self._calls))
        self._calls[key] += 1
        if self._calls[key] >= CALLS_OF_A_KEY:
            del self._calls[key]
            self._calls[self._keys.next()] = 0
        act = numbers.random()
        if act < 0.4:
            return "read", [key, None]
        if act < 0.7:
            return "write", [key, self._values.next()]
        return "cas", [key, [self._seen.get(key), self._values.next()]]

    def hear(self, f: str, answer: object) -> None:
        assert isinstance(answer, list)
        key, value = answer
        self._seen[key] = value[1] if f == "cas" else value

    def everything(self, most: int) -> list[list[Any]]:
        """The keys that were used last, each to be read."""
        return [[key, None] for key in range(max(1, self._keys.count - most + 1), self._keys.count + 1)]


def read(connection: sqlite3.Connection, key: int) -> int | None:
    """The value of a register; None when it has none."""
    row = connection.execute("SELECT value FROM register WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def perform(session: Session, order: Order, numbers: random.Random) -> list[Any]:
    """Do a call where the order says; reads are confirmed. Raises Undone when there is another value."""
    assert isinstance(order.value, list)
    key, value = order.value
    if order.f == "read":
        with session.confirmed(order.node, order.database, order.index) as connection:
            found = read(connection, key)
        return [key, found]
    with session.writing(order.node, order.database, order.index) as connection:
        new = value
        if order.f == "cas":
            expected, new = value
            found = read(connection, key)
            if found != expected:
                raise Undone(f"it is {found}")
        connection.execute("INSERT OR REPLACE INTO register VALUES (?, ?, ?)", (key, new, payload(numbers)))
    return [key, value]
