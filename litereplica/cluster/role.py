"""The role of a node as a table: every state × every event → the next state and what is done on the way.

Knows what follows from what. Does not know the time, the lease's store or the data: node/keeper.py reports events and
does the actions. Each pair stands in the table, also those in which nothing is done, with the reason; tests walk
through all of them and check what must never happen on the table itself.

The rules that the table is made by:
- the fence opens only when the lease was granted or renewed, in a state that holds it;
- whoever was ready for commits closes the fence before anything else, then demotes;
- writers that were held for a handoff are let go on every way out of it (a demotion always does: what an earlier step
  asked for may not have been begun);
- while a node demotes, nothing distracts it: what happened meanwhile is looked at afterwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final


class State(Enum):
    """What a node is about."""

    FOLLOWING = "following"
    """A replica, of somebody or of nobody yet."""
    ELECTING = "electing"
    """A replica; the lease may be had, and the candidates find out who takes it."""
    TAKING = "taking"
    """A replica that has asked for the lease and waits for the answer."""
    PROMOTING = "promoting"
    """Holds the lease and gets ready to accept commits."""
    PRIMARY = "primary"
    HANDING_OFF = "handing_off"
    """The primary still: its writers are held until the target has everything."""
    OFFERED = "offered"
    """Accepts nothing any more; the target may take the lease."""
    RECLAIMING = "reclaiming"
    """Nobody took what was offered, or the offer's outcome is unknown: a renewal without it decides."""
    DEMOTING = "demoting"
    """Accepts nothing any more and becomes a replica."""
    STOPPING = "stopping"
    """As demoting, for good."""
    STOPPED = "stopped"


class Event(Enum):
    """What happens to a node. The first group is seen in the lease, by whoever may be concerned."""

    HELD = "held"
    """Another node holds it. Of a node that holds it itself: with a higher epoch."""
    NOBODY = "nobody"
    """Nobody holds it, and this node may not have it."""
    VACANT = "vacant"
    """It was given up, or its holder let it lapse, and this node may be elected."""
    INVITED = "invited"
    """It may be taken without an election: offered to this node, left over from its own attempt, or by command."""

    ELECTED = "elected"
    """It is this node's turn."""
    PROMISED = "promised"
    """This node has promised a primary that is cut off from the lease to stand back for a ttl."""
    GRANTED = "granted"
    BEATEN = "beaten"
    """The lease has changed since: somebody was faster."""
    UNKNOWN = "unknown"
    """No answer to our attempt: it may be ours or not."""
    PROMOTED = "promoted"
    FAILED = "failed"
    """The data would not be promoted."""

    RENEWED = "renewed"
    LOST = "lost"
    """A renewal was refused: the lease is somebody else's."""
    EXPIRED = "expired"
    """The fence has closed by itself, and a renewal after that had no answer either."""
    UNFIT = "unfit"
    """This node must not be primary any more: a replica knows a higher epoch (the lease's store has forgotten it), or
    the disk has failed."""

    HANDOFF = "handoff"
    """A person wants another primary."""
    READY = "ready"
    """The target has everything that is committed, and the writers are held."""
    CALLED_OFF = "called_off"
    """The handoff cannot be done."""
    UNTAKEN = "untaken"
    """The target did not take it in time, or the offer's outcome is unknown."""
    RECLAIMED = "reclaimed"
    """A renewal without the offer succeeded: nobody took it, nobody can any more."""
    DEMOTED = "demoted"
    STOP = "stop"


class Action(Enum):
    """What is done, in the order of the rule. Those up to RECORD are done at once, in the step itself."""

    CLOSE_FENCE = "close_fence"
    OPEN_FENCE = "open_fence"
    """Until the instant that follows from when the last successful call was sent."""
    REST = "rest"
    """Do not try to have the lease for a bounded time."""
    ANNOUNCE = "announce"
    """Tell everybody on this node who is primary now."""
    RECORD = "record"
    """Begin to write the history; nothing waits for it."""
    FOLLOW = "follow"
    ELECT = "elect"
    ACQUIRE = "acquire"
    PROMOTE = "promote"
    """Remember the epoch durably, then get ready to accept commits."""
    HOLD_WRITERS = "hold_writers"
    OFFER = "offer"
    RECLAIM = "reclaim"
    DRAIN = "drain"
    """Replicas take what they lack, for a bounded time in which the lease is still this node's."""
    RELEASE = "release"
    DEMOTE = "demote"
    RESUME_WRITERS = "resume_writers"
    SETTLE = "settle"
    """Report that the demotion is done."""


IMMEDIATE: Final = frozenset({Action.CLOSE_FENCE, Action.OPEN_FENCE, Action.REST, Action.ANNOUNCE, Action.RECORD})
"""Done in the step itself; the others take time and are ended when the state changes."""

HOLDING: Final = frozenset({State.PROMOTING, State.PRIMARY, State.HANDING_OFF, State.OFFERED, State.RECLAIMING})
"""The lease is this node's, as far as it knows."""
RENEWING: Final = frozenset({State.PROMOTING, State.PRIMARY, State.HANDING_OFF})
"""It is renewed; the others that hold it want to be rid of it or find out."""
LEADING: Final = frozenset({State.PRIMARY, State.HANDING_OFF, State.OFFERED, State.RECLAIMING})
"""To everybody else on this node: the primary."""
ENDED: Final = frozenset({State.STOPPING, State.STOPPED})


