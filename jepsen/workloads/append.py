"""Transactions that append to lists and read them, on the primary."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jepsen.session import Session
from jepsen.workloads import lists
from jepsen.workloads.base import Order, Request, Workload

READ_AT_THE_END: Final = 100


class Append(Workload):
    """What only reads is committed too: then its answer is one that was current."""

    name: ClassVar[str] = "append"

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._lists = lists.Lists()

    @property
    def schema(self) -> str:
        return lists.SCHEMA

    def ask(self, numbers: random.Random) -> Request:
        how = lists.DEFERRED if numbers.random() < lists.DEFERRED_SHARE else ""
        return Request("txn", self._lists.transaction(numbers), self.databases[0], how=how)

    def last(self, nodes: Sequence[str]) -> list[Request]:  # noqa: ARG002  one read says all
        return [Request("txn", self._lists.everything(READ_AT_THE_END), self.databases[0])]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> list[list[Any]]:
        return lists.perform(session, order, numbers)
