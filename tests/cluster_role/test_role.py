import pytest

from litereplica.cluster.role import (
    ENDED,
    HOLDING,
    IMMEDIATE,
    LEADING,
    RENEWING,
    TABLE,
    Action,
    Event,
    Kind,
    Rule,
    State,
    step,
)

PAIRS = sorted(TABLE.items(), key=lambda item: (item[0][0].value, item[0][1].value))
CHANGES = [
    (before, event, rule) for (before, event), rule in PAIRS if rule.kind is Kind.DONE and rule.next is not before
]


def test_every_state_has_a_rule_for_every_event() -> None:
    assert set(TABLE) == {(state, event) for state in State for event in Event}


def test_every_rule_says_why() -> None:
    assert all(rule.why for rule in TABLE.values())


def test_what_is_ignored_or_impossible_changes_nothing() -> None:
    for (state, event), rule in PAIRS:
        if rule.kind is not Kind.DONE:
            assert rule == Rule(state, (), rule.why, rule.kind), (state, event)


def test_an_impossible_event_is_an_error_that_says_what_and_why() -> None:
    with pytest.raises(AssertionError, match="granted in state primary: only an attempt is granted"):
        step(State.PRIMARY, Event.GRANTED)


def test_the_fence_opens_only_after_a_grant_or_a_renewal_and_in_a_state_that_holds_the_lease() -> None:
    opening = {(state, event, rule.next) for (state, event), rule in PAIRS if Action.OPEN_FENCE in rule.actions}
    assert {event for _, event, _ in opening} == {Event.GRANTED, Event.RENEWED, Event.RECLAIMED}
    assert {state for _, _, state in opening} <= RENEWING


def test_the_fence_is_closed_first_whenever_a_state_is_left_in_which_it_may_be_open() -> None:
    for before, event, rule in CHANGES:
        if before in RENEWING and rule.next not in RENEWING:
            assert rule.actions[0] is Action.CLOSE_FENCE, (before, event)


def test_an_offered_lease_opens_no_fence_before_it_is_renewed_without_the_offer() -> None:
    for before in (State.OFFERED, State.RECLAIMING):
        into = [rule.next for (state, _), rule in PAIRS if state is before and Action.OPEN_FENCE in rule.actions]
        assert into in ([], [State.PRIMARY])
    assert TABLE[State.OFFERED, Event.RENEWED].kind is Kind.IMPOSSIBLE


def test_whoever_stops_holding_the_lease_demotes_after_the_fence_is_closed() -> None:
    for before, event, rule in CHANGES:
        if before in HOLDING and rule.next not in HOLDING:
            assert rule.next in {State.DEMOTING, State.STOPPING}, (before, event)
            actions = rule.actions
            assert actions.index(Action.CLOSE_FENCE) < actions.index(Action.DEMOTE) < actions.index(Action.SETTLE)


def test_there_is_no_way_from_primary_to_replica_but_through_a_demotion() -> None:
    replica = {State.FOLLOWING, State.ELECTING, State.TAKING, State.STOPPED}
    for before, event, rule in CHANGES:
        if before not in replica and rule.next in replica:
            assert (before, event) in {(State.DEMOTING, Event.DEMOTED), (State.STOPPING, Event.DEMOTED)}


def test_a_demotion_is_not_disturbed() -> None:
    for before in (State.DEMOTING, State.STOPPING):
        assert {event for (state, event), rule in PAIRS if state is before and rule.kind is Kind.DONE} == {
            Event.DEMOTED
        }


def test_nothing_is_promoted_without_a_grant() -> None:
    promoting = [(state, event) for (state, event), rule in PAIRS if Action.PROMOTE in rule.actions]
    assert promoting == [(State.TAKING, Event.GRANTED)]
    assert {before for before, _, rule in CHANGES if rule.next is State.PROMOTING} == {State.TAKING}
    assert {before for before, _, rule in CHANGES if rule.next in LEADING and before not in LEADING} == {
        State.PROMOTING
    }


def test_writers_that_were_held_are_let_go_on_every_way_out() -> None:
    held = {State.HANDING_OFF, State.OFFERED, State.RECLAIMING}
    for before, event, rule in CHANGES:
        if before in held and rule.next not in held:
            assert Action.RESUME_WRITERS in rule.actions, (before, event)
            if Action.DEMOTE in rule.actions:  # not into a primary that is about to be none
                assert rule.actions.index(Action.DEMOTE) < rule.actions.index(Action.RESUME_WRITERS)


def test_a_step_to_primary_that_lets_writers_go_on_is_made_good_by_whatever_ends_it_early() -> None:
    for (state, event), rule in PAIRS:
        if state is State.PRIMARY and rule.next in {State.DEMOTING, State.STOPPING}:
            assert Action.RESUME_WRITERS in rule.actions, event


def test_a_lease_that_may_be_another_nodes_is_not_given_up() -> None:
    releasing = {event for (_, event), rule in PAIRS if Action.RELEASE in rule.actions}
    assert releasing == {Event.FAILED, Event.STOP, Event.UNFIT}


def test_who_stops_lets_replicas_catch_up_after_the_fence_is_closed_and_before_anybody_may_take_the_lease() -> None:
    stopping = [(state, rule.actions) for (state, event), rule in PAIRS if event is Event.STOP and state in HOLDING]
    assert {state for state, _ in stopping} == HOLDING
    for state, actions in stopping:
        order = [actions.index(each) for each in (Action.CLOSE_FENCE, Action.DRAIN, Action.RELEASE, Action.DEMOTE)]
        assert order == sorted(order), state


def test_immediate_actions_come_before_those_that_take_time() -> None:
    for pair, rule in PAIRS:
        lasting = [action not in IMMEDIATE for action in rule.actions]
        assert lasting == sorted(lasting), pair


def test_every_state_is_reached_and_every_state_but_the_last_is_left() -> None:
    reached, todo = {State.FOLLOWING}, [State.FOLLOWING]
    while todo:
        before = todo.pop()
        for (state, _), rule in PAIRS:
            if state is before and rule.next not in reached:
                reached.add(rule.next)
                todo.append(rule.next)
    assert reached == set(State)
    for state in set(State) - {State.STOPPED}:
        assert any(before is state for before, _, _ in CHANGES), state


def test_what_has_stopped_stays_so() -> None:
    for (state, event), rule in PAIRS:
        if state in ENDED:
            assert rule.next in ENDED, event


def test_every_state_that_renews_can_lose_the_lease_and_be_stopped() -> None:
    for state in RENEWING:
        for event in (Event.HELD, Event.LOST, Event.EXPIRED, Event.UNFIT, Event.STOP):
            assert TABLE[state, event].next in {State.DEMOTING, State.STOPPING}
