"""Locks and leases on one database, one step at a time."""

import pytest

from litereplica.cluster.halts import (
    ANSWER_LIMIT_S,
    GIVEN_BACK_LIMIT,
    HOLD_LIMIT_S,
    LEASES_WAITED,
    LINGER_S,
    LOCK_LIMIT_S,
    LONGEST_REST_S,
    NEVER,
    SHORTEST_REST_S,
    WISHES_LIMIT,
    Action,
    Admission,
    Claim,
    Denied,
    Ended,
    Granted,
    Halts,
    Hold,
    Lost,
    Settle,
    Unhold,
    Waiting,
)

LEASE_S = 1.0
B, C, HERE = Claim("b", 1), Claim("c", 2), Claim("a", 3)
B_LEASE, C_LEASE = Claim("b", 0), Claim("c", 0)


@pytest.fixture
def halts() -> Halts:
    return Halts("a", LEASE_S)


def ask(halts: Halts, claim: Claim, now: float) -> list[Action]:
    return halts.ask(claim, LOCK_LIMIT_S, now)


def locked(halts: Halts, claim: Claim, now: float = 0.0) -> None:
    """The claim is the holder from ``now`` on."""
    (hold,) = (action for action in ask(halts, claim, now) if isinstance(action, Hold | Settle))
    assert any(isinstance(action, Granted) for action in halts.held(hold.number, now))


def test_a_lock_is_granted_when_the_applier_has_sqlite_s_lock(halts: Halts) -> None:
    assert ask(halts, B, 0.0) == [Hold(1), Waiting(B)]
    assert halts.holder is None
    assert halts.held(1, 0.5) == [Granted(B, LOCK_LIMIT_S)]
    assert halts.holder is not None
    assert (halts.holder.claim, halts.holder.until) == (B, 0.5 + LOCK_LIMIT_S)


def test_a_lock_of_the_primary_s_own_application_needs_no_lock_of_sqlite(halts: Halts) -> None:
    assert ask(halts, HERE, 0.0) == [Settle(1), Waiting(HERE)]
    assert halts.held(1, 0.0) == [Granted(HERE, LOCK_LIMIT_S)]
    assert halts.give_back(HERE, 3.0) == [Ended(HERE, 0.0, 3.0)]


def test_a_lock_of_the_primary_s_own_application_waits_for_what_is_being_committed_for_others(halts: Halts) -> None:
    assert ask(halts, HERE, 0.0) == [Settle(1), Waiting(HERE)]
    assert halts.admits("b", 0) is Admission.LATER
    assert halts.holder is None
    assert halts.applier_restarted(1.0) == [Settle(2)]
    assert halts.held(1, 1.1) == []
    assert halts.tick(1.0 + ANSWER_LIMIT_S) == [Settle(3)]
    assert halts.give_back(HERE, 6.0) == []
    assert halts.held(3, 6.1) == []
    assert halts.idle


def test_locks_are_had_in_the_order_in_which_they_were_asked_for(halts: Halts) -> None:
    locked(halts, B)
    assert ask(halts, C, 0.1) == [Waiting(C)]
    assert ask(halts, HERE, 0.2) == [Waiting(HERE)]
    assert halts.give_back(B, 1.0) == [Unhold(), Ended(B, 0.0, 1.0)]
    assert halts.tick(1.0 + LONGEST_REST_S) == [Hold(2)]
    assert halts.held(2, 1.2) == [Granted(C, LOCK_LIMIT_S)]
    assert halts.give_back(C, 1.2) == [Unhold(), Ended(C, 1.2, 1.2)]
    assert halts.tick(1.2 + SHORTEST_REST_S) == [Settle(3)]
    assert halts.held(3, 1.3) == [Granted(HERE, LOCK_LIMIT_S)]


def test_a_renewal_keeps_a_lock_and_a_place_in_the_queue(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C, 0.0)
    for second in range(3, 60, 3):
        assert ask(halts, B, second) == [Granted(B, LOCK_LIMIT_S)]
        assert ask(halts, C, second) == [Waiting(C)]
    assert halts.waiting == 1


