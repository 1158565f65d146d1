"""What this node says of itself beside the lease, and what the others say.

Knows when it is written and read. Does not know what is made of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog
import trio

from litereplica.cluster.lease import Endpoint, Member, Reign, has_had_transactions
from litereplica.errors import Refused, Unavailable
from litereplica.lease.base import Lease
from litereplica.node.plane import Plane

log = structlog.get_logger()

EVERY_S: Final = 1.0
"""A standing changes with every commit; once a second is enough for people, and an election asks for it anew."""
REFRESH_S: Final = 10.0
"""Written again without a change: what writes it down may have forgotten it."""


class Members:
    """``known``: as last read, None before that."""

    def __init__(self, lease: Lease, plane: Plane, me: Member, clock: Callable[[], float]) -> None:
        self._lease = lease
        self._plane = plane
        self._me = me
        self._clock = clock
        self._writing = trio.Lock()
        self._published: Member | None = None
        self._published_at = clock()
        self._vacancy = 0
        self._had_transactions = False
        self.known: tuple[Member, ...] | None = None

    def mine(self) -> Member:
        """What this node would say of itself now."""
        standing = self._plane.standing()
        if not standing.total and self._had_transactions:
            standing = replace(standing, emptied=True)
        return replace(self._me, standing=standing, vacancy=self._vacancy)

    def heard(self, history: tuple[Reign, ...]) -> None:
        """The history of primaries was read: it matters to a node that has nothing."""
        self._had_transactions = has_had_transactions(history)

    async def publish_for(self, vacancy: int) -> Member:
        """Say at once how far this node is, for an election; what was said. Raises Unavailable, Refused."""
        self._vacancy = vacancy
        return await self._publish()

    def end_election(self) -> None:
        """What is said from now on is not for an election."""
        self._vacancy = 0

    async def read(self) -> tuple[Member, ...]:
        """Everybody who is known. Raises Unavailable."""
        self.known = await self._lease.members()
        return self.known

    def others(self) -> frozenset[str] | None:
        """Names of all the others, as last read; None: not known."""
        if self.known is None:
            return None
        return frozenset(each.endpoint.node for each in self.known) - {self._me.endpoint.node}

    def find(self, node: str) -> Endpoint | None:
        """How a node is reached, as last read."""
        return next((each.endpoint for each in self.known or () if each.endpoint.node == node), None)

    async def run(self) -> None:
        """Write and read for ever."""
        failing = False
        while True:
            try:
                if not self._plane.standing().total:
                    self.heard(await self._lease.history())
                if self.mine() != self._published or self._clock() - self._published_at >= REFRESH_S:
                    await self._publish()
                await self.read()
            except (Unavailable, Refused) as error:
                if not failing:
                    log.warning("members_not_exchanged", reason=error.message)
                failing = True
            else:
                failing = False
            await trio.sleep(EVERY_S)

    async def _publish(self) -> Member:
        async with self._writing:
            said = self.mine()
            await self._lease.publish(said)
            self._published, self._published_at = said, self._clock()
            return said
