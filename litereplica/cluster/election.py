"""Who may have the lease, when, and who goes first.

Knows the lease as it was seen, the members as they were read, and how long ago; decides from that alone. Does not know
the time or the lease's store.
"""

from collections.abc import Iterable
from enum import Enum
from typing import Final

from litereplica.cluster.lease import Endpoint, Member, View

ELECTION_WAIT_S: Final = 0.5
"""A candidate that lives says within this how far it is: one wake-up and one write. It is also what a candidate that
has died with the primary costs, once in an election."""
RANK_STEP_S: Final = 0.25
"""The next best tries so much later: longer than an attempt takes, so that they do not get in each other's way."""


class Sight(Enum):
    """What the lease looks like to one node."""

    VACANT = "vacant"
    """Given up by its last holder."""
    LAPSED = "lapsed"
    """Its holder did not renew it for as long as it had promised."""
    HELD = "held"
    OFFERED = "offered"
    """Its holder lets this node take it."""
    OURS = "ours"
    """It says this very process."""


def judge(view: View, me: Endpoint, unchanged_s: float) -> Sight:
    """What ``view``, seen unchanged for so long, is to ``me``.

    What is gone belongs to nobody before its time, whoever had it and whomever it was offered to: whoever took it
    since has either written it again by then, or accepts nothing any more.
    """
    holding = view.holding
    if holding is None:
        return Sight.VACANT
    if view.gone:
        return Sight.LAPSED if unchanged_s >= holding.ttl_s else Sight.HELD
    if holding.holder.instance == me.instance:
        return Sight.OURS
    if holding.offered_to == me.node:
        return Sight.OFFERED
    return Sight.LAPSED if unchanged_s >= holding.ttl_s else Sight.HELD


def may_take_over(view: View, node: str) -> bool:
    """Whether a lapsed lease may be taken by this node: others do not know whether its holder goes on by promises."""
    return view.holding is None or not view.holding.counts_on or node in view.holding.counts_on


def rank(member: Member) -> tuple[int, int, int, str]:
    """The least goes first: the newest epoch, the most transactions, the highest priority, the name."""
    standing = member.standing
    return (-standing.epoch, -standing.total, -member.priority, member.endpoint.node)


def may_lead(member: Member) -> bool:
    """It may hold the lease at all."""
    standing = member.standing
    return member.candidate and standing.whole and not standing.parted and not standing.emptied


def wait_s(me: Member, members: Iterable[Member], last_holder: str, waited_s: float) -> float:
    """How much longer ``me``, published for its ``vacancy``, waits before it tries; 0.0: its turn.

    All candidates are waited for until they have published for the same vacancy, ELECTION_WAIT_S at most;
    ``last_holder`` (an instance, "" when unknown) is not: it is why there is an election. Then the best goes at once,
    each of the others one step later, when those before it did not.
    """
    rivals = [each for each in members if may_lead(each) and each.endpoint.node != me.endpoint.node]
    published = [each for each in rivals if each.vacancy == me.vacancy]
    awaited = [each for each in rivals if each.vacancy != me.vacancy and each.endpoint.instance != last_holder]
    ahead = sum(rank(each) < rank(me) for each in published)
    if ahead == 0 and not awaited:
        return 0.0
    return max(0.0, ELECTION_WAIT_S + ahead * RANK_STEP_S - waited_s)


def choose_target(
    members: Iterable[Member], me: Endpoint, connected: tuple[str, ...], wanted: str | None
) -> Member | str:
    """To whom the primary ``me`` may hand off, the most advanced unless one is ``wanted``; or why to nobody."""
    others = {each.endpoint.node: each for each in members if each.endpoint.node != me.node}
    if wanted is not None:
        return _why_not(wanted, others, me, connected) or others[wanted]
    fit = [each for each in others.values() if may_lead(each) and each.endpoint.node in connected]
    if fit:
        return min(fit, key=rank)
    return f"no candidate is connected to {me.node} with whole databases: start one, or wait until it has caught up"


def _why_not(wanted: str, others: dict[str, Member], me: Endpoint, connected: tuple[str, ...]) -> str:
    """Why this one may not be handed off to; "" when it may."""
    target = others.get(wanted)
    if wanted == me.node:
        why_not = f"{wanted} is the primary already"
    elif target is None:
        why_not = f"no node is called {wanted!r}; known: {', '.join(sorted(others)) or 'no other node'}"
    elif not target.candidate:
        why_not = f"{wanted} is not a candidate: set node.candidate on it, or choose another"
    elif wanted not in connected:
        why_not = f"{wanted} is not connected to {me.node}: it would lose transactions; wait, or choose another"
    elif not target.standing.whole:
        what = (
            "is in the middle of a snapshot, has nothing yet, still has lost history, has damaged pages or cannot "
            "apply its log"
        )
        why_not = f"{wanted} {what}: wait, or choose another"
    else:
        why_not = ""
    return why_not
