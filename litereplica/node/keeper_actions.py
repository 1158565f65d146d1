"""The actions of the table that take time.

Knows how each is done and what came of it, as the next event. Does not know the state, nor what follows. Any of them
may be ended half way by the keeper; what it would have reported is not heard then.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog
import trio

from litereplica.cluster.election import wait_s
from litereplica.cluster.lease import Endpoint, Reign, Timing
from litereplica.cluster.role import Action, Event
from litereplica.errors import Refused, Unavailable
from litereplica.lease.base import Lease
from litereplica.node.keeper_eligible import unusable
from litereplica.node.keeper_handoff import Handoff, offer, prepare, reclaim
from litereplica.node.keeper_look import Happening, Look
from litereplica.node.keeper_members import Members
from litereplica.node.keeper_renewal import Renewal
from litereplica.node.keeper_watch import Watch
from litereplica.node.plane import Plane

log = structlog.get_logger()

ELECTION_STEP_S: Final = 0.05
"""How often members are read in an election."""
RETRY_S: Final = 0.5
"""Between attempts at what no decision hangs on."""
RECORD_ATTEMPTS: Final = 20
"""Ten seconds; an entry that is missing beside the lease then is still in this node's own history."""
FIRST_EVERY_S: Final = 1.0
"""A primary without any transaction looks so often whether there is one."""
ACQUIRE_LIMIT_S: Final = 2.0
"""Taking the lease is a few calls of the lease's own limits; without an answer the lease itself shows what happened."""
DRAIN_LIMIT_S: Final = 2.0
"""Replicas get this long to take what they lack before a stopping primary gives the lease up; less when that ends."""
RELEASE_LIMIT_S: Final = 1.0
"""A lease that is not given up lapses by itself."""


