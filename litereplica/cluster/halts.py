"""Who may write one database of the primary alone, and who is next.

Knows locks (an application somewhere has opened ``DB-halt``) and write leases (a node's transaction was stale, and its
retry is to find the database at rest), their order and their times. Pure: time is an argument, in seconds on one
node's monotonic clock, and what is to be done is returned as actions. Does not know how SQLite's write lock is had
(applier/), or how nodes are told (node/halting.py).

    state     asked        held by applier  given back, over      committed       applier restarted, or lost the hold
    free      -> taking    (ignored)        (not theirs)          -               -
    taking    queue        -> held, Granted -> free, Unhold       -               Hold again (lost: ignored)
    held      queue/renew  (ignored)        -> resting, Unhold    lease: -> soon  lock: Lost; -> resting
    resting   queue        (ignored)        (not theirs)          -               -

For applications of the primary itself SQLite's lock is not taken: they write as always, and others do not. ``taking``
lasts until no transaction of another node is at the applier any more (Settle in place of Hold, without an Unhold): one
that is would be committed under their lock.

Order: first come, first served; but a lease may be overtaken by a lock during the rest that only leases have to keep.
Fairness to everybody else, the primary's own applications first of all: a lease lasts no longer than ``lease_s``, and
less when its node has committed; after it no node gets a lease for as long as it lasted; and after a lock nobody gets
anything for as long as it lasted, LONGEST_REST_S at most. Locks are renewed by whoever holds them, for ever if he
likes; nobody who does not renew keeps or waits for one longer than its limit.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

LOCK_LIMIT_S: Final = 10.0
"""A lock that is not renewed for so long is over: longer than replication takes to notice a dead link (6 s)."""
RENEW_EVERY_S: Final = 3.0
"""Two renewals may be late or lost."""
LINGER_S: Final = 0.05
"""A lease outlives a commit by so much: the application may have another transaction ready."""
LEASES_WAITED: Final = 2
"""A lease is waited for as long as so many last: the rest after another node's, and some. An application that tries
again and again asks again each time, and keeps its place."""
SHORTEST_REST_S: Final = 0.005
LONGEST_REST_S: Final = 0.1
"""SQLite's busy handler sleeps 0.1 s at most between two tries (os_unix.c, sqliteDefaultBusyCallback): everybody who
waits on the primary has one."""
HOLD_LIMIT_S: Final = 2.0
"""One attempt of the applier to get SQLite's write lock; it is repeated for as long as somebody waits."""
ANSWER_LIMIT_S: Final = 2 * HOLD_LIMIT_S
"""The applier answers within the limit of an attempt and some milliseconds; without a word it is asked again."""
WISHES_LIMIT: Final = 1000
"""Who waits for one database; each is some hundred bytes here, and an open file somewhere."""
GIVEN_BACK_LIMIT: Final = 1000
"""Locks of one database that are remembered after they were given back: several seconds of them at their fastest, and
a transaction that left under one is seldom a tenth of a second behind. One that is forgotten refuses it."""

NEVER: Final = math.inf


class Kind(Enum):
    """What a node asks for."""

    LOCK = "lock"
    LEASE = "lease"


class Admission(Enum):
    """Whether a transaction of a node may be committed now."""

    YES = "yes"
    LATER = "later"
    """Somebody else has the database: wait for a change, and ask again."""
    LOST = "lost"
    """It was made under a lock that its node has lost."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who asks: a node; ``token`` tells its locks apart, 0: a write lease, of which a node has one at most."""

    node: str
    token: int

    @property
    def kind(self) -> Kind:
        """Lock or lease."""
        return Kind.LOCK if self.token else Kind.LEASE


@dataclass(frozen=True, slots=True)
class Hold:
    """Have SQLite's write lock taken: the answer is ``held`` or ``hold_refused`` with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Unhold:
    """Have it given back, or no longer waited for."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Have it said when no transaction of another node is at the applier: ``held`` with this number, soon."""

    number: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The claim is the holder, for ``limit_s`` from now unless it is renewed (again and again for a lock)."""

    claim: Claim
    limit_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """The claim is in the queue; its node knows that it was heard."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Lost:
    """The claim is over, and its node did not say so itself; ``held``: it was the holder. It may ask anew."""

    claim: Claim
    reason: str
    held: bool = True


@dataclass(frozen=True, slots=True)
class Denied:
    """The claim cannot be had: asking again gives the same answer."""

    claim: Claim
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """For who counts: the claim was the holder from ``since`` to ``until``; ``reason``: why its node lost it."""

    claim: Claim
    since: float
    until: float
    reason: str = ""


Action = Hold | Unhold | Settle | Granted | Waiting | Lost | Denied | Ended


@dataclass(slots=True)
class _Wish:
    """One in the queue, or the first of it while SQLite's lock is being taken."""

    claim: Claim
    limit_s: float
    until: float


@dataclass(slots=True)
class Holder:
    """Who has the database; ``until``: when that is over."""

    claim: Claim
    since: float
    until: float