class Kind(Enum):
    """What a pair of the table says."""

    DONE = "done"
    IGNORED = "ignored"
    """It may well happen, and nothing follows from it."""
    IMPOSSIBLE = "impossible"
    """Whoever reports it has made a mistake."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What follows from an event in a state, and why."""

    next: State
    actions: tuple[Action, ...]
    why: str
    kind: Kind = Kind.DONE


def step(state: State, event: Event) -> Rule:
    """What follows from ``event`` in ``state``."""
    rule = TABLE[state, event]
    assert rule.kind is not Kind.IMPOSSIBLE, f"{event.value} in state {state.value}: {rule.why}"
    return rule


S, E, A = State, Event, Action

_DEMOTION: Final = (A.CLOSE_FENCE, A.ANNOUNCE, A.DEMOTE, A.RESUME_WRITERS, A.SETTLE)
_WITH_RELEASE: Final = (A.CLOSE_FENCE, A.ANNOUNCE, A.RELEASE, A.DEMOTE, A.RESUME_WRITERS, A.SETTLE)
# Whoever takes the lease next goes on with what it has at that moment.
_WITH_DRAIN: Final = (A.CLOSE_FENCE, A.ANNOUNCE, A.DRAIN, A.RELEASE, A.DEMOTE, A.RESUME_WRITERS, A.SETTLE)

_Transition = tuple[State, tuple[Action, ...], str]

_GIVEN_UP: Final[dict[Event, _Transition]] = {
    E.UNFIT: (S.DEMOTING, _WITH_RELEASE, "whoever takes it next has a higher epoch, and a disk that works"),
    E.STOP: (S.STOPPING, _WITH_DRAIN, "give it up, when replicas have what they could not be handed over with"),
}
_ENDINGS: Final[dict[Event, _Transition]] = {
    **_GIVEN_UP,
    E.HELD: (S.DEMOTING, _DEMOTION, "there is a newer primary"),
    E.LOST: (S.DEMOTING, _DEMOTION, "it is somebody else's"),
    E.EXPIRED: (S.DEMOTING, _DEMOTION, "it may be somebody else's"),
}
"""How holding the lease ends, wherever nothing else is said."""

_TRANSITIONS: Final[dict[State, dict[Event, _Transition]]] = {
    S.FOLLOWING: {
        E.HELD: (S.FOLLOWING, (A.ANNOUNCE, A.FOLLOW), "the holder is the primary"),
        E.NOBODY: (S.FOLLOWING, (A.ANNOUNCE, A.FOLLOW), "there is no primary"),
        E.VACANT: (S.ELECTING, (A.ANNOUNCE, A.ELECT), "candidates find out who takes it"),
        E.INVITED: (S.TAKING, (A.ACQUIRE,), "nobody else is asked"),
        E.STOP: (S.STOPPED, (), "a replica owes nobody anything"),
    },
    S.ELECTING: {
        E.HELD: (S.FOLLOWING, (A.ANNOUNCE, A.FOLLOW), "another was elected, or the holder lives"),
        E.NOBODY: (S.FOLLOWING, (A.ANNOUNCE, A.FOLLOW), "this node may not have it any more"),
        E.VACANT: (S.ELECTING, (A.ANNOUNCE, A.ELECT), "the lease changed: its new version is what everybody votes for"),
        E.INVITED: (S.TAKING, (A.ACQUIRE,), "nobody else is asked"),
        E.ELECTED: (S.TAKING, (A.ACQUIRE,), "it is this node's turn"),
        E.PROMISED: (S.FOLLOWING, (A.ANNOUNCE, A.FOLLOW), "the old primary goes on"),
        E.STOP: (S.STOPPED, (), "the others do not wait for long"),
    },
    S.TAKING: {
        E.GRANTED: (S.PROMOTING, (A.OPEN_FENCE, A.PROMOTE), "commits need the promotion too"),
        E.BEATEN: (S.FOLLOWING, (A.REST, A.ANNOUNCE, A.FOLLOW), "the lease as it is now will be seen in a moment"),
        E.UNKNOWN: (S.FOLLOWING, (A.REST, A.ANNOUNCE, A.FOLLOW), "if it is ours it will be seen in the lease"),
        E.STOP: (S.STOPPED, (), "leaving the lease ends what the attempt may have got"),
    },
    S.PROMOTING: {
        **_ENDINGS,
        E.RENEWED: (S.PROMOTING, (A.OPEN_FENCE,), "for longer"),
        E.PROMOTED: (S.PRIMARY, (A.ANNOUNCE, A.RECORD), "ready for commits"),
        E.FAILED: (
            S.DEMOTING,
            (A.CLOSE_FENCE, A.REST, A.RELEASE, A.DEMOTE, A.RESUME_WRITERS, A.SETTLE),
            "another may do better; this one tries again after a rest",
        ),
    },
    S.PRIMARY: {
        **_ENDINGS,
        E.RENEWED: (S.PRIMARY, (A.OPEN_FENCE,), "for longer"),
        E.HANDOFF: (S.HANDING_OFF, (A.HOLD_WRITERS,), "the target has to have everything first"),
    },
    S.HANDING_OFF: {
        **_ENDINGS,
        E.RENEWED: (S.HANDING_OFF, (A.OPEN_FENCE,), "for longer: it is not given away yet"),
        E.READY: (S.OFFERED, (A.CLOSE_FENCE, A.OFFER), "from the instant before the offer nothing is accepted"),
        E.CALLED_OFF: (S.PRIMARY, (A.RESUME_WRITERS,), "go on as if nothing had been asked"),
    },
    S.OFFERED: {
        **_GIVEN_UP,
        E.HELD: (S.DEMOTING, _DEMOTION, "the target took it"),
        E.LOST: (S.DEMOTING, _DEMOTION, "the offer was refused: it is somebody else's already"),
        E.UNTAKEN: (S.RECLAIMING, (A.RECLAIM,), "only compare-and-set says whose it is"),
    },
    S.RECLAIMING: {
        **_ENDINGS,
        E.RECLAIMED: (S.PRIMARY, (A.OPEN_FENCE, A.RESUME_WRITERS), "go on as if nothing had been asked"),
        E.HELD: (S.DEMOTING, _DEMOTION, "the target took it after all"),
        E.LOST: (S.DEMOTING, _DEMOTION, "the target took it after all"),
    },
    S.DEMOTING: {
        E.DEMOTED: (S.FOLLOWING, (A.ANNOUNCE, A.FOLLOW), "of whoever is seen in the lease"),
    },
    S.STOPPING: {
        E.DEMOTED: (S.STOPPED, (), "nothing is in flight any more"),
    },
    S.STOPPED: {},
}

