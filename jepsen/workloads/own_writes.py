"""Read your own writes, and those of others: a read on any node that waits for the TXID of a write shows it."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from jepsen.session import WAIT_S, Session
from jepsen.workloads.base import Counting, Order, Request, Workload

KEYS: Final = 10
LAST: Final = "last"
LAST_WAIT_S: Final = 0.5
"""Everything is healed: a TXID that is not there by then was lost, and nobody writes any more."""


class OwnWrites(Workload):
    """Reads wait for the newest TXID that anybody was told for their key."""

    name: ClassVar[str] = "own-writes"
    stale_reads: ClassVar[bool] = True

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._values = Counting()
        self._told: dict[int, int] = {}

    @property
    def schema(self) -> str:
        return "CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER);\n"

    def ask(self, numbers: random.Random) -> Request:
        key = numbers.randrange(KEYS)
        if key in self._told and numbers.random() < 0.6:
            return self._read(key)
        return Request("write", {"key": key, "value": self._values.next()}, self.databases[0])

    def _read(self, key: int, node: str = "") -> Request:
        return Request("read", {"key": key, "after": self._told[key]}, self.databases[0], "home", node=node)

    def hear(self, request: Request, answer: object) -> None:
        if request.f == "write":
            assert isinstance(answer, dict)
            # The newest one may be smaller: TXIDs that an old primary took with it are given again.
            self._told[answer["key"]] = answer["txid"]

    def last(self, nodes: Sequence[str]) -> list[Request]:
        return [replace(self._read(key, each), how=LAST) for each in nodes for key in self._told]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:  # noqa: ARG002
        assert isinstance(order.value, dict)
        value: dict[str, Any] = order.value
        if order.f == "write":
            with session.writing(order.node, order.database, order.index) as connection:
                connection.execute("INSERT OR REPLACE INTO entry VALUES (?, ?)", (value["key"], value["value"]))
            txid, _ = session.places[order.node].position(order.database)
            return {**value, "txid": txid}
        session.wait(order.node, order.database, value["after"], limit_s=LAST_WAIT_S if order.how == LAST else WAIT_S)
        with session.reading(order.node, order.database) as connection:
            row = connection.execute("SELECT value FROM entry WHERE key = ?", (value["key"],)).fetchone()
        return {**value, "value": None if row is None else row[0]}