@dataclass(slots=True)
class _Taking:
    wish: _Wish
    number: int
    asked_at: float


class Halts:
    """One database. Every method that takes ``now`` returns what is to be done, in this order."""

    def __init__(self, here: str, lease_s: float) -> None:
        """``here``: the primary's name; ``lease_s``: how long a lease lasts at most."""
        self.holder: Holder | None = None
        self._here = here
        self._lease_s = lease_s
        self._taking: _Taking | None = None
        self._queue: list[_Wish] = []
        self._number = 0
        # Nobody gets anything before; nobody gets a lease before.
        self._rest_until = self._lease_rest_until = -NEVER
        # Locks that were taken away and whose nodes may not know it yet: they are not had again by a late renewal.
        self._lost: dict[Claim, str] = {}
        # Locks that their nodes themselves gave back, the newest last: another application of the node, which knew
        # nothing of the lock, may have sent a transaction before.
        self._given_back: dict[Claim, None] = {}

    # -- what is asked of it ---------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue) + (self._taking is not None)

    @property
    def idle(self) -> bool:
        """Nobody has it or wants it, and nothing has to be remembered but a rest and what was given back."""
        return self.holder is None and self._taking is None and not self._queue and not self._lost

    def rests(self, now: float) -> bool:
        """Somebody would have to wait although nobody has it."""
        return now < max(self._rest_until, self._lease_rest_until)

    def admits(self, node: str, token: int) -> Admission:
        """Whether a transaction of ``node`` may be committed; ``token``: of the lock that it was made under, or 0."""
        current = self.holder.claim if self.holder is not None else None
        if token and current != Claim(node, token) and Claim(node, token) not in self._given_back:
            return Admission.LOST
        if current is None and self._taking is not None:
            current = self._taking.wish.claim
        return Admission.YES if current is None or current.node == node else Admission.LATER

    def wants(self, claim: Claim) -> bool:
        """Whether a claim waits."""
        return self._wish(claim) is not None

    def next_at(self) -> float:
        """When ``tick`` has something to do, if nothing else happens."""
        times = [wish.until for wish in self._queue]
        if self.holder is not None:
            times.append(self.holder.until)
        elif self._taking is not None:
            times += [self._taking.wish.until, self._taking.asked_at + ANSWER_LIMIT_S]
        else:
            times += [self._eligible_at(wish) for wish in self._queue]
        return min(times, default=NEVER)

    # -- what happens ----------------------------------------------------------------------------------------------

    def ask(self, claim: Claim, limit_s: float, now: float) -> list[Action]:
        """A node wants the database, still wants it, or renews what it has."""
        limit_s = self._lease_s if claim.kind is Kind.LEASE else min(limit_s, LOCK_LIMIT_S)
        until = now + (LEASES_WAITED * limit_s if claim.kind is Kind.LEASE else limit_s)
        done = self.tick(now)
        if claim in self._lost:
            return [*done, Lost(claim, self._lost[claim])]
        holder = self.holder
        if holder is not None and holder.claim == claim and claim.kind is Kind.LOCK:
            holder.until = now + limit_s
            return [*done, Granted(claim, limit_s)]
        if holder is not None and holder.claim.node == claim.node and claim.kind is Kind.LEASE:
            # It has the lease, which does not last longer for being asked for again; or a lock, which is more.
            return [*done, Granted(claim, holder.until - now)]
        wish = self._wish(claim)
        if wish is not None:
            wish.limit_s, wish.until = limit_s, until
            return [*done, Waiting(claim)]
        if self.waiting >= WISHES_LIMIT:
            return [*done, Denied(claim, f"more than {WISHES_LIMIT} wait for this database")]
        self._given_back.pop(claim, None)
        self._queue.append(_Wish(claim, limit_s, until))
        done += self._next(now)
        return done if self.holder is not None and self.holder.claim == claim else [*done, Waiting(claim)]

    def give_back(self, claim: Claim, now: float) -> list[Action]:
        """A node has had enough, or does not want it any more."""
        self._lost.pop(claim, None)
        if self.holder is not None and self.holder.claim == claim and claim.kind is Kind.LOCK:
            self._given_back[claim] = None
            if len(self._given_back) > GIVEN_BACK_LIMIT:
                del self._given_back[next(iter(self._given_back))]
        return self._remove(claim, now) + self.tick(now)

    def committed(self, node: str, now: float) -> list[Action]:
        """A transaction of ``node`` was committed."""
        holder = self.holder
        if holder is not None and holder.claim == Claim(node, 0):
            holder.until = min(holder.since + self._lease_s, now + LINGER_S)
        return self.tick(now)

    def held(self, number: int, now: float) -> list[Action]:
        """The applier has SQLite's write lock; or, after Settle, it has no transaction of another node."""
        taking = self._taking
        if taking is None or taking.number != number:
            return self.tick(now)  # asked for somebody who does not want it any more: Unhold is on its way
        self._taking = None
        return self._grant(taking.wish, now) + self.tick(now)

    def hold_refused(self, number: int, reason: str, now: float) -> list[Action]:
        """The applier did not get it. Right away: it never will. Else an application kept it all the while."""
        taking = self._taking
        if taking is None or taking.number != number:
            return self.tick(now)
        if now - taking.asked_at < HOLD_LIMIT_S / 2:
            self._taking = None
            return [Denied(taking.wish.claim, reason), *self.tick(now)]
        return [self._hold(taking.wish, now), *self.tick(now)]

    def hold_lost(self, number: int, reason: str, now: float) -> list[Action]:
        """The applier could not keep what ``held`` said with this number: as when it dies, but for one database."""
        holder = self.holder
        # While another node has it no Hold is asked for: the last one was this holder's.
        if holder is None or holder.claim.node == self._here or number != self._number:
            return self.tick(now)
        return self._lose(holder.claim, reason, now) + self.tick(now)

    def applier_restarted(self, now: float) -> list[Action]:
        """What the applier held is held no more: applications of the primary may have written meanwhile."""
        done: list[Action] = []
        if self._taking is not None:
            done.append(self._hold(self._taking.wish, now))
        elif self.holder is not None and self.holder.claim.node != self._here:
            done += self._lose(self.holder.claim, "the primary's applier was started anew", now)
        return done + self.tick(now)

    def gone(self, node: str, now: float) -> list[Action]:
        """The connection with a node has ended: it knows that it has nothing any more."""
        self._lost = {claim: reason for claim, reason in self._lost.items() if claim.node != node}
        done: list[Action] = []
        for claim in self._claims():
            if claim.node == node:
                done += self._remove(claim, now)
        return done + self.tick(now)

    def end(self, reason: str, now: float) -> list[Action]:
        """Nobody has anything, or waits, any more: the database is dropped, or this node is not the primary."""
        done: list[Action] = []
        for claim in reversed(self._claims()):
            done += self._lose(claim, reason, now)
        return done

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        done: list[Action] = []
        for wish in [wish for wish in self._wishes() if wish.until <= now]:
            done += self._lose(wish.claim, "nobody asked for it any more", now)
        holder = self.holder
        if holder is not None and holder.until <= now:
            if holder.claim.kind is Kind.LEASE:
                done += self._remove(holder.claim, now)
            else:
                done += self._lose(holder.claim, f"it was not renewed for {LOCK_LIMIT_S:g} s", now)
        if self._taking is not None and self._taking.asked_at + ANSWER_LIMIT_S <= now:
            done.append(self._hold(self._taking.wish, now))
        return done + self._next(now)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _wishes(self) -> list[_Wish]:
        return ([self._taking.wish] if self._taking is not None else []) + self._queue

    def _claims(self) -> list[Claim]:
        return ([self.holder.claim] if self.holder is not None else []) + [wish.claim for wish in self._wishes()]

    def _wish(self, claim: Claim) -> _Wish | None:
        return next((wish for wish in self._wishes() if wish.claim == claim), None)

    def _eligible_at(self, wish: _Wish) -> float:
        if wish.claim.kind is Kind.LOCK:
            return self._rest_until
        return max(self._rest_until, self._lease_rest_until)

    def _next(self, now: float) -> list[Action]:
        """Let the first have it who may, when it is free."""
        if self.holder is not None or self._taking is not None:
            return []
        wish = next((wish for wish in self._queue if self._eligible_at(wish) <= now), None)
        if wish is None:
            return []
        self._queue.remove(wish)
        return [self._hold(wish, now)]

    def _hold(self, wish: _Wish, now: float) -> Hold | Settle:
        self._number += 1
        self._taking = _Taking(wish, self._number, now)
        return Settle(self._number) if wish.claim.node == self._here else Hold(self._number)

    def _grant(self, wish: _Wish, now: float) -> list[Action]:
        self.holder = Holder(wish.claim, now, now + wish.limit_s)
        return [Granted(wish.claim, wish.limit_s)]

    def _lose(self, claim: Claim, reason: str, now: float) -> list[Action]:
        held = self.holder is not None and self.holder.claim == claim
        if held and claim.kind is Kind.LOCK:
            self._lost[claim] = reason
        return [*self._remove(claim, now, reason), Lost(claim, reason, held)]

    def _remove(self, claim: Claim, now: float, reason: str = "") -> list[Action]:
        """Take a claim out, whatever it is; nothing when there is none."""
        holder, taking = self.holder, self._taking
        if holder is not None and holder.claim == claim:
            self.holder = None
            lasted_s = now - holder.since
            self._rest_until = now + min(max(lasted_s, SHORTEST_REST_S), LONGEST_REST_S)
            if claim.kind is Kind.LEASE:
                self._lease_rest_until = now + lasted_s
            ended = Ended(claim, holder.since, now, reason)
            return [ended] if claim.node == self._here else [Unhold(), ended]
        if taking is not None and taking.wish.claim == claim:
            self._taking = None
            return [] if claim.node == self._here else [Unhold()]
        self._queue = [wish for wish in self._queue if wish.claim != claim]
        return []
