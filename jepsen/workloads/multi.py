"""Many databases, and new ones all the time: each is a set of its own."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jepsen.session import Session
from jepsen.workloads.base import Counting, Order, Request, Workload, is_read, make, payload, read_each

DATABASES: Final = 12
MOST: Final = 30
"""With those that are made meanwhile."""
READS: Final = 200
CREATED_SHARE: Final = 0.01


class Multi(Workload):
    """Elements are unique over all databases, so one in the wrong place is noticed."""

    name: ClassVar[str] = "multi"
    stale_reads: ClassVar[bool] = True

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._elements = Counting()
        self._made = Counting()
        self._names = [f"{tag}-{number}.db" for number in range(DATABASES)]
        self._possible = list(self._names)

    @property
    def databases(self) -> tuple[str, ...]:
        """Also those whose making nobody answered: they may be there."""
        return tuple(self._possible)

    @property
    def schema(self) -> str:
        return "CREATE TABLE element (value INTEGER PRIMARY KEY, payload BLOB);\n"

    def mode(self, database: str) -> str:
        return "wal" if database in self._names[: DATABASES // 2] or "-new" in database else "delete"

    def ask(self, numbers: random.Random) -> Request:
        if len(self._possible) < MOST and numbers.random() < CREATED_SHARE:
            name = f"{self.tag}-new{self._made.next()}.db"
            self._possible.append(name)
            return Request("create", {"database": name}, name)
        database = numbers.choice(self._names)
        if is_read(numbers, READS, self._elements.count):
            return Request("read", {"database": database}, database, "any")
        return Request("add", {"database": database, "element": self._elements.next()}, database)

    def hear(self, request: Request, answer: object) -> None:  # noqa: ARG002  every workload's form
        if request.f == "create":
            self._names.append(request.database)

    def last(self, nodes: Sequence[str]) -> list[Request]:
        return read_each(nodes, self._names)

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:
        assert isinstance(order.value, dict)
        value: dict[str, Any] = order.value
        if order.f == "create":
            make(session, order.node, order.database, self.schema, self.mode(order.database), order.index)
            return value
        if order.f == "add":
            with session.writing(order.node, order.database, order.index) as connection:
                connection.execute("INSERT INTO element VALUES (?, ?)", (value["element"], payload(numbers)))
            return value
        with session.reading(order.node, order.database) as connection:
            rows = connection.execute("SELECT value FROM element ORDER BY value")
            return {"database": order.database, "elements": [element for (element,) in rows]}