def test_a_lock_that_is_not_renewed_is_lost_and_the_next_one_gets_it(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C, 9.0)
    assert halts.next_at() == LOCK_LIMIT_S
    lost, *_ = [action for action in halts.tick(LOCK_LIMIT_S) if isinstance(action, Lost)]
    assert (lost.claim, lost.held, lost.reason) == (B, True, "it was not renewed for 10 s")
    assert halts.tick(LOCK_LIMIT_S + LONGEST_REST_S) == [Hold(2)]


def test_a_late_renewal_of_a_lost_lock_does_not_bring_it_back(halts: Halts) -> None:
    locked(halts, B)
    halts.tick(LOCK_LIMIT_S)
    assert ask(halts, B, 11.0) == [Lost(B, "it was not renewed for 10 s")]
    assert halts.admits("b", B.token) is Admission.LOST
    halts.give_back(B, 12.0)
    assert halts.idle


def test_a_lock_that_nobody_asks_for_any_more_is_not_waited_for(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C, 1.0)
    ask(halts, B, 8.0)
    assert halts.tick(11.0) == [Lost(C, "nobody asked for it any more", held=False)]
    assert halts.waiting == 0


def test_a_wish_given_up_while_sqlite_s_lock_is_being_taken_is_told_the_applier(halts: Halts) -> None:
    ask(halts, B, 0.0)
    ask(halts, C, 0.0)
    assert halts.give_back(B, 0.1) == [Unhold(), Hold(2)]
    assert halts.held(1, 0.2) == []
    assert halts.holder is None
    assert halts.held(2, 0.3) == [Granted(C, LOCK_LIMIT_S)]


def test_an_application_that_keeps_sqlite_s_lock_is_waited_for(halts: Halts) -> None:
    ask(halts, B, 0.0)
    assert halts.hold_refused(1, "process 7 (python3)", HOLD_LIMIT_S) == [Hold(2)]
    assert halts.hold_refused(1, "process 7 (python3)", HOLD_LIMIT_S) == []
    assert halts.held(2, 2.5) == [Granted(B, LOCK_LIMIT_S)]


def test_a_lock_that_cannot_be_had_at_all_is_denied_and_the_next_one_tried(halts: Halts) -> None:
    ask(halts, B, 0.0)
    ask(halts, C, 0.0)
    assert halts.hold_refused(1, "no such file", 0.01) == [Denied(B, "no such file"), Hold(2)]


def test_an_applier_that_does_not_answer_is_asked_again(halts: Halts) -> None:
    ask(halts, B, 0.0)
    assert halts.next_at() == 2 * HOLD_LIMIT_S
    assert halts.tick(2 * HOLD_LIMIT_S) == [Hold(2)]


def test_a_lock_is_lost_with_the_applier_that_held_it_and_asked_for_again_while_it_was_taken(halts: Halts) -> None:
    ask(halts, B, 0.0)
    assert halts.applier_restarted(0.5) == [Hold(2)]
    halts.held(2, 0.6)
    lost = [action for action in halts.applier_restarted(1.0) if isinstance(action, Lost)]
    assert [each.claim for each in lost] == [B]
    locked(halts, C, 2.0)


def test_a_lock_that_the_applier_could_not_keep_is_lost_and_no_later_one_is(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C, 0.5)
    assert halts.hold_lost(1, "no room", 1.0) == [Unhold(), Ended(B, 0.0, 1.0, "no room"), Lost(B, "no room")]
    assert halts.admits("b", B.token) is Admission.LOST
    assert ask(halts, B, 1.01) == [Lost(B, "no room")]
    assert halts.tick(2.0) == [Hold(2)]
    # Of one that was given back, or asked for anew, when its loss was on its way.
    assert halts.hold_lost(1, "no room", 2.1) == []
    halts.held(2, 2.2)
    assert halts.hold_lost(1, "no room", 2.3) == []
    halts.give_back(C, 3.0)
    assert halts.hold_lost(2, "no room", 3.1) == []


