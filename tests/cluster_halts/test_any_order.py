"""What holds whatever nodes ask for, in any order, and however the applier answers.

More: ``LITEREPLICA_EXAMPLES=3000 python -m pytest --timeout 0`` with this file.
"""

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from litereplica.cluster.halts import (
    HOLD_LIMIT_S,
    LOCK_LIMIT_S,
    LONGEST_REST_S,
    RENEW_EVERY_S,
    SHORTEST_REST_S,
    Action,
    Admission,
    Claim,
    Denied,
    Ended,
    Granted,
    Halts,
    Hold,
    Kind,
    Lost,
    Settle,
    Unhold,
    Waiting,
)

HERE = "a"
NODES = (HERE, "b", "c")
LEASE_S = 1.0
# Sums of times are floats.
SLACK_S = 1e-6

nodes = st.sampled_from(NODES)
claims = st.sampled_from([Claim(HERE, 1), *(Claim(node, token) for node in ("b", "c") for token in (0, 0, 1, 2))])


class Locking(RuleBasedStateMachine):
    """Halts, an applier that answers when it likes, and what nodes have been told."""

    def __init__(self) -> None:
        super().__init__()
        self.halts = Halts(HERE, LEASE_S)
        self.now = 0.0
        # The applier: the Hold that it works on, whether it has the lock, and its answers on their way.
        self.asked: int | None = None
        self.has_lock = self.wanted = False
        self.number = 0
        self.answers: list[int] = []
        # A Settle that is not answered, and a transaction of another node that is at the applier all the while.
        self.settling: int | None = None
        self.is_committing = False
        # What was told: who has it since when, and which locks wait, in the order of their asking.
        self.holder: Claim | None = None
        self.since = 0.0
        self.waiting: list[Claim] = []
        self.nobody_before = self.no_lease_before = 0.0

    @initialize()
    def start(self) -> None:
        """Nothing was asked yet."""
        assert self.halts.idle

    # -- what is done, checked as it is ------------------------------------------------------------------------------

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Hold(number):
                    assert self.holder is None
                    assert self.now >= self.nobody_before - SLACK_S
                    self.asked, self.wanted, self.settling = number, True, None
                case Settle(number):
                    assert self.holder is None
                    assert not self.has_lock
                    self.settling = number
                case Unhold():
                    self.asked, self.has_lock, self.wanted = None, False, False
                case Granted(claim, limit_s):
                    self.granted(claim, limit_s)
                case Waiting(claim):
                    if claim.kind is Kind.LOCK and claim not in self.waiting:
                        self.waiting.append(claim)
                case Lost(claim, _, held):
                    assert claim != self.holder
                    assert held or claim.kind is Kind.LEASE or claim in self.waiting
                    self.forget(claim)
                case Denied(claim, _):
                    self.forget(claim)
                case Ended():
                    self.ended(action)

    def granted(self, claim: Claim, limit_s: float) -> None:
        assert 0 <= limit_s <= LOCK_LIMIT_S + SLACK_S
        if claim == self.holder or (claim.kind is Kind.LEASE and self.holder and claim.node == self.holder.node):
            return
        assert self.holder is None
        assert self.now >= self.nobody_before - SLACK_S
        assert claim.node != HERE or not self.is_committing
        if claim.kind is Kind.LOCK:
            # Told to wait before, or the first to ask.
            assert not self.waiting or claim == self.waiting[0]
            self.forget(claim)
        else:
            assert self.now >= self.no_lease_before - SLACK_S
        self.holder, self.since = claim, self.now

    def ended(self, ended: Ended) -> None:
        assert ended.claim == self.holder
        assert (ended.since, ended.until) == (self.since, self.now)
        lasted_s = ended.until - ended.since
        self.nobody_before = self.now + min(max(lasted_s, SHORTEST_REST_S), LONGEST_REST_S)
        if ended.claim.kind is Kind.LEASE:
            assert lasted_s <= LEASE_S + SLACK_S
            self.no_lease_before = self.now + lasted_s
        self.holder = None

    def forget(self, claim: Claim) -> None:
        self.waiting = [each for each in self.waiting if each != claim]

    # -- what may happen ---------------------------------------------------------------------------------------------

    @rule(claim=claims)
    def ask(self, claim: Claim) -> None:
        """A node asks, or renews."""
        self.do(self.halts.ask(claim, LOCK_LIMIT_S, self.now))

    @rule(claim=claims)
    def give_back(self, claim: Claim) -> None:
        """A node gives back what it may or may not have."""
        self.forget(claim)
        self.do(self.halts.give_back(claim, self.now))

    @precondition(lambda self: self.holder is not None)
    @rule()
    def holder_gives_back(self) -> None:
        """The ordinary end."""
        assert self.holder is not None
        self.do(self.halts.give_back(self.holder, self.now))

    @rule(node=st.sampled_from(("b", "c")))
    def transaction_begins(self, node: str) -> None:
        """It is given to the applier, if it is admitted."""
        self.is_committing = self.is_committing or self.halts.admits(node, 0) is Admission.YES

    @rule()
    def transaction_ends(self) -> None:
        """However."""
        self.is_committing = False
        if self.settling is not None:
            number, self.settling = self.settling, None
            self.do(self.halts.held(number, self.now))

    @rule(node=nodes)
    def commit(self, node: str) -> None:
        """A transaction that is admitted is committed."""
        admission = self.halts.admits(node, 0)
        if self.holder is not None:
            assert (admission is Admission.YES) == (node == self.holder.node)
        self.do(self.halts.committed(node, self.now))

    @rule(node=nodes, what=st.sampled_from(("node", "node", "applier", "hold", "drop")))
    def disturb(self, node: str, what: str) -> None:
        """A connection is lost, the applier loses a lock, or dies with all and its answers, or the database is gone."""
        if what == "node":
            self.waiting = [each for each in self.waiting if each.node != node]
            self.do(self.halts.gone(node, self.now))
        elif what == "applier":
            self.asked, self.has_lock, self.wanted, self.answers = None, False, False, []
            self.do(self.halts.applier_restarted(self.now))
        elif what == "hold":
            if self.has_lock:
                self.has_lock = False
                while self.answers:
                    self.answer_arrives()
                self.do(self.halts.hold_lost(self.number, "not kept", self.now))
        else:
            self.do(self.halts.end("dropped", self.now))
            assert not self.waiting
            assert self.holder is None

    @precondition(lambda self: self.asked is not None)
    @rule()
    def applier_takes_lock(self) -> None:
        """The answer is on its way; what it says may be outdated when it arrives."""
        assert self.asked is not None
        self.has_lock = True
        self.number = self.asked
        self.answers.append(self.asked)
        self.asked = None

    @precondition(lambda self: bool(self.answers))
    @rule()
    def answer_arrives(self) -> None:
        """The applier has said that it has the lock."""
        self.do(self.halts.held(self.answers.pop(0), self.now))

    @precondition(lambda self: self.asked is not None)
    @rule(waited=st.booleans())
    def applier_gives_up(self, waited: bool) -> None:
        """An application keeps the lock, or there is no such file; what it had for the Hold before is given back."""
        assert self.asked is not None
        if waited:
            self.pass_time(HOLD_LIMIT_S)
        if self.asked is not None:
            number, self.asked, self.wanted, self.has_lock = self.asked, None, False, False
            self.do(self.halts.hold_refused(number, "kept", self.now))

    @rule()
    def applier_answers(self) -> None:
        """All that it is asked, at once."""
        if self.asked is not None:
            self.applier_takes_lock()
        while self.answers:
            self.answer_arrives()
        if not self.is_committing:
            self.transaction_ends()

    @rule(seconds=st.sampled_from((0.001, 0.01, 0.05, 0.3, 1.0, 4.0, 11.0)))
    def pass_time(self, seconds: float) -> None:
        """The clock is looked at exactly when Halts wants it to be."""
        until = self.now + seconds
        while (at := self.halts.next_at()) <= until:
            self.now = max(at, self.now)
            actions = self.halts.tick(self.now)
            # Or whoever runs it would turn for ever.
            assert actions or self.halts.next_at() > self.now
            self.do(actions)
        self.now = until

    # -- what holds always -------------------------------------------------------------------------------------------

    @invariant()
    def the_holder_is_who_was_told_so(self) -> None:
        """One at most, and nobody who was not told."""
        holder = self.halts.holder
        assert (holder.claim if holder is not None else None) == self.holder
        assert holder is None or holder.until > self.now - SLACK_S

    @invariant()
    def sqlite_s_lock_is_held_for_whoever_holds_the_database(self) -> None:
        """Nobody of the primary's own applications writes meanwhile."""
        assert self.has_lock or self.holder is None or self.holder.node == HERE

    @invariant()
    def sqlite_s_lock_is_asked_for_only_while_somebody_is_to_have_it(self) -> None:
        """The primary's own applications are not kept away for nothing."""
        away = self.halts.admits("stranger", 0) is Admission.LATER
        is_here = self.settling is not None if self.holder is None else self.holder.node == HERE
        assert self.wanted == (away and not is_here)

    @invariant()
    def something_will_happen_while_anybody_waits(self) -> None:
        """A clock is set, always."""
        assert not self.halts.waiting or self.halts.next_at() < self.now + LOCK_LIMIT_S + SLACK_S

    def teardown(self) -> None:
        """Whoever goes on asking gets it, though nobody gives anything back and holders have stopped renewing."""
        waiting = list(self.waiting)
        deadline = self.now + len(waiting) * (LOCK_LIMIT_S + 4 * HOLD_LIMIT_S + 1.0) + LOCK_LIMIT_S + LEASE_S + 1.0
        had: list[Claim] = []
        self.is_committing = False
        while len(had) < len(waiting):
            assert self.now < deadline, (waiting, had)
            self.applier_answers()
            if self.holder in waiting and self.holder not in had:
                had.append(self.holder)
            for claim in [claim for claim in waiting if claim not in had]:
                self.ask(claim)
            self.pass_time(RENEW_EVERY_S / 10)
        assert had == waiting


Locking.TestCase.settings = settings(
    max_examples=int(os.environ.get("LITEREPLICA_EXAMPLES", "150")), stateful_step_count=60, deadline=None
)
TestLocking = Locking.TestCase
