"""One transaction of an application here, on its way to the primary and until its outcome is known.

Knows its pieces, how often it was sent, and what may be said of it when no answer comes. Does not know connections
(node.forwarder) or what the application is told (mount).
"""

from collections.abc import Iterator
from typing import Final

import trio

from litereplica.cluster.encoding import encode
from litereplica.cluster.messages import FORWARD_LIMIT_BYTES, Forward, ForwardPart
from litereplica.errors import LitereplicaError, Refused, Unavailable
from litereplica.store.awaited import Awaited
from litereplica.store.local import LocalTransaction

NEVER: Final = float("inf")


class Journey:
    """``number``: of the last Forward, 0 when no answer can come. ``verdict``: why it is given up, if it is.

    ``token``: of the lock that it was made under, for whoever it is sent to; 0 for none.
    ``left``: the first epoch in which all of it was handed to a connection, 0: none. Without an answer of that primary
    nobody here knows what became of it: it may have it, die, and come back with it.
    ``again_at``: when it is to be sent again on the same connection (trio's clock). ``done``: the primary that it
    was sent to last has answered that it is committed (and durable, if that was asked). ``replied``: that one has
    answered at all.
    """

    __slots__ = (
        "_lot",
        "_scope",
        "again_at",
        "awaited",
        "done",
        "durable",
        "left",
        "number",
        "replied",
        "token",
        "transaction",
        "verdict",
    )

    def __init__(self, transaction: LocalTransaction, awaited: Awaited, token: int, *, durable: bool) -> None:
        self.transaction = transaction
        self.awaited = awaited
        self.token = token
        self.durable = durable
        self.number = 0
        self.left = 0
        self.again_at = NEVER
        self.done = False
        self.replied = False
        self.verdict: LitereplicaError | None = None
        self._scope = trio.CancelScope()
        self._lot = trio.lowlevel.ParkingLot()

    def has_ended(self) -> bool:
        """Whether it needs no primary any more, but for the question whether it is durable."""
        return self.awaited.settled or self.verdict is not None

    def parcel(self, epoch: int, number: int) -> Iterator[bytes]:
        """The messages that carry it; no more of them once another attempt has begun, or nobody waits any more."""
        transaction = self.transaction
        for offset in range(0, transaction.length, FORWARD_LIMIT_BYTES):
            if self.number != number or self.has_ended():
                return
            try:
                data = transaction.read(offset, FORWARD_LIMIT_BYTES)
            except OSError as error:
                reason = f"a transaction of {transaction.name} cannot be read back: {error.strerror}"
                self.give_up(Unavailable(reason) if self.left else Refused(reason))
                return
            if offset + len(data) >= transaction.length:
                self.left = self.left or epoch
            piece: Forward | ForwardPart = ForwardPart(epoch, number, data)
            if not offset:
                origin, base = transaction.origin, transaction.base
                length = transaction.length
                piece = Forward(epoch, number, transaction.name, origin, base, self.token, self.durable, length, data)
            yield encode(piece)

    def refused(self, error: Refused, epoch: int) -> None:
        """The primary of ``epoch`` does not have it, and does not commit it."""
        if self.left in (0, epoch):
            self.give_up(error)
        else:
            self.give_up(Unavailable(f"{error.message} (an earlier primary that was sent it may come back with it)"))

    def not_taken(self, epoch: int) -> None:
        """The same, and it is to be sent again: if it was sent to nobody else, nobody has it."""
        if self.left == epoch:
            self.left = 0

    def give_up(self, verdict: LitereplicaError) -> None:
        """It ends here, unless its record has come."""
        if not self.has_ended():
            self.verdict = verdict
            self.wake()

    def wake(self) -> None:
        """Let ``wait`` and ``heard`` return."""
        self._scope.cancel()
        self._lot.unpark_all()

    async def wait(self, until: float) -> None:
        """Return when its record has come, something else happened, or at ``until`` (trio's clock)."""
        with trio.CancelScope(deadline=until) as self._scope:
            await self.awaited.wait()

    async def heard(self) -> None:
        """Return when the primary has answered, or cannot any more."""
        await self._lot.park()