def test_a_lease_that_the_applier_could_not_keep_is_lost(halts: Halts) -> None:
    locked(halts, B_LEASE)
    assert halts.hold_lost(1, "no room", 0.1)[-1] == Lost(B_LEASE, "no room")
    assert halts.admits("c", 0) is Admission.YES


def test_a_lock_of_the_primary_s_own_application_has_nothing_that_the_applier_could_lose(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, HERE, 0.5)
    halts.give_back(B, 1.0)
    assert halts.tick(2.0) == [Settle(2)]
    assert halts.hold_lost(1, "no room", 2.1) == []
    assert halts.held(2, 2.2) == [Granted(HERE, LOCK_LIMIT_S)]
    assert halts.hold_lost(2, "no room", 2.3) == []


def test_a_lock_of_the_primary_s_own_application_outlives_an_applier(halts: Halts) -> None:
    locked(halts, HERE)
    assert halts.applier_restarted(1.0) == []
    assert halts.holder is not None


def test_the_end_of_a_connection_ends_what_its_node_had_and_wanted(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C, 0.1)
    ask(halts, Claim("b", 9), 0.2)
    assert halts.gone("b", 1.0) == [Unhold(), Ended(B, 0.0, 1.0)]
    assert halts.waiting == 1
    assert halts.tick(2.0) == [Hold(2)]


def test_a_node_that_is_gone_and_back_may_use_its_old_tokens(halts: Halts) -> None:
    locked(halts, B)
    halts.tick(LOCK_LIMIT_S)
    halts.gone("b", 11.0)
    assert ask(halts, B, 12.0) == [Hold(2), Waiting(B)]


def test_a_drop_or_another_primary_ends_everything(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C, 0.0)
    ask(halts, HERE, 0.0)
    assert halts.end("dropped", 1.0) == [
        Lost(HERE, "dropped", held=False),
        Lost(C, "dropped", held=False),
        Unhold(),
        Ended(B, 0.0, 1.0, "dropped"),
        Lost(B, "dropped", held=True),
    ]
    assert halts.next_at() == NEVER


def test_more_than_some_wishes_are_denied(halts: Halts) -> None:
    locked(halts, HERE)
    for token in range(1, WISHES_LIMIT + 1):
        assert halts.ask(Claim("b", token), LOCK_LIMIT_S, 0.0) == [Waiting(Claim("b", token))]
    (denied,) = halts.ask(C, LOCK_LIMIT_S, 0.0)
    assert isinstance(denied, Denied)


# -- leases --------------------------------------------------------------------------------------------------------


def test_a_lease_lasts_no_longer_than_it_may_however_often_it_is_asked_for(halts: Halts) -> None:
    locked(halts, B_LEASE)
    assert ask(halts, B_LEASE, 0.4) == [Granted(B_LEASE, LEASE_S - 0.4)]
    assert halts.tick(LEASE_S) == [Unhold(), Ended(B_LEASE, 0.0, LEASE_S)]


def test_a_lease_ends_soon_after_its_node_has_committed(halts: Halts) -> None:
    locked(halts, B_LEASE)
    assert halts.committed("c", 0.1) == []
    assert halts.next_at() == LEASE_S
    halts.committed("b", 0.2)
    assert halts.next_at() == pytest.approx(0.2 + LINGER_S)
    halts.committed("b", 0.24)
    assert halts.next_at() == pytest.approx(0.24 + LINGER_S)


def test_commits_in_a_row_do_not_make_a_lease_longer(halts: Halts) -> None:
    locked(halts, B_LEASE)
    now = 0.0
    while halts.holder is not None:
        now += LINGER_S / 2
        halts.committed("b", now)
    assert now == pytest.approx(LEASE_S, abs=LINGER_S)


@pytest.mark.parametrize("claim", [B_LEASE, C_LEASE])
def test_after_a_lease_no_node_gets_one_for_as_long_as_it_lasted(halts: Halts, claim: Claim) -> None:
    locked(halts, B_LEASE)
    halts.committed("b", 0.4)
    halts.tick(0.45)
    assert ask(halts, claim, 0.5) == [Waiting(claim)]
    assert halts.next_at() == pytest.approx(0.9)
    assert halts.tick(0.89) == []
    assert halts.tick(0.9) == [Hold(2)]


