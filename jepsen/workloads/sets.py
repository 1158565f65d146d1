"""Elements that are added to a set on the primary, and read on every node: whatever was acknowledged is kept."""

import random
from collections.abc import Sequence
from typing import ClassVar, Final

from jepsen.session import Session
from jepsen.workloads.base import Counting, Order, Request, Workload, is_read, payload

READS: Final = 30
"""A read answers everything: reads are made the more seldom the more there is, some hundred in all."""


class Set(Workload):
    """Reads may be old; those of the end are not."""

    name: ClassVar[str] = "set"
    stale_reads: ClassVar[bool] = True

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._elements = Counting()

    @property
    def schema(self) -> str:
        return "CREATE TABLE element (value INTEGER PRIMARY KEY, payload BLOB);\n"

    def ask(self, numbers: random.Random) -> Request:
        if is_read(numbers, READS, self._elements.count):
            return Request("read", None, self.databases[0], "any")
        return Request("add", self._elements.next(), self.databases[0])

    def last(self, nodes: Sequence[str]) -> list[Request]:
        return [Request("read", None, self.databases[0], "home", node=each) for each in nodes]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:
        if order.f == "add":
            with session.writing(order.node, order.database, order.index) as connection:
                connection.execute("INSERT INTO element VALUES (?, ?)", (order.value, payload(numbers)))
            return order.value
        with session.reading(order.node, order.database) as connection:
            return [value for (value,) in connection.execute("SELECT value FROM element ORDER BY value")]