_UNFIT: Final = {E.UNFIT: "nothing is accepted here; if that changes, it will be told again"}
_SEEN: Final = (E.HELD, E.NOBODY, E.VACANT, E.INVITED)

_IGNORED: Final[dict[State, dict[Event, str]]] = {
    S.FOLLOWING: {E.PROMISED: "it stands back already", **_UNFIT},
    S.ELECTING: _UNFIT,
    S.TAKING: {
        **dict.fromkeys(_SEEN, "the answer to our own attempt says more, and the lease is looked at after it"),
        E.UNFIT: "a promotion looks at the disk before it begins, and a replica tells its epoch again",
    },
    S.DEMOTING: {
        **dict.fromkeys(_SEEN, "it is looked at when the demotion is done"),
        **_UNFIT,
        E.STOP: "half a demotion is none: asked again when it is done",
    },
    S.STOPPING: {**dict.fromkeys(_SEEN, "this node takes part in nothing more"), **_UNFIT, E.STOP: "it does"},
    S.STOPPED: {**dict.fromkeys(_SEEN, "this node takes part in nothing more"), **_UNFIT, E.STOP: "it has"},
} | {
    holding: dict.fromkeys(
        (E.NOBODY, E.VACANT, E.INVITED),
        "seen before it was ours, or gone by accident: the next renewal finds out",
    )
    for holding in HOLDING
}

_IMPOSSIBLE: Final[dict[Event, str]] = {
    E.ELECTED: "only an election elects, and it ends with its state",
    E.PROMISED: "a node that holds the lease, asks for it or stops promises nothing",
    E.GRANTED: "only an attempt is granted",
    E.BEATEN: "only an attempt is beaten",
    E.UNKNOWN: "only an attempt has no answer",
    E.PROMOTED: "only a promotion ends so, and it ends with its state",
    E.FAILED: "only a promotion ends so, and it ends with its state",
    E.RENEWED: "renewing ends with the states that renew, before anything is reported",
    E.LOST: "renewing ends with the states that renew, before anything is reported",
    E.EXPIRED: "renewing ends with the states that renew, before anything is reported",
    E.HANDOFF: "only the primary that is not about another one is asked",
    E.READY: "only a handoff gets ready, and getting ready ends with its state",
    E.CALLED_OFF: "only a handoff that is getting ready is called off",
    E.UNTAKEN: "only an offer is not taken",
    E.RECLAIMED: "only what was offered is reclaimed",
    E.DEMOTED: "only a demotion ends so, and it ends with its state",
}
"""Where neither a transition nor a reason to ignore it stands. Every other event must have one of them."""


def _rule(state: State, event: Event) -> Rule:
    if (transition := _TRANSITIONS[state].get(event)) is not None:
        return Rule(*transition)
    if (why := _IGNORED.get(state, {}).get(event)) is not None:
        return Rule(state, (), why, Kind.IGNORED)
    return Rule(state, (), _IMPOSSIBLE[event], Kind.IMPOSSIBLE)


def _pairs() -> Iterator[tuple[State, Event]]:
    return ((state, event) for state in State for event in Event)


TABLE: Final[dict[tuple[State, Event], Rule]] = {pair: _rule(*pair) for pair in _pairs()}
