import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.availability import EVERYTHING, NOTHING, Availability, Share, availability, overlap_ns, without
from jepsen.periods import Period
from tests.jepsen.making import Making

S = 10**9


def share(found: Availability, name: str) -> Share:
    return next(each for each in found.shares if each.nemesis == name)


def busy(making: Making, until_s: float) -> None:
    """A writer that is answered all the time."""
    while making.now_ns < until_s * S:
        making.did(0, "add", 1)
        making.wait(0.1)


def test_a_writer_that_waits_for_its_answer_shows_a_gap() -> None:
    making = Making()
    busy(making, 10)
    making.begin(1, "add", 2)
    making.wait(4)
    making.end(1)
    busy(making, 20)
    found = availability(making.calls(), [Period("cut", 9 * S, 16 * S)])
    assert len(found.gaps) == 1
    assert found.gaps[0].nemeses == ("cut",)
    assert found.gaps[0].length_s == pytest.approx(4, abs=0.2)
    assert share(found, EVERYTHING).share == pytest.approx(0.8, abs=0.02)
    assert share(found, "cut").share == pytest.approx(3 / 7, abs=0.03)
    calm = share(found, NOTHING)
    assert calm.asked_s == pytest.approx(13, abs=0.2)
    assert (calm.share, calm.gaps, calm.longest_s) == (1.0, 0, 0.0)
    assert found.percentile_s(0.5) == found.percentile_s(0.99) == found.gaps[0].length_s


def test_refused_writers_show_a_gap_as_well() -> None:
    making = Making()
    busy(making, 5)
    while making.now_ns < 8 * S:
        making.did(1, "add", 2, type_="fail")
        making.wait(0.2)
    busy(making, 10)
    found = availability(making.calls(), [])
    assert [gap.nemeses for gap in found.gaps] == [()]
    assert found.gaps[0].length_s == pytest.approx(3, abs=0.3)


def test_time_in_which_nobody_asks_is_left_out() -> None:
    making = Making()
    busy(making, 5)
    making.wait(10)
    busy(making, 20)
    found = availability(making.calls(), [])
    assert found.gaps == ()
    assert share(found, EVERYTHING).asked_s == pytest.approx(10, abs=0.3)
    assert share(found, EVERYTHING).share == 1.0


def test_an_accident_of_one_moment_counts_for_some_time_after_it() -> None:
    making = Making()
    busy(making, 5)
    making.begin(1, "add", 2)
    making.wait(2)
    making.end(1)
    busy(making, 30)
    found = availability(making.calls(), [Period("kill", 5 * S, 5 * S + 1, lasting=False)])
    assert share(found, "kill").asked_s == pytest.approx(10, abs=0.2)
    assert share(found, "kill").gaps == 1
    assert found.gaps[0].nemeses == ("kill",)


def test_nothing_accepted_at_all() -> None:
    making = Making()
    making.begin(0, "add", 1)
    making.wait(5)
    making.end(0, "info")
    found = availability(making.calls(), [])
    assert share(found, EVERYTHING).share == 0.0
    assert len(found.gaps) == 1


def test_nobody_wrote() -> None:
    making = Making()
    making.did(0, "read")
    assert availability(making.calls(), []) == Availability((), ())
    assert availability((), []).percentile_s(0.99) == 0.0


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5)


@given(SPANS, SPANS)
def test_stretches_of_time_are_sets_of_instants(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    def disjoint(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for began, ended in sorted(spans):
            if began < ended and (not found or found[-1][1] < began):
                found.append((began, ended))
        return found

    def instants(spans: list[tuple[int, int]]) -> set[int]:
        return {at for began, ended in spans for at in range(began, ended)}

    first, second = disjoint(one), disjoint(two)
    assert instants(without(first, second)) == instants(first) - instants(second)
    assert overlap_ns(first, second) == len(instants(first) & instants(second))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_shares_are_shares_and_gaps_lie_between_answers(seed: int) -> None:
    numbers = random.Random(seed)
    making = Making()
    for _ in range(100):
        making.begin(0, "add", 1)
        making.wait(numbers.choice([0.01, 0.1, 1]))
        making.end(0, numbers.choice(["ok", "fail"]))
        making.wait(numbers.choice([0.01, 0.1, 1]))
    end_s = making.now_ns / 1e9
    under = [
        Period(name, round(numbers.uniform(0, end_s) * S), round(end_s * S), lasting=numbers.random() < 0.5)
        for name in "abc"
    ]
    found = availability(making.calls(), under)
    for each in found.shares:
        assert 0.0 <= each.share <= 1.0
        assert each.accepted_s <= each.asked_s
    answers = [call.completion.time_ns for call in making.calls() if call.ok and call.completion]
    for gap in found.gaps:
        assert not any(gap.began_ns < answer < gap.ended_ns for answer in answers)
