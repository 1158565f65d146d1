"""A planned handoff, on the side of the primary.

Knows the order: the target catches up while writers go on, writers are held, the target has everything, the fence is
closed, the lease is offered. Does not change the node's role: it says how far it came.
"""

from collections.abc import Callable
from typing import Final

import structlog
import trio

from litereplica.cluster.lease import Endpoint, Member, Timing
from litereplica.errors import Refused, Unavailable
from litereplica.node.keeper_renewal import Renewal
from litereplica.node.plane import Plane

log = structlog.get_logger()

CATCH_UP_LIMIT_S: Final = 10.0
"""The target gets this long to come near, while nobody waits for it."""
HOLD_LIMIT_S: Final = 2.0
"""Writers are held for the second stretch at most this long before it is called off, and so is a writer that does not
yield: well inside SQLite's usual busy timeout of 5 s."""
OFFER_LIMIT_S: Final = 1.0
"""A target that lives takes it within some hundredths of a second."""
RECLAIM_PAUSE_S: Final = 0.1
"""Between attempts to find out who has the lease."""


class Handoff:
    """One request to hand off, and what became of it."""

    def __init__(self, target: Member, *, force: bool) -> None:
        self.target = target.endpoint
        self.force = force
        self.untaken = ""
        """Why the target did not take what was offered."""
        self._ended = trio.Event()
        self._refusal = ""

    @property
    def ended(self) -> bool:
        """Whether it is known what became of it."""
        return self._ended.is_set()

    def succeed(self, holder: Endpoint) -> None:
        """Another node has the lease."""
        self.target = holder
        self._ended.set()

    def refuse(self, reason: str) -> None:
        """It was called off."""
        self._refusal = reason
        self._ended.set()

    async def wait(self) -> Endpoint:
        """Who has the lease now. Raises Refused when it was called off. Each of its steps has a limit."""
        await self._ended.wait()
        if self._refusal:
            raise Refused(self._refusal)
        return self.target


async def prepare(plane: Plane, handoff: Handoff) -> str:
    """Hold the writers, with the target at the same position; "" or why not."""
    target = handoff.target.node
    if not await plane.acknowledged(target, CATCH_UP_LIMIT_S):
        return (
            f"{target} did not catch up within {CATCH_UP_LIMIT_S:g} s: wait until its lag is small, or choose another"
        )
    if unyielding := await plane.quiesce(HOLD_LIMIT_S):
        names = ", ".join(unyielding)
        log.warning("writers_not_held", writers=names, forced=handoff.force)
        if not handoff.force:
            return f"in a write transaction: {names}. Let it end, or use --force: its transaction will fail"
    if not await plane.acknowledged(target, HOLD_LIMIT_S):
        return f"{target} did not acknowledge the last transactions within {HOLD_LIMIT_S:g} s; try again"
    return ""


async def offer(plane: Plane, renewal: Renewal, handoff: Handoff, timing: Timing) -> str:
    """Offer the lease and wait to be relieved; returns only when that did not happen: why. Raises Refused."""
    target = handoff.target.node
    limit_s = min(OFFER_LIMIT_S, timing.renew_every_s)
    # A writer that did not yield may have committed until the fence was closed, a moment ago.
    if not await plane.acknowledged(target, limit_s):
        return f"{target} did not acknowledge the last transaction"
    try:
        await renewal.renew(offered_to=target)
    except Unavailable as error:
        return f"the offer had no answer: {error.message}"
    await trio.sleep(limit_s)
    return f"{target} did not take the lease within {limit_s:g} s"


async def reclaim(renewal: Renewal, clock: Callable[[], float], ttl_s: float) -> bool:
    """Renew without the offer; False: no answer for a ttl. Raises Refused when the lease is another's."""
    give_up_at = clock() + ttl_s
    while clock() < give_up_at:
        try:
            await renewal.renew()
        except Unavailable as error:
            log.warning("offer_not_taken_back", reason=error.message)
            await trio.sleep(RECLAIM_PAUSE_S)
        else:
            return True
    return False
