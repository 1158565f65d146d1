"""What the lease, as it is seen, means for this node now.

Knows which event of the table it is. Does not know what follows, and reads nothing: the watch does.
"""

from litereplica.cluster import role
from litereplica.cluster.election import Sight, judge, may_take_over
from litereplica.cluster.lease import FORGOTTEN, Endpoint, Holding, View
from litereplica.cluster.role import Event, State
from litereplica.node.keeper_eligible import Eligibility
from litereplica.node.keeper_watch import Watch

Happening = tuple[Event, str]
"""An event and its reason, in words for people."""


class Look:
    """Tells each thing once: ``done`` says what was made of the last one."""

    def __init__(self, me: Endpoint, watch: Watch, eligible: Eligibility) -> None:
        self._me = me
        self._watch = watch
        self._eligible = eligible
        self._elected_for: int | None = None
        self._followed: tuple[str, int, Sight] | None = None
        self.forced = False
        """A person wants this node to take over as soon as the lease may be had."""

    def holding(self) -> Holding | None:
        """The lease as last read, whosever it is."""
        return self._watch.view.holding if self._watch.view is not None else None

    def sight(self, view: View) -> Sight:
        """What a view is to this node."""
        return judge(view, self._me, self._watch.unchanged_s())

    def primary(self) -> Holding | None:
        """The lease of another node that holds it, as far as can be seen, and has said its epoch."""
        view = self._watch.view
        if view is None or view.holding is None or view.holding.epoch == 0 or not self.is_anothers(view.holding):
            return None
        return view.holding if self.sight(view) in {Sight.HELD, Sight.OFFERED} else None

    def is_anothers(self, holding: Holding) -> bool:
        """Another node has it, as far as is known.

        Not this start of this node, which has it; or had it, and the store has forgotten who came next, if anybody did.
        """
        return holding.holder != FORGOTTEN and holding.holder.instance != self._me.instance

    def may_take(self) -> View | None:
        """The version of the lease at which this node may try to take it now; None: it may not."""
        view = self._watch.view
        if view is None or self._eligible.why_not(forced=self.forced):
            return None
        sight = self.sight(view)
        if sight is Sight.HELD or (sight is Sight.LAPSED and not may_take_over(view, self._me.node)):
            return None
        return view

    def again_s(self, limit_s: float) -> float:
        """When time alone may change what the lease means, from now on; ``limit_s`` at most."""
        limits = [limit_s]
        if (change_s := self._eligible.next_change_s()) > 0:
            limits.append(change_s)
        holding = self.holding()
        if holding is not None and (left_s := holding.ttl_s - self._watch.unchanged_s()) > 0:
            limits.append(left_s)
        return min(limits)

    def look(self, state: State, mine: Holding | None) -> Happening | None:
        """What has happened, as far as the lease shows; None: nothing new."""
        view = self._watch.view
        if view is None:
            return None
        if state in role.HOLDING:
            assert mine is not None
            return self._as_holder(view, mine)
        if state in {State.FOLLOWING, State.ELECTING}:
            sight = self.sight(view)
            return self._as_candidate(view, sight) if self.may_take() else self._as_replica(state, view, sight)
        return None

    def _as_holder(self, view: View, mine: Holding) -> Happening | None:
        """Only a higher epoch says something; everything else the next renewal finds out by compare-and-set."""
        holding = view.holding
        if holding is None or not self.is_anothers(holding) or holding.epoch <= mine.epoch:
            return None
        return Event.HELD, f"{holding.holder.node} has taken the lease"

    def _as_candidate(self, view: View, sight: Sight) -> Happening | None:
        name = view.holding.holder.node if view.holding is not None else ""
        if sight is Sight.OFFERED:
            return Event.INVITED, f"{name} hands off to {self._me.node}"
        if sight is Sight.OURS:
            return Event.INVITED, "the lease is still this node's"
        gone = _vacancy(view.holding)
        if self.forced:
            return Event.INVITED, f"{gone}, and a person asked for it"
        return (Event.VACANT, gone) if self._elected_for != view.index else None

    def _as_replica(self, state: State, view: View, sight: Sight) -> Happening | None:
        holding = view.holding
        if state is State.FOLLOWING:
            if _key(holding, sight) == self._followed:
                return None
            if holding is not None and holding.epoch == 0 and sight is Sight.HELD:
                return None  # taken, and its epoch not yet said: that comes in a moment
        if sight in {Sight.HELD, Sight.OFFERED} and holding is not None and self.is_anothers(holding):
            return Event.HELD, f"{holding.holder.node} has the lease"
        return Event.NOBODY, _vacancy(holding)

    def done(self, state: State, *, follows: bool) -> None:
        """A step was made; ``follows``: what is seen now is followed."""
        view = self._watch.view
        self._elected_for = view.index if view is not None and state is State.ELECTING else None
        if state is not State.FOLLOWING:
            self._followed = None
        elif follows and view is not None:
            self._followed = _key(view.holding, self.sight(view))


def _vacancy(holding: Holding | None) -> str:
    """Why it may be had, now or in a while."""
    if holding is None:
        return "nobody has the lease"
    if holding.holder == FORGOTTEN:
        return "the lease's store has forgotten who has the lease"
    return f"{holding.holder.node} did not renew its lease"


def _key(holding: Holding | None, sight: Sight) -> tuple[str, int, Sight]:
    return (holding.holder.instance, holding.epoch, sight) if holding is not None else ("", 0, sight)
