import itertools
from dataclasses import replace

import pytest

from litereplica.cluster.election import (
    ELECTION_WAIT_S,
    RANK_STEP_S,
    Sight,
    choose_target,
    judge,
    may_take_over,
    rank,
    wait_s,
)
from litereplica.cluster.lease import Endpoint, Holding, Member, Reign, Standing, View, has_had_transactions
from litereplica.node.keeper_eligible import Eligibility


def endpoint(name: str, start: int = 1) -> Endpoint:
    return Endpoint(name, f"{name}-{start}", f"http://{name}", f"{name}:1")


def member(
    name: str,
    epoch: int = 1,
    total: int = 10,
    *,
    priority: int = 0,
    candidate: bool = True,
    whole: bool = True,
    parted: bool = False,
    emptied: bool = False,
    vacancy: int = 7,
) -> Member:
    return Member(endpoint(name), Standing(epoch, total, whole, parted, emptied), candidate, priority, vacancy)


ME = endpoint("a")


def held(holder: Endpoint, *, offered_to: str = "", counts_on: tuple[str, ...] = ()) -> View:
    return View(Holding(holder, 3, 5, 5.0, 7, offered_to, counts_on), 7)


@pytest.mark.parametrize(
    ("view", "unchanged_s", "sight"),
    [
        (View(None, 7), 0.0, Sight.VACANT),
        (held(endpoint("b")), 0.0, Sight.HELD),
        (held(endpoint("b")), 4.999, Sight.HELD),
        (held(endpoint("b")), 5.0, Sight.LAPSED),
        (held(endpoint("b"), offered_to="a"), 0.0, Sight.OFFERED),
        (held(endpoint("b"), offered_to="c"), 0.0, Sight.HELD),
        (held(endpoint("b"), offered_to="c"), 5.0, Sight.LAPSED),
        (held(ME), 0.0, Sight.OURS),
        (held(endpoint("a", start=2)), 0.0, Sight.HELD),
        (replace(held(endpoint("b"), offered_to="a"), gone=True), 4.999, Sight.HELD),
        (replace(held(endpoint("b"), offered_to="a"), gone=True), 5.0, Sight.LAPSED),
        (replace(held(ME), gone=True), 4.999, Sight.HELD),
        (replace(held(ME), gone=True), 5.0, Sight.LAPSED),
    ],
)
def test_what_a_lease_looks_like(view: View, unchanged_s: float, sight: Sight) -> None:
    assert judge(view, ME, unchanged_s) is sight


def test_a_lease_whose_holder_counts_on_others_is_not_taken_over_by_a_stranger() -> None:
    view = held(endpoint("b"), counts_on=("a", "b"))
    assert may_take_over(view, "a")
    assert not may_take_over(view, "c")
    assert may_take_over(held(endpoint("b")), "c")


def test_the_newest_epoch_counts_first_then_transactions_then_priority_then_the_name() -> None:
    ordered = [
        member("z", epoch=3, total=1),
        member("y", epoch=2, total=20),
        member("x", epoch=2, total=19, priority=5),
        member("w", epoch=2, total=19, priority=4),
        member("a", epoch=2, total=19),
        member("b", epoch=2, total=19),
    ]
    for permutation in itertools.permutations(ordered):
        assert sorted(permutation, key=rank) == ordered


def test_the_best_goes_at_once_when_everybody_has_said_how_far_it_is() -> None:
    me = member("a", total=11)
    assert wait_s(me, [me, member("b"), member("c")], "", 0.0) == 0.0


def test_a_single_candidate_waits_for_nobody() -> None:
    me = member("a")
    assert wait_s(me, [me], "", 0.0) == 0.0
    assert wait_s(me, [], "", 0.0) == 0.0


def test_the_best_so_far_waits_for_those_who_have_not_spoken_but_not_for_ever() -> None:
    me, silent = member("a", total=11), member("b", vacancy=0)
    assert wait_s(me, [me, silent], "", 0.1) == pytest.approx(ELECTION_WAIT_S - 0.1)
    assert wait_s(me, [me, silent], "", ELECTION_WAIT_S) == 0.0


def test_what_was_said_for_an_earlier_election_does_not_count() -> None:
    me = member("a", total=1)
    assert wait_s(me, [me, member("b", vacancy=6)], "", 0.0) == pytest.approx(ELECTION_WAIT_S)


