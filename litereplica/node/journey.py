"""One transaction of an application here, on its way to the primary and until its outcome is known.

Knows its pieces, how often it was sent, and what may be said of it when no answer comes. Does not know connections
(node.forwarder) or what the application is told (mount).
"""

from collections.abc import Iterator
from typing import Final

import trio

from litereplica.cluster.encoding import encode
from litereplica.cluster.messages import FORWARD_LIMIT_BYTES, Forward, ForwardPart
from litereplica.errors import LitereplicaError, Refused
from litereplica.store.awaited import Awaited
from litereplica.store.local import LocalTransaction

NEVER: Final = float("inf")


class Journey:
    """``number``: of the last Forward, 0 when no answer can come. ``verdict``: why it is given up, if it is.

    ``left``: all of it was handed to a connection once, so that without an answer nobody here knows what became of it.
    ``again_at``: when it is to be sent again on the same connection (trio's clock). ``done``: the primary has answered
    that it is committed (and durable, if that was asked). ``replied``: it has answered at all.
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
        "transaction",
        "verdict",
    )

    def __init__(self, transaction: LocalTransaction, awaited: Awaited, *, durable: bool) -> None:
        self.transaction = transaction
        self.awaited = awaited
        self.durable = durable
        self.number = 0
        self.left = False
        self.again_at = NEVER
        self.done = False
        self.replied = False
        self.verdict: LitereplicaError | None = None
        self._scope = trio.CancelScope()
        self._lot = trio.lowlevel.ParkingLot()

    def has_ended(self) -> bool:
        """Whether it needs no primary any more, but for the question whether it is durable."""
        return self.awaited.settled or self.verdict is not None

    def parcel(self, epoch: int, number: int, token: int) -> Iterator[bytes]:
        """The messages that carry it; no more of them once another attempt has begun, or nobody waits any more."""
        transaction = self.transaction
        for offset in range(0, transaction.length, FORWARD_LIMIT_BYTES):
            if self.number != number or self.has_ended():
                return
            try:
                data = transaction.read(offset, FORWARD_LIMIT_BYTES)
            except OSError as error:
                self.give_up(Refused(f"a transaction of {transaction.name} cannot be read back: {error.strerror}"))
                return
            if offset + len(data) >= transaction.length:
                self.left = True
            piece: Forward | ForwardPart = ForwardPart(epoch, number, data)
            if not offset:
                origin, base = transaction.origin, transaction.base
                length = transaction.length
                piece = Forward(epoch, number, transaction.name, origin, base, token, self.durable, length, data)
            yield encode(piece)

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
