"""The keeper of a node's role: runs the table of cluster/role.py over a lease and the node's data.

Knows its tasks and what they report. Does not know what follows from what (the table), who goes first
(cluster/election.py), how anything is done (keeper_actions.py), where the lease is kept, or how data are promoted.

Tasks: the lease is watched, renewed, looked at (what does it mean for this node now), and members are exchanged; one
more does the actions that take time. State changes only in ``_step``, without an await: the fence is closed in the step
in which the reason is known, and actions of an earlier step that are still under way are ended; nothing is heard of
them any more.

Two clocks, each on its safe side. How long this node may accept commits goes by the fence's, which counts while the
machine is suspended, and the scheduler's may not: so whatever waits for an instant looks at it again. How long another
node's lease has been unchanged goes by ``awake``, which counts only while this node could have seen a change.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

import structlog
import trio

from litereplica.cluster import role
from litereplica.cluster.election import choose_target
from litereplica.cluster.lease import Endpoint, Member, Timing
from litereplica.cluster.role import Action, Event, State
from litereplica.errors import Refused, Unavailable
from litereplica.lease.base import Lease
from litereplica.node.keeper_actions import Actions
from litereplica.node.keeper_eligible import Eligibility, unusable
from litereplica.node.keeper_handoff import Handoff
from litereplica.node.keeper_join import join
from litereplica.node.keeper_look import Look
from litereplica.node.keeper_members import Members
from litereplica.node.keeper_renewal import Renewal
from litereplica.node.keeper_watch import Watch
from litereplica.node.plane import Plane

log = structlog.get_logger()

LOOK_EVERY_S: Final = 1.0
"""Whether this node's databases are whole is asked again so often; everything else that matters wakes the look up."""
READ_LIMIT_S: Final = 1.0
"""A command reads the members anew for so long, then takes what it knows."""
HANDOFF_LIMIT_S: Final = 30.0
"""All steps of a handoff have limits; together they are under this."""
TAKE_OVER_LIMIT_S: Final = 10.0
"""From the lease's end to the promotion, when a person has asked for it."""
STOP_HANDOFF_LIMIT_S: Final = 15.0
"""A stopping primary hands off within the limits of the steps of a handoff, or not at all."""
STOP_LIMIT_S: Final = 10.0
"""Replicas that take what they lack, and a demotion; and leaving the lease."""