@pytest.mark.parametrize("other", [{"candidate": False}, {"whole": False}, {"parted": True}, {"emptied": True}])
def test_who_may_not_lead_is_not_waited_for_whatever_it_has(other: dict[str, bool]) -> None:
    me = member("a")
    assert wait_s(me, [me, member("b", epoch=9, vacancy=0, **other)], "", 0.0) == 0.0


def test_a_node_with_lost_history_is_no_candidate_unless_a_person_says_so() -> None:
    def why_not(**standing: bool) -> tuple[str, str]:
        eligible = Eligibility(lambda: 0.0, lambda: member("a", **standing))
        return eligible.why_not(), eligible.why_not(forced=True)

    assert why_not() == ("", "")
    without, forced = why_not(parted=True)
    assert "failover --force" in without
    assert not forced
    assert all("damaged" in each for each in why_not(parted=True, whole=False))


def test_a_node_that_was_emptied_is_no_candidate_unless_a_person_says_so() -> None:
    eligible = Eligibility(lambda: 0.0, lambda: member("a", 0, 0, emptied=True))
    assert "start the nodes that have them" in eligible.why_not()
    assert "failover --force" in eligible.why_not()
    assert not eligible.why_not(forced=True)


def test_the_last_primary_says_whether_the_cluster_has_had_transactions() -> None:
    def reign(epoch: int, *databases: str) -> Reign:
        return Reign(epoch, "a", 0, "", dict.fromkeys(databases, f"{1:016x}/{1:016x}"))

    assert not has_had_transactions(())
    assert not has_had_transactions((reign(1),))
    assert has_had_transactions((reign(1), reign(3, "app.db")))
    assert not has_had_transactions((reign(1, "app.db"), reign(3)))


def test_the_last_holder_is_not_waited_for_but_counts_if_it_speaks() -> None:
    me = member("a")
    assert wait_s(me, [me, member("b", vacancy=0)], "b-1", 0.0) == 0.0
    assert wait_s(me, [me, member("b", total=11)], "b-1", 0.0) > 0.0


def test_a_holder_that_has_started_again_is_waited_for() -> None:
    me = member("a")
    assert wait_s(me, [me, member("b", vacancy=0)], "b-0", 0.0) == pytest.approx(ELECTION_WAIT_S)


def test_the_others_try_one_after_the_other_when_those_before_them_did_not() -> None:
    everybody = [member("a", total=12), member("b", total=11), member("c", total=10)]
    waits = [wait_s(me, everybody, "", 0.0) for me in everybody]
    assert waits == pytest.approx([0.0, ELECTION_WAIT_S + RANK_STEP_S, ELECTION_WAIT_S + 2 * RANK_STEP_S])
    assert wait_s(everybody[2], everybody, "", waits[2]) == 0.0


MEMBERS = [
    member("a"),
    member("b", total=9),
    member("c", total=8),
    member("spectator", total=50, candidate=False),
    member("torn", total=50, whole=False),
    member("gone", total=50),
]
CONNECTED = ("b", "c", "spectator", "torn")


def test_the_most_advanced_connected_candidate_is_chosen() -> None:
    target = choose_target(MEMBERS, ME, CONNECTED, None)
    assert isinstance(target, Member)
    assert target.endpoint.node == "b"


def test_the_one_that_is_asked_for_is_chosen_if_it_may_be() -> None:
    target = choose_target(MEMBERS, ME, CONNECTED, "c")
    assert isinstance(target, Member)
    assert target.endpoint.node == "c"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("a", "a is the primary already"),
        ("x", "no node is called 'x'; known: b, c, gone, spectator, torn"),
        ("spectator", "spectator is not a candidate"),
        ("torn", "torn is in the middle of a snapshot"),
        ("gone", "gone is not connected to a"),
    ],
)
def test_why_a_node_may_not_be_handed_off_to(wanted: str, reason: str) -> None:
    refusal = choose_target(MEMBERS, ME, CONNECTED, wanted)
    assert isinstance(refusal, str)
    assert refusal.startswith(reason)


def test_nobody_to_hand_off_to() -> None:
    refusal = choose_target(MEMBERS, ME, ("spectator", "torn"), None)
    assert isinstance(refusal, str)
    assert "no candidate is connected to a" in refusal
