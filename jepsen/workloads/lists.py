"""Transactions on lists: the part that workloads with lists share. Knows SQL and the form of such a transaction."""

import random
from typing import Any, Final

from jepsen.session import Session
from jepsen.workloads.base import Counting, Order, payload

SCHEMA: Final = """
CREATE TABLE list (place INTEGER PRIMARY KEY, key INTEGER, element INTEGER, payload BLOB);
CREATE INDEX list_key ON list (key, place);
"""
ACTIVE: Final = 5
"""Keys at a time: few, so that transactions meet."""
LONGEST: Final = 40
"""Appends to a key before another takes its place: reads stay short."""
MOST_PARTS: Final = 4
DEFERRED: Final = "deferred"
DEFERRED_SHARE: Final = 0.2


class Lists:
    """Which keys are in use, and what was appended to them."""

    def __init__(self) -> None:
        self._keys = Counting()
        self._elements: dict[int, int] = {self._keys.next(): 0 for _ in range(ACTIVE)}

    def transaction(self, numbers: random.Random) -> list[list[Any]]:
        """A new one, in the form of histories."""
        return [self._part(numbers) for _ in range(numbers.randint(1, MOST_PARTS))]

    def _part(self, numbers: random.Random) -> list[Any]:
        key = numbers.choice(list(self._elements))
        if numbers.random() < 0.5:
            return ["r", key, None]
        self._elements[key] += 1
        element = self._elements[key]
        if element >= LONGEST:
            del self._elements[key]
            self._elements[self._keys.next()] = 0
        return ["append", key, element]

    def everything(self, most: int) -> list[list[Any]]:
        """Reads of the keys that were used last."""
        return [["r", key, None] for key in range(max(1, self._keys.count - most + 1), self._keys.count + 1)]


def perform(session: Session, order: Order, numbers: random.Random) -> list[list[Any]]:
    """Do a transaction; its parts with what was read."""
    assert isinstance(order.value, list)
    parts: list[list[Any]] = order.value
    if not any(name == "append" for name, _, _ in parts):
        transaction = session.confirmed(order.node, order.database, order.index)
    else:
        deferred = order.how == DEFERRED
        transaction = session.writing(order.node, order.database, order.index, deferred=deferred)
    done: list[list[Any]] = []
    with transaction as connection:
        for name, key, value in parts:
            if name == "append":
                connection.execute("INSERT INTO list VALUES (NULL, ?, ?, ?)", (key, value, payload(numbers)))
                done.append([name, key, value])
            else:
                rows = connection.execute("SELECT element FROM list WHERE key = ? ORDER BY place", (key,))
                done.append([name, key, [element for (element,) in rows]])
    return done
