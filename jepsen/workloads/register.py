"""Registers on the primary; a part of the reads is made on other nodes, by waiting for a TXID of the primary's."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jepsen.session import Session
from jepsen.workloads import registers
from jepsen.workloads.base import Order, Request, Workload

READ_AT_THE_END: Final = 100
ELSEWHERE: Final = "elsewhere"
ELSEWHERE_SHARE: Final = 0.5


class Register(Workload):
    """A read elsewhere: commit on the primary, ask it for its position, wait for that at home, read there."""

    name: ClassVar[str] = "register"

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._registers = registers.Registers()

    @property
    def schema(self) -> str:
        return registers.SCHEMA

    def ask(self, numbers: random.Random) -> Request:
        f, value = self._registers.call(numbers)
        if f == "read" and numbers.random() < ELSEWHERE_SHARE:
            return Request(f, value, self.databases[0], "home", ELSEWHERE)
        return Request(f, value, self.databases[0])

    def hear(self, request: Request, answer: object) -> None:
        self._registers.hear(request.f, answer)

    def last(self, nodes: Sequence[str]) -> list[Request]:
        keys = self._registers.everything(READ_AT_THE_END)
        everywhere = [
            Request("read", key, self.databases[0], "home", ELSEWHERE, each) for each in nodes for key in keys[-5:]
        ]
        return [*(Request("read", key, self.databases[0]) for key in keys), *everywhere]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> list[Any]:
        if order.how != ELSEWHERE:
            return registers.perform(session, order, numbers)
        assert isinstance(order.value, list)
        key = order.value[0]
        with session.confirmed(order.primary, order.database, order.index):
            pass
        txid, checksum = session.places[order.primary].position(order.database)
        session.wait(order.node, order.database, txid, checksum)
        with session.reading(order.node, order.database) as connection:
            return [key, registers.read(connection, key)]
