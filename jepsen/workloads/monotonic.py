"""Readers of one node never see an older state after a newer one, in a WAL database and in one with a journal."""

import random
from collections.abc import Sequence
from typing import ClassVar

from jepsen.session import Session
from jepsen.workloads.base import Order, Request, Workload, read_each


class Monotonic(Workload):
    """Clients of a node read there; all raise the counters on the primary."""

    name: ClassVar[str] = "monotonic"
    stale_reads: ClassVar[bool] = True

    @property
    def databases(self) -> tuple[str, ...]:
        return f"{self.tag}-wal.db", f"{self.tag}-delete.db"

    @property
    def schema(self) -> str:
        return "CREATE TABLE counter (id INTEGER PRIMARY KEY, value INTEGER);\nINSERT INTO counter VALUES (1, 0);\n"

    def mode(self, database: str) -> str:
        return "delete" if database.endswith("-delete.db") else "wal"

    def ask(self, numbers: random.Random) -> Request:
        database = numbers.choice(self.databases)
        if numbers.random() < 0.5:
            return Request("read", {"database": database}, database, "home")
        return Request("increment", {"database": database}, database)

    def last(self, nodes: Sequence[str]) -> list[Request]:
        return read_each(nodes, self.databases)

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:  # noqa: ARG002
        if order.f == "increment":
            with session.writing(order.node, order.database, order.index) as connection:
                connection.execute("UPDATE counter SET value = value + 1")
            return order.value
        txid, _ = session.places[order.node].position(order.database)
        with session.reading(order.node, order.database) as connection:
            seen = connection.execute("SELECT value FROM counter").fetchone()[0]
        return {"database": order.database, "seen": seen, "txid": txid}
