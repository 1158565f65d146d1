"""Keeping the lease: renewals, and until when they allow commits.

Knows the lease that this node holds and the instant at which its fence closes. Does not know the node's role; it
reports what came of renewals.

Nothing else is done in its task, and each call has a limit, so that nothing delays the next renewal. The fence is
computed from the instant before a call, because whoever waits for this node begins to count when the lease is written,
which is later.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog
import trio

from litereplica.cluster.lease import Holding, Timing
from litereplica.cluster.role import Event
from litereplica.errors import Refused, Unavailable
from litereplica.lease.base import Lease

log = structlog.get_logger()

CALLS_IN_PERIOD: Final = 2
"""A call that hangs is given up after half the time between renewals: three more have time before the fence closes."""
RETRIES_IN_PERIOD: Final = 10
"""After a call without an answer, the next follows after this part of the time between renewals."""

Report = Callable[[Event, str], None]
Extend = Callable[[frozenset[str], float], Awaitable[bool]]
"""Failsafe: whether these nodes all promised to stand back, within the given limit in seconds."""
CountsOn = Callable[[], tuple[str, ...]]
"""Failsafe: the nodes to write beside the lease; empty: none of it."""


class Renewal:
    """One node's hold on the lease. ``fence_until``: what the last success allows."""

    def __init__(
        self,
        lease: Lease,
        timing: Timing,
        clock: Callable[[], float],
        report: Report,
        extend: Extend,
        counts_on: CountsOn,
        told: Callable[[str], None],
    ) -> None:
        self._lease = lease
        self._timing = timing
        self._clock = clock
        self._report = report
        self._extend = extend
        self._counts_on = counts_on
        self._told = told
        self.problem = ""
        """Why the last renewal had no answer."""
        # Whom the lease may name as it is stored now: as last written, and in attempts without an answer since.
        self._named: frozenset[str] = frozenset()
        # Whether the lease, as it is stored now, may be offered to somebody.
        self._offered = False
        self._wanted = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._calling = trio.Lock()
        self._next_at = 0.0
        self.mine: Holding | None = None
        self.fence_until = 0.0
        self.call_limit_s = timing.renew_every_s / CALLS_IN_PERIOD

    @property
    def alone(self) -> bool:
        """Nobody else can have taken it since it was written last: neither has it run out, nor was it offered."""
        return self._clock() < self.fence_until and not self._offered

    def hold(self, mine: Holding, sent_at: float) -> None:
        """The lease was granted, to a call that was sent at ``sent_at``."""
        self.mine = mine
        self._named = frozenset()
        self._offered = False
        self.fence_until = self._timing.accepts_until(sent_at)
        self._next_at = sent_at + self._timing.renew_every_s

    def begin(self) -> None:
        """Renew from now on."""
        self._wanted.set()

    def end(self) -> None:
        """Renew no more; nothing is reported after this."""
        self.problem = ""
        if self._wanted.is_set():
            self._wanted = trio.Event()
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> None:
        """Renew whenever it is wanted, for ever."""
        while True:
            wanted = self._wanted
            await wanted.wait()
            if wanted is not self._wanted:
                continue  # begun and ended before this task had its turn
            with trio.CancelScope() as scope:
                self._scope = scope
                await self._keep(wanted)
            self._scope = None

    async def _keep(self, wanted: trio.Event) -> None:
        """Renew until the lease is lost."""
        while wanted is self._wanted:
            if (left_s := self._next_at - self._clock()) > 0:
                await trio.sleep(left_s)
                continue  # looked at again: this clock counts while the machine is suspended, the scheduler's may not
            event, reason = await self._turn()
            if wanted is not self._wanted:
                return
            if event is not None:
                self._report(event, reason)

    async def _turn(self) -> tuple[Event | None, str]:
        sent_at = self._clock()
        try:
            # After the ttl is over by our own clock (the process was stopped, or the store was away) this is tried as
            # ever: the write is a compare-and-set on what we wrote last. If it succeeds, nobody has taken the lease in
            # between, so nobody else has accepted a commit, and to go on is right. If somebody has, it is refused; and
            # so it is where the store has lost what we wrote (``alone``).
            await self.renew()
        except Refused as error:
            self._told("refused")
            log.warning("lease_lost", reason=error.message)
            return Event.LOST, f"the lease is lost: {error.message}"
        except Unavailable as error:
            self._told("unknown")
            if not self.problem:
                left_s = round(max(0.0, self.fence_until - self._clock()), 2)
                log.warning("lease_not_renewed", reason=error.message, commits_for_s=left_s)
            self.problem = error.message
            return await self._without_answer(sent_at, error.message)
        self._told("done")
        if self.problem:
            log.info("lease_renewed_again")
        self.problem = ""
        self._next_at = sent_at + self._timing.renew_every_s
        return Event.RENEWED, ""

    async def _without_answer(self, sent_at: float, why: str) -> tuple[Event | None, str]:
        self._next_at = self._clock() + self._timing.renew_every_s / RETRIES_IN_PERIOD
        # Without names as last written, anybody may take the lease when it lapses.
        if self.mine is not None and self.mine.counts_on:
            asked_at = self._clock()
            if await self._extend(self._named, self.call_limit_s):
                self.fence_until = max(self.fence_until, self._timing.accepts_until(asked_at))
                self._next_at = asked_at + self._timing.renew_every_s
                return Event.RENEWED, "every other node has promised to stand back"
        # Only a call that was sent after the fence had closed says something: before, it was open.
        if sent_at >= self.fence_until:
            return Event.EXPIRED, f"the lease could not be renewed for {self._timing.ttl_s:g} s: {why}"
        return None, ""

    async def renew(self, offered_to: str = "") -> None:
        """Write the lease once. Raises Refused (it is no longer ours), Unavailable (it may be)."""
        async with self._calling:
            assert self.mine is not None
            named = () if offered_to else self._counts_on()
            self._named |= frozenset(named)
            sent_at = self._clock()
            alone = self.alone
            self._offered |= bool(offered_to)
            try:
                with trio.fail_after(self.call_limit_s):
                    mine = replace(self.mine, counts_on=named)
                    self.mine = await self._lease.renew(mine, offered_to, alone=alone)
            except trio.TooSlowError:
                raise Unavailable(f"no answer within {self.call_limit_s:g} s") from None
            self._named = frozenset(named)
            self._offered = bool(offered_to)
            if not offered_to:
                self.fence_until = max(self.fence_until, self._timing.accepts_until(sent_at))
