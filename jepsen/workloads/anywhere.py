"""Lists and registers, written by every client on whatever node it sits on: forwarded, and some under the lock."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from jepsen.session import Session
from jepsen.workloads import lists, registers
from jepsen.workloads.base import Order, Request, Workload

READ_AT_THE_END: Final = 50
LOCKED: Final = "lock"
LOCKED_SHARE: Final = 0.05


class Anywhere(Workload):
    """Lists are in a WAL database, registers in one with a rollback journal. Reads are confirmed: they are current."""

    name: ClassVar[str] = "anywhere"
    on_replica: ClassVar[str] = "forward"

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._lists = lists.Lists()
        self._registers = registers.Registers()

    @property
    def databases(self) -> tuple[str, ...]:
        return f"{self.tag}-lists.db", f"{self.tag}-registers.db"

    @property
    def schema(self) -> str:
        return lists.SCHEMA + registers.SCHEMA

    def mode(self, database: str) -> str:
        return "wal" if database == self.databases[0] else "delete"

    def ask(self, numbers: random.Random) -> Request:
        how = LOCKED if numbers.random() < LOCKED_SHARE else ""
        if numbers.random() < 0.5:
            if not how and numbers.random() < lists.DEFERRED_SHARE:
                how = lists.DEFERRED
            return Request("txn", self._lists.transaction(numbers), self.databases[0], "home", how)
        f, value = self._registers.call(numbers)
        return Request(f, value, self.databases[1], "home", how)

    def hear(self, request: Request, answer: object) -> None:
        if request.f != "txn":
            self._registers.hear(request.f, answer)

    def last(self, nodes: Sequence[str]) -> list[Request]:
        everything = Request("txn", self._lists.everything(READ_AT_THE_END), self.databases[0], "home")
        one = Request("read", None, self.databases[1], "home")
        keys = self._registers.everything(READ_AT_THE_END)
        return [
            *(replace(everything, node=each) for each in nodes),
            *(replace(one, value=key, node=nodes[at % len(nodes)]) for at, key in enumerate(keys)),
        ]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:
        if order.how == LOCKED:
            with session.alone(order.node, order.database):
                return self._perform(session, order, numbers)
        return self._perform(session, order, numbers)

    @staticmethod
    def _perform(session: Session, order: Order, numbers: random.Random) -> object:
        if order.f == "txn":
            return lists.perform(session, order, numbers)
        return registers.perform(session, order, numbers)