class Actions:
    """``handoff``: the one under way. ``why``: this node wants the lease. ``known_epoch``: from replicas."""

    def __init__(
        self,
        lease: Lease,
        plane: Plane,
        me: Endpoint,
        timing: Timing,
        clock: Callable[[], float],
        *,
        watch: Watch,
        renewal: Renewal,
        members: Members,
        look: Look,
    ) -> None:
        self._lease = lease
        self._plane = plane
        self._me = me
        self._timing = timing
        self._clock = clock
        self._watch = watch
        self._renewal = renewal
        self._members = members
        self._look = look
        self._methods: dict[Action, Callable[[], Awaitable[Happening | None]]] = {
            Action.FOLLOW: self._follow,
            Action.ELECT: self._elect,
            Action.ACQUIRE: self._acquire,
            Action.PROMOTE: self._promote,
            Action.HOLD_WRITERS: self._hold_writers,
            Action.OFFER: self._offer,
            Action.RECLAIM: self._reclaim,
            Action.DRAIN: self._drain,
            Action.RELEASE: self._release,
            Action.DEMOTE: self._demote,
            Action.RESUME_WRITERS: self._resume_writers,
            Action.SETTLE: self._settle,
        }
        self.handoff: Handoff | None = None
        self.why = ""
        self.known_epoch = 0

    async def do(self, action: Action) -> Happening | None:
        """Do it; what came of it, None: the next action of the rule follows."""
        return await self._methods[action]()

    async def _demote(self) -> None:
        await self._plane.demote()

    async def _resume_writers(self) -> None:
        await self._plane.resume_writers()

    async def _settle(self) -> Happening:
        return Event.DEMOTED, "nothing is in flight any more"

    async def _follow(self) -> None:
        holding = self._look.holding()
        if holding is not None and (holding.epoch == 0 or not self._look.is_anothers(holding)):
            return
        if holding is not None:
            try:
                await self._plane.note_epoch(holding.epoch)
            except OSError as error:
                log.warning("epoch_not_noted", epoch=holding.epoch, error=str(error))
            holder = holding.holder
            if (holder.node, holder.replication) == (self._me.node, self._me.replication):
                # An earlier life of this node: until its lease is over, nobody answers there but this node itself.
                holding = None
        await self._plane.follow(holding)

    async def _elect(self) -> Happening:
        """Say how far this node is, wait as the rules of elections tell, until it is this node's turn."""
        assert self._watch.view is not None
        vacancy = self._watch.view.index
        last = self._watch.last_holder.instance if self._watch.last_holder is not None else ""
        began: float | None = None
        waits = False
        while True:
            try:
                me = await self._members.publish_for(vacancy)
                began = self._clock() if began is None else began
                members = await self._members.read()
            except (Unavailable, Refused) as error:
                if not waits:
                    log.warning("election_waits", reason=error.message)
                waits = True
                await trio.sleep(RETRY_S)
                continue
            left_s = wait_s(me, members, last, self._clock() - began)
            if left_s == 0.0:
                standing = f"epoch {me.standing.epoch}, {me.standing.total} transactions"
                return Event.ELECTED, f"{self._me.node} is the most advanced candidate ({standing})"
            await trio.sleep(min(left_s, ELECTION_STEP_S))

    async def _acquire(self) -> Happening:
        view = self._look.may_take()
        if view is None:
            return Event.BEATEN, "the lease has changed since"
        seen_epoch = max(self._plane.seen_epoch(), self._plane.standing().epoch, self.known_epoch)
        # Before the call: whoever waits for this node to lose the lease begins to count when it is written: later.
        sent_at = self._clock()
        try:
            with trio.fail_after(ACQUIRE_LIMIT_S):
                mine = await self._lease.acquire(view, self._me, self._timing.ttl_s, seen_epoch)
        except Refused as error:
            return Event.BEATEN, error.message
        except Unavailable as error:
            return Event.UNKNOWN, error.message
        except trio.TooSlowError:
            return Event.UNKNOWN, f"no answer within {ACQUIRE_LIMIT_S:g} s"
        log.info("lease_acquired", epoch=mine.epoch, reason=self.why)
        self._renewal.hold(mine, sent_at)
        return Event.GRANTED, self.why

    async def _promote(self) -> Happening:
        mine = self._renewal.mine
        assert mine is not None
        try:
            # Before the first commit: not even a wiped store of leases brings this epoch back for another node.
            await self._plane.note_epoch(mine.epoch)
            # The disk may have failed since the lease was asked for, and only who holds it is told so.
            if reason := unusable(self._members.mine(), forced=True):
                return self._promotion_failed(mine.epoch, reason)
            await self._plane.promote(mine.epoch)
        except (Unavailable, OSError) as error:
            return self._promotion_failed(mine.epoch, str(error))
        return Event.PROMOTED, self.why

    def _promotion_failed(self, epoch: int, reason: str) -> Happening:
        log.warning("promotion_failed", epoch=epoch, reason=reason)
        return Event.FAILED, f"{self._me.node} could not be promoted: {reason}"

    async def copy_history(self, epoch: int) -> None:
        """Keep the history here too, once it has the new primary in it; a failure harms nobody."""
        for _ in range(RECORD_ATTEMPTS):
            with suppress(Unavailable, Refused, OSError):
                history = await self._lease.history()
                await self._plane.note_reigns(history)
                if any(each.epoch == epoch for each in history):
                    return
            await trio.sleep(RETRY_S)

    async def record(self, epoch: int, reason: str, leads: Callable[[], bool]) -> None:
        """Write into the history, here and beside the lease, that this node is primary now.

        Where there is nothing, once more when there is something: nodes that have nothing know by it that others have
        (keeper_members.py). Until then ``leads`` is asked whether this node is the primary of that epoch still.
        """
        now_ms = time.time_ns() // 1_000_000
        reign = Reign(epoch, self._me.node, now_ms, reason, self._first_positions())
        await self._record(reign)
        while not reign.positions and leads():
            await trio.sleep(FIRST_EVERY_S)
            if leads() and (positions := self._first_positions()):
                reign = replace(reign, positions=positions)
                await self._record(reign)

    def _first_positions(self) -> dict[str, str]:
        return dict(list(self._plane.positions().items())[:100])

    async def _record(self, reign: Reign) -> None:
        epoch = reign.epoch
        try:
            await self._plane.note_reigns((reign,))
        except OSError as error:
            log.warning("reign_not_noted", epoch=epoch, error=str(error))
        failure = ""
        for _ in range(RECORD_ATTEMPTS):
            try:
                await self._lease.add_reign(reign)
            except (Unavailable, Refused) as error:
                failure = error.message
                await trio.sleep(RETRY_S)
            else:
                return
        log.warning("reign_not_recorded", epoch=epoch, reason=failure)

    async def _hold_writers(self) -> Happening:
        assert self.handoff is not None
        refusal = await prepare(self._plane, self.handoff)
        return (Event.CALLED_OFF, refusal) if refusal else (Event.READY, f"hands off to {self.handoff.target.node}")

    async def _offer(self) -> Happening:
        assert self.handoff is not None
        try:
            self.handoff.untaken = await offer(self._plane, self._renewal, self.handoff, self._timing)
        except Refused as error:
            return Event.LOST, f"the lease is lost: {error.message}"
        return Event.UNTAKEN, self.handoff.untaken

    async def _reclaim(self) -> Happening:
        assert self.handoff is not None
        try:
            reclaimed = await reclaim(self._renewal, self._clock, self._timing.ttl_s)
        except Refused as error:
            return Event.LOST, f"the lease is lost: {error.message}"
        if reclaimed:
            return Event.RECLAIMED, self.handoff.untaken
        return Event.EXPIRED, f"no answer for {self._timing.ttl_s:g} s to whose the lease is"

    async def _drain(self) -> None:
        # The lease is not renewed any more: it must be given up before others may take it anyway.
        left_s = self._renewal.fence_until - self._clock()
        if left_s > 0:
            await self._plane.drain(min(DRAIN_LIMIT_S, left_s))

    async def _release(self) -> None:
        mine = self._renewal.mine
        if mine is None:
            return
        try:
            with trio.move_on_after(RELEASE_LIMIT_S):
                await self._lease.release(mine, alone=self._renewal.alone)
        except (Refused, Unavailable) as error:
            log.info("lease_not_released", reason=error.message)