def test_a_lock_does_not_wait_for_the_rest_after_a_lease_but_for_a_moment(halts: Halts) -> None:
    locked(halts, B_LEASE)
    halts.tick(LEASE_S)
    ask(halts, C_LEASE, LEASE_S)
    ask(halts, C, LEASE_S)
    assert halts.tick(LEASE_S + LONGEST_REST_S) == [Hold(2)]
    assert halts.held(2, 1.2) == [Granted(C, LOCK_LIMIT_S)]


def test_a_lease_is_not_wanted_any_more_when_its_transaction_is_long_over(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C_LEASE, 0.0)
    assert halts.wants(C_LEASE)
    halts.tick(LEASES_WAITED * LEASE_S)
    assert not halts.wants(C_LEASE)


def test_whoever_has_the_lock_needs_no_lease(halts: Halts) -> None:
    locked(halts, B)
    assert ask(halts, B_LEASE, 1.0) == [Granted(B_LEASE, LOCK_LIMIT_S - 1.0)]
    assert halts.waiting == 0


# -- transactions --------------------------------------------------------------------------------------------------


def test_without_a_lock_everybody_is_admitted_but_who_believes_to_have_one(halts: Halts) -> None:
    assert halts.admits("b", 0) is Admission.YES
    assert halts.admits("b", 1) is Admission.LOST


def test_who_has_given_its_lock_back_is_anybody(halts: Halts) -> None:
    """Another application of its node has sent a transaction before, and it knew nothing of the lock."""
    locked(halts, B)
    halts.give_back(B, 0.5)
    assert halts.admits("b", B.token) is Admission.YES
    assert halts.admits("c", B.token) is Admission.LOST
    locked(halts, C, 1.0)
    assert halts.admits("b", B.token) is Admission.LATER


def test_who_has_given_back_what_was_lost_or_never_had_is_not(halts: Halts) -> None:
    locked(halts, B)
    halts.tick(LOCK_LIMIT_S)
    halts.give_back(B, 11.0)
    halts.give_back(C, 11.0)
    assert halts.admits("b", B.token) is halts.admits("c", C.token) is Admission.LOST
    locked(halts, C, 12.0)
    halts.give_back(C, 13.0)
    locked(halts, C, 14.0)
    halts.tick(14.0 + LOCK_LIMIT_S)
    assert halts.admits("c", C.token) is Admission.LOST


def test_of_the_locks_that_were_given_back_only_the_newest_are_remembered(halts: Halts) -> None:
    for token in range(1, GIVEN_BACK_LIMIT + 2):
        locked(halts, Claim("b", token), token)
        halts.give_back(Claim("b", token), token)
    assert halts.admits("b", 1) is Admission.LOST
    assert halts.admits("b", 2) is halts.admits("b", GIVEN_BACK_LIMIT + 1) is Admission.YES


def test_under_a_lock_only_its_node_is_admitted(halts: Halts) -> None:
    locked(halts, B)
    assert halts.admits("b", 1) is Admission.YES
    assert halts.admits("b", 0) is Admission.YES
    assert halts.admits("b", 2) is Admission.LOST
    assert halts.admits("c", 0) is Admission.LATER
    assert halts.admits("c", 2) is Admission.LOST


def test_while_the_applier_takes_sqlite_s_lock_others_wait(halts: Halts) -> None:
    ask(halts, B, 0.0)
    assert halts.admits("b", 0) is Admission.YES
    assert halts.admits("c", 0) is Admission.LATER


def test_between_two_locks_everybody_has_a_moment(halts: Halts) -> None:
    locked(halts, B)
    ask(halts, C, 0.0)
    halts.give_back(B, 0.0)
    assert halts.admits("d", 0) is Admission.YES
    assert halts.rests(0.0)
    assert not halts.rests(LONGEST_REST_S)