class Keeper:
    """The role of one node, from ``run`` to ``stop``. ``clock`` is the fence's, ``awake`` stops in sleep."""

    def __init__(
        self,
        lease: Lease,
        plane: Plane,
        me: Endpoint,
        timing: Timing,
        *,
        candidate: bool,
        priority: int,
        outage: Literal["stop", "continue"],
        clock: Callable[[], float],
        awake: Callable[[], float],
        known_cluster: str,
    ) -> None:
        self._lease = lease
        self._plane = plane
        self._me = me
        self._timing = timing
        self._cluster = known_cluster
        self._state = State.FOLLOWING
        self._changed = trio.Event()
        self._wake = trio.Event()
        self._todo: tuple[Action, ...] = ()
        self._todo_set = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._told: tuple[str, Endpoint | None, int] | None = None
        self.reason = "starting"
        self.primary: Endpoint | None = None
        self.epoch = 0
        self._continues = outage == "continue"
        self._members = Members(lease, plane, Member(me, plane.standing(), candidate, priority), clock)
        self._watch = Watch(lease, awake, timing.ttl_s, self._wake_up)
        self._renewal = Renewal(lease, timing, clock, self._step, self._extend, self._counts_on, plane.renewed)
        self._eligible = Eligibility(awake, self._members.mine)
        self._look = Look(me, self._watch, self._eligible)
        self._actions = Actions(
            lease,
            plane,
            me,
            timing,
            clock,
            watch=self._watch,
            renewal=self._renewal,
            members=self._members,
            look=self._look,
        )

    # -- what others ask -------------------------------------------------------------------------------------------

    @property
    def role(self) -> Literal["primary", "replica"]:
        """What this node is to everybody else on it."""
        return "primary" if self._state in role.LEADING else "replica"

    @property
    def state(self) -> State:
        """What this node is about."""
        return self._state

    @property
    def stops(self) -> bool:
        """Whether it was told to stop."""
        return self._eligible.leaving

    @property
    def outage(self) -> str:
        """What is wrong with the lease's store; "" when nothing is known to be."""
        return self._renewal.problem or self._watch.problem

    @property
    def held_back(self) -> str:
        """What is wrong with the databases here, when nobody leads and this node may not for that; "" otherwise."""
        member = self._members.mine()
        unknown = self._watch.view is None or self._look.primary() is not None
        if unknown or self._state is not State.FOLLOWING or not member.candidate:
            return ""
        return unusable(member, forced=False)

    @property
    def members(self) -> tuple[Member, ...]:
        """Everybody who is known, as last read."""
        return self._members.known or ()

    def promise(self, epoch: int, hold_s: float) -> bool:
        """Failsafe: stand back for ``hold_s``, for the primary of ``epoch`` is cut off; not if a newer one is known."""
        holding = self._look.holding()
        known = max(holding.epoch if holding is not None else 0, self._plane.seen_epoch())
        if self._state not in {State.FOLLOWING, State.ELECTING} or epoch < known:
            return False
        reason = "the primary is cut off from the lease and goes on"
        self._eligible.stand_back(hold_s, reason)
        self._step(Event.PROMISED, reason)
        return True

    def saw_epoch(self, epoch: int) -> None:
        """A replica knows ``epoch``. A primary of a lower one gives its lease up: it is not the newest."""
        self._actions.known_epoch = max(self._actions.known_epoch, epoch)
        mine = self._renewal.mine
        if mine is not None and self._state in role.HOLDING and epoch > mine.epoch:
            self._step(Event.UNFIT, f"a replica knows epoch {epoch}, and this is {mine.epoch}")

    def unfit(self, reason: str) -> None:
        """This node must not be primary any more: its disk has failed."""
        if self._state in role.HOLDING:
            self._step(Event.UNFIT, reason)

    async def failover(self, to: str | None, *, force: bool) -> Endpoint:
        """Have another primary: ``to``, or the most advanced candidate; who it is, once it has the lease.

        On a replica with ``force``: this node, when the primary does not renew. Raises Refused with the reason, or
        Unavailable.
        """
        if self.role == "primary":
            return await self._hand_off_to(to, force=force)
        if not force:
            known = f"{self.primary.node} is, at {self.primary.http}" if self.primary is not None else "nobody is"
            raise Refused(f"{self._me.node} is not the primary: {known}")
        if to not in {None, self._me.node}:
            raise Refused(f"only {to} itself can take over from a primary that does not answer: ask it")
        return await self._take_over()

    async def stop(self) -> None:
        """Take part no more: hand off to a candidate that has everything, or else give the lease up. Then leave."""
        self._eligible.leaving = True
        with trio.move_on_after(STOP_HANDOFF_LIMIT_S):
            await self._hand_off_before_stop()
        with trio.move_on_after(STOP_LIMIT_S):
            await self._wait_until(lambda: self._state is not State.DEMOTING)
            self._step(Event.STOP, f"{self._me.node} stops")
            await self._wait_until(lambda: self._state is State.STOPPED)
        if self._state is not State.STOPPED:  # a demotion that does not end; no commit is accepted any more
            log.warning("not_demoted_in_time", state=self._state.value, limit_s=STOP_LIMIT_S)
        with trio.move_on_after(STOP_LIMIT_S):
            if self._nursery is not None:
                # Nobody asks anything of a lease that is being left.
                self._nursery.cancel_scope.cancel()
                await self._ended.wait()
            try:
                await self._lease.close()
            except Unavailable as error:
                log.warning("lease_not_left", reason=error.message)

    # -- commands --------------------------------------------------------------------------------------------------

    async def _hand_off_to(self, to: str | None, *, force: bool, stops: bool = False) -> Endpoint:
        """``stops``: this node itself wants it, because it stops; nobody else's comes between from then on."""
        with trio.move_on_after(READ_LIMIT_S):
            try:
                await self._members.read()
            except Unavailable as error:
                log.info("members_not_read", reason=error.message)
        if self.stops and not stops:
            raise Refused(f"{self._me.node} stops, and hands off itself")
        if self._state is not State.PRIMARY:
            raise Refused(f"{self._me.node} is {self._state.value.replace('_', ' ')}: wait until that has ended")
        target = choose_target(self.members, self._me, self._plane.replicas(), to)
        if isinstance(target, str):
            raise Refused(target)
        handoff = self._actions.handoff = Handoff(target, force=force)
        self._step(Event.HANDOFF, f"hands off to {target.endpoint.node}")
        with trio.move_on_after(HANDOFF_LIMIT_S):
            return await handoff.wait()
        raise Unavailable(f"the handoff to {target.endpoint.node} did not end within {HANDOFF_LIMIT_S:g} s")

    async def _hand_off_before_stop(self) -> None:
        handoff = self._actions.handoff
        if handoff is not None and not handoff.ended:
            # What calls off somebody else's, without force or to a node of their choice, need not stop this one.
            with suppress(Refused):
                await handoff.wait()
        if self._state is not State.PRIMARY:
            return
        try:
            # What does not yield now ends with this process anyway.
            await self._hand_off_to(None, force=True, stops=True)
        except (Refused, Unavailable) as error:
            log.info("not_handed_off", reason=error.message)

    async def _take_over(self) -> Endpoint:
        if why_not := self._eligible.why_not(forced=True):
            raise Refused(why_not)
        before = self._watch.view
        if before is None:
            raise Unavailable("the lease cannot be read: nobody can take it")
        holder = before.holding.holder.node if before.holding is not None else ""
        self._look.forced = True
        self._wake_up()
        try:
            with trio.move_on_after(self._timing.ttl_s + TAKE_OVER_LIMIT_S):
                await self._wait_until(lambda: self.role == "primary" or self._renewed_since(before.index))
        finally:
            self._look.forced = False
        if self.role == "primary":
            return self._me
        now = self._look.primary()
        if now is None:
            raise Unavailable(f"{self._me.node} could not take the lease: {self.reason}")
        if now.holder.node == holder:
            raise Refused(f"{holder} lives and renews its lease: hand off there, without --force")
        raise Refused(f"{now.holder.node} has taken the lease")

    def _renewed_since(self, index: int) -> bool:
        """Another node has written the lease since; not this one, which is about it."""
        view = self._watch.view
        return view is not None and view.index != index and self._look.primary() is not None

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Started when this node has joined, or when the lease cannot be reached for now.

        Raises Refused when this node may not take part.
        """
        self._plane.set_fence(0.0)
        started = False

        def start() -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._join(start)
            for each in (self._lease.run, self._watch.run, self._renewal.run, self._members.run):
                nursery.start_soon(each)
            nursery.start_soon(self._act)
            nursery.start_soon(self._look_always)
        start()  # it was told to stop before it had joined
        self._ended.set()

    async def _join(self, start: Callable[[], None]) -> None:
        def waits(reason: str) -> None:
            self.reason = reason
            start()

        joined = await join(self._lease, self._plane, self._cluster, self._members.mine(), waits)
        self._members.heard(joined.history)
        if joined.forgetful:
            # A holder may live that the store has forgotten, and this start has not seen its lease.
            self._eligible.stand_back(self._timing.ttl_s, "the lease's store knows less than this node")
        self._cluster = joined.cluster
        start()

    async def _look_always(self) -> None:
        """Report what the lease means, whenever it or something else has changed."""
        told = ""
        while True:
            self._wake = trio.Event()
            if (reason := self.held_back) != told:
                told = reason
                if reason:
                    log.warning("no_candidate", reason=reason)
            if (happened := self._look.look(self._state, self._renewal.mine)) is not None:
                self._step(*happened)
            with trio.move_on_after(self._look.again_s(LOOK_EVERY_S)):
                await self._wake.wait()

    async def _act(self) -> None:
        """Do what the last step asked for, until the next."""
        while True:
            await self._todo_set.wait()
            self._todo_set = trio.Event()
            todo, self._todo = self._todo, ()
            with trio.CancelScope() as self._scope:
                for action in todo:
                    happened = await self._actions.do(action)
                    if self._scope.cancel_called:
                        break  # something else happened first
                    if happened is not None:
                        self._step(*happened)
                        break
            self._scope = None

    def _counts_on(self) -> tuple[str, ...]:
        others = self._members.others()
        return tuple(sorted(others | {self._me.node})) if self._continues and others is not None else ()

    async def _extend(self, named: frozenset[str], limit_s: float) -> bool:
        """Failsafe: whether every other node that may take the lease when it lapses promised not to for a ttl."""
        seen = self._look.holding()
        # What was not read back may not be there, and then the others do not know on whom this node counts.
        if seen is None or seen.holder.instance != self._me.instance or not seen.counts_on:
            return False
        others = (named | frozenset(seen.counts_on)) - {self._me.node}
        with trio.move_on_after(limit_s):
            promised = await self._plane.ask_promises(others, self._timing.ttl_s, limit_s)
            log.info("promises", asked=sorted(others), given=sorted(promised))
            return others <= promised
        return False

    # -- the table -------------------------------------------------------------------------------------------------

    def _step(self, event: Event, reason: str) -> None:
        """Something happened: what the table says follows, at once. The only place where the state changes."""
        before = self._state
        rule = role.step(before, event)
        if rule.kind is role.Kind.IGNORED:
            return
        self._state = rule.next
        if event in {Event.VACANT, Event.INVITED}:
            self._actions.why = reason
        elif event is Event.ELECTED:
            self._actions.why = f"{self._actions.why}; {reason}"
        for action in rule.actions:
            if action in role.IMMEDIATE:
                self._do_at_once(action, event, reason)
        lasting = tuple(action for action in rule.actions if action not in role.IMMEDIATE)
        if before is rule.next and not lasting:
            return
        log.debug("role_step", before=before.value, seen=event.value, after=rule.next.value, reason=reason)
        self._look.done(rule.next, follows=Action.FOLLOW in lasting)
        self._enter(reason)
        self._todo = lasting
        self._todo_set.set()
        if self._scope is not None:
            self._scope.cancel()
        self._wake_up()

    def _do_at_once(self, action: Action, event: Event, reason: str) -> None:
        if action is Action.CLOSE_FENCE:
            self._plane.set_fence(0.0)
        elif action is Action.OPEN_FENCE:
            self._plane.set_fence(self._renewal.fence_until)
        elif action is Action.REST:
            self._eligible.rest(event)
        elif action is Action.RECORD:
            assert self._nursery is not None
            epoch = self.epoch
            self._nursery.start_soon(self._actions.record, epoch, reason, lambda: self._leads(epoch))
        else:
            self._announce(reason)

    def _leads(self, epoch: int) -> bool:
        return self._state in role.LEADING and self.epoch == epoch

    def _enter(self, reason: str) -> None:
        """What hangs on the state alone: renewals, what is said for an election, and whoever waits for a handoff."""
        if self._state in role.RENEWING:
            self._renewal.begin()
        else:
            self._renewal.end()
        if self._state is not State.ELECTING:
            self._members.end_election()
        handoff = self._actions.handoff
        if handoff is None or handoff.ended:
            return
        holding = self._look.holding()
        if self._state in {State.HANDING_OFF, State.OFFERED, State.RECLAIMING}:
            return
        if holding is not None and self._look.is_anothers(holding) and self._state is not State.PRIMARY:
            handoff.succeed(holding.holder)
        elif self._state is not State.DEMOTING:  # the lease will show in a moment who has it
            handoff.refuse(reason)

    def _announce(self, reason: str) -> None:
        holding = self._renewal.mine if self._state in role.LEADING else self._look.primary()
        self.primary = holding.holder if holding is not None else None
        self.epoch = holding.epoch if holding is not None else 0
        told = (self.role, self.primary, self.epoch)
        if told != self._told:
            self._told, self.reason = told, reason
            name = self.primary.node if self.primary is not None else None
            log.info("role_changed", role=self.role, primary=name, epoch=self.epoch, reason=reason)
            self._plane.role_changed(self.role, self.primary, self.epoch, reason)
            if self.role == "replica" and self.primary is not None and self._nursery is not None:
                self._nursery.start_soon(self._actions.copy_history, self.epoch)

    def _wake_up(self) -> None:
        """The lease or this node has changed."""
        self._wake.set()
        self._changed.set()
        self._changed = trio.Event()
