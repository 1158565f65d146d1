"""A counter that is added to and read on the primary."""

import random
from collections.abc import Sequence
from typing import ClassVar, Final

from jepsen.session import Session
from jepsen.workloads.base import Order, Request, Workload

MOST: Final = 5


class Counter(Workload):
    """Reads are confirmed, so they are current."""

    name: ClassVar[str] = "counter"

    @property
    def schema(self) -> str:
        return "CREATE TABLE counter (id INTEGER PRIMARY KEY, value INTEGER);\nINSERT INTO counter VALUES (1, 0);\n"

    def ask(self, numbers: random.Random) -> Request:
        if numbers.random() < 0.4:
            return Request("read", None, self.databases[0])
        return Request("add", numbers.randint(1, MOST), self.databases[0])

    def last(self, nodes: Sequence[str]) -> list[Request]:  # noqa: ARG002  one read says all
        return [Request("read", None, self.databases[0])]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:  # noqa: ARG002
        if order.f == "read":
            with session.confirmed(order.node, order.database, order.index) as connection:
                found: int = connection.execute("SELECT value FROM counter").fetchone()[0]
            return found
        with session.writing(order.node, order.database, order.index) as connection:
            before = connection.execute("SELECT value FROM counter").fetchone()[0]
            connection.execute("UPDATE counter SET value = ?", (before + order.value,))
        return order.value
