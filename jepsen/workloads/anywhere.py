"""Lists and registers, written by every client on its own node: forwarded, under the lock, or through the node's proxy.

The proxy forwards requests that write to the application of the primary.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from jepsen import proxied
from jepsen.session import Session, Undone
from jepsen.workloads import lists, registers
from jepsen.workloads.base import Order, Request, Workload

READ_AT_THE_END: Final = 50
LOCKED: Final = "lock"
LOCKED_SHARE: Final = 0.05
PROXIED: Final = "proxy"
PROXIED_SHARE: Final = 0.3
LOOK: Final = "look"
LOOKED_SHARE: Final = 0.5
"""Of the calls on registers that go through the proxy."""


class Anywhere(Workload):
    """Lists are in a WAL database, registers in one with a rollback journal.

    Reads are confirmed, so they are current, but for one kind: ``look`` at a register asks the proxy with the client's
    cookie. What it shows is no older than the client's last write through a proxy, ``after``.
    """

    name: ClassVar[str] = "anywhere"
    on_replica: ClassVar[str] = "forward"
    proxied: ClassVar[tuple[str, ...]] = ("anywhere-lists.db", "anywhere-registers.db")

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._lists = lists.Lists()
        self._registers = registers.Registers()
        self._last_write: int | None = None

    @property
    def databases(self) -> tuple[str, ...]:
        """The same in every run: the configuration of the proxies has them."""
        return self.proxied

    @property
    def schema(self) -> str:
        return lists.SCHEMA + registers.SCHEMA

    def mode(self, database: str) -> str:
        return "wal" if database == self.databases[0] else "delete"

    def ask(self, numbers: random.Random) -> Request:
        chance = numbers.random()
        how = LOCKED if chance < LOCKED_SHARE else PROXIED if chance < LOCKED_SHARE + PROXIED_SHARE else ""
        if numbers.random() < 0.5:
            if not how and numbers.random() < lists.DEFERRED_SHARE:
                how = lists.DEFERRED
            return Request("txn", self._lists.transaction(numbers), self.databases[0], "home", how)
        f, value = self._registers.call(numbers)
        if how == PROXIED and numbers.random() < LOOKED_SHARE:
            return Request(LOOK, {"key": value[0]}, self.databases[1], "home", how)
        return Request(f, value, self.databases[1], "home", how)

    def hear(self, request: Request, answer: object) -> None:
        if request.f not in {"txn", LOOK}:
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
        if order.how == PROXIED:
            return self._through_proxy(session, order)
        if order.how == LOCKED:
            with session.alone(order.node, order.database):
                return self._perform(session, order, numbers)
        return self._perform(session, order, numbers)

    def _through_proxy(self, session: Session, order: Order) -> object:
        if order.f != LOOK:
            answer = proxied.write(session, self.name, self.tag, order)
            self._last_write = order.index
            return answer
        after = self._last_write
        if after is None:
            raise Undone("nothing was written through a proxy before")
        assert isinstance(order.value, dict)
        found = proxied.read(session, self.name, self.tag, order)
        return {**order.value, "value": found, "after": after}

    @staticmethod
    def _perform(session: Session, order: Order, numbers: random.Random) -> object:
        if order.f == "txn":
            return lists.perform(session, order, numbers)
        if order.f == LOOK:
            assert isinstance(order.value, dict)
            wanted: dict[str, Any] = order.value
            with session.reading(order.node, order.database) as connection:
                return registers.read(connection, wanted["key"])
        return registers.perform(session, order, numbers)
