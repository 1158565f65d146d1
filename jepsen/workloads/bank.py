"""Transfers between accounts on the primary; on every node, at every time, the sum is the same."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from jepsen.session import Session, Undone
from jepsen.workloads.base import Order, Request, Workload

ACCOUNTS: Final = 10
BALANCE: Final = 100
MOST: Final = 20
ROW_BYTES: Final = 1500
"""Accounts are on several pages, so that half a transaction would show."""
SCHEMA: Final = f"""
CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, payload BLOB);
WITH RECURSIVE number (value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM number WHERE value < {ACCOUNTS - 1})
INSERT INTO account SELECT value, {BALANCE}, zeroblob({ROW_BYTES}) FROM number;
"""  # noqa: S608  built from constants


class Bank(Workload):
    """No account may go below 0: a transfer that would is not made."""

    name: ClassVar[str] = "bank"
    stale_reads: ClassVar[bool] = True
    total: ClassVar[int] = ACCOUNTS * BALANCE
    accounts: ClassVar[tuple[str, ...]] = tuple(map(str, range(ACCOUNTS)))

    @property
    def schema(self) -> str:
        return SCHEMA

    def ask(self, numbers: random.Random) -> Request:
        if numbers.random() < 0.5:
            return Request("read", None, self.databases[0], "home")
        one, other = numbers.sample(range(ACCOUNTS), 2)
        value = {"from": one, "to": other, "amount": numbers.randint(1, MOST)}
        return Request("transfer", value, self.databases[0])

    def last(self, nodes: Sequence[str]) -> list[Request]:
        return [Request("read", None, self.databases[0], "home", node=each) for each in nodes]

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:  # noqa: ARG002
        if order.f == "read":
            with session.reading(order.node, order.database) as connection:
                return {str(one): balance for one, balance in connection.execute("SELECT id, balance FROM account")}
        assert isinstance(order.value, dict)
        wanted: dict[str, Any] = order.value
        amount = wanted["amount"]
        with session.writing(order.node, order.database, order.index) as connection:
            question = "SELECT balance FROM account WHERE id = ?"
            ((has,),) = connection.execute(question, (wanted["from"],)).fetchall()
            if has < amount:
                raise Undone(f"only {has}")
            ((had,),) = connection.execute(question, (wanted["to"],)).fetchall()
            # What was read is what is written: a transfer on top of a balance that it has not seen would show.
            connection.execute("UPDATE account SET balance = ? WHERE id = ?", (has - amount, wanted["from"]))
            connection.execute("UPDATE account SET balance = ? WHERE id = ?", (had + amount, wanted["to"]))
        return order.value
