from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import sets as checker
from jepsen.checkers.result import Result
from jepsen.history import Call, Malformed
from tests.jepsen import oracle
from tests.jepsen.making import Making
from tests.jepsen.simulated import Simulation


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


def test_everything_that_was_added_is_there() -> None:
    making = Making()
    making.did(0, "add", 1)
    making.did(0, "read", None, [1])
    making.did(1, "add", 2)
    making.did(0, "read", None, [2, 1])
    result = checker.check(making.calls())
    assert (result.valid, result.counts["acknowledged"], result.counts["reads"]) == (True, 2, 2)
    assert (result.counts["recovered"], result.counts["never-read"]) == (0, 0)


def test_an_acknowledged_element_that_no_later_read_shows_is_lost() -> None:
    making = Making()
    making.did(0, "add", 1)
    making.did(0, "add", 2)
    making.did(0, "read", None, [2])
    result = checker.check(making.calls())
    assert kinds(result) == {"lost"}
    assert result.anomalies[0].text == "1 was acknowledged to T0, and T4 and every later read is without it"


def test_an_element_that_was_seen_and_is_gone_is_lost_whatever_its_add_answered() -> None:
    making = Making()
    making.did(0, "add", 1, type_="info")
    making.did(1, "read", None, [1])
    making.did(1, "read", None, [])
    assert kinds(checker.check(making.calls())) == {"lost"}


def test_an_element_that_is_away_for_a_while_is_stale_unless_reads_may_be_old() -> None:
    making = Making()
    making.did(0, "add", 1)
    making.did(0, "read", None, [])
    making.did(0, "read", None, [1])
    assert kinds(checker.check(making.calls())) == {"stale"}
    result = checker.check(making.calls(), stale_reads=True)
    assert (result.valid, result.counts["old-reads"]) == (True, 1)


def test_elements_that_cannot_be_there_are_unexpected() -> None:
    making = Making()
    making.did(0, "add", 1, type_="fail")
    making.did(0, "read", None, [1, 2, 3])
    making.did(0, "add", 3)
    result = checker.check(making.calls())
    assert kinds(result) == {"unexpected"}
    assert result.counts["unexpected"] == 3


def test_an_element_twice_in_a_read() -> None:
    making = Making()
    making.did(0, "add", 1)
    making.did(0, "read", None, [1, 1])
    assert kinds(checker.check(making.calls())) == {"duplicate"}


def test_two_reads_that_no_order_explains() -> None:
    making = Making()
    making.begin(0, "add", 1)
    making.begin(1, "add", 2)
    making.begin(2, "read")
    making.begin(3, "read")
    making.end(2, "ok", [1])
    making.end(3, "ok", [2])
    result = checker.check(making.calls(), stale_reads=True)
    assert kinds(result) == {"incomparable"}


def test_an_old_read_shows_a_state_that_was() -> None:
    making = Making()
    making.did(0, "add", 1)
    making.did(0, "add", 2)
    making.did(0, "add", 3)
    making.did(1, "read", None, [2])
    making.did(1, "read", None, [2, 3])
    making.did(1, "read", None, [1, 2, 3])
    result = checker.check(making.calls(), stale_reads=True)
    assert kinds(result) == {"without-earlier"}
    assert result.counts["without-earlier"] == 1
    assert "T6 read 2 without 1, which was there before T2 began to add it" in result.anomalies[0].text


def test_an_add_without_an_answer_may_be_there_or_not() -> None:
    making = Making()
    making.did(0, "add", 1, type_="info")
    making.did(1, "add", 2, type_="info")
    making.did(2, "read", None, [1])
    result = checker.check(making.calls())
    assert (result.valid, result.counts["recovered"]) == (True, 1)


def test_an_element_that_nobody_read_is_not_known_to_be_there() -> None:
    making = Making()
    making.did(0, "read", None, [])
    making.did(0, "add", 1)
    result = checker.check(making.calls())
    assert (result.valid, result.counts["never-read"]) == ("unknown", 1)
    assert checker.check(()).valid == "unknown"


def test_what_was_kept_aside_may_vanish() -> None:
    making = Making()
    lost = making.did(0, "add", 1)
    making.did(0, "read", None, [1])
    making.did(0, "add", 2)
    making.did(0, "read", None, [2])
    assert checker.check(making.calls()).valid is False
    result = checker.check(making.calls(), lost=[lost])
    assert (result.valid, result.counts["lost-and-listed"]) == (True, 1)


@pytest.mark.parametrize(("f", "value"), [("add", [1]), ("read", 5), ("read", [[1]])])
def test_what_is_no_set_is_an_error(f: str, value: object) -> None:
    making = Making()
    making.did(0, f, value)
    with pytest.raises(Malformed, match="operation"):
        checker.check(making.calls())


def test_an_element_that_is_added_twice_is_an_error() -> None:
    making = Making()
    making.did(0, "add", 1)
    making.did(0, "add", 1)
    with pytest.raises(Malformed, match="added before"):
        checker.check(making.calls())


@st.composite
def tiny_histories(draw: st.DrawFn) -> tuple[Call, ...]:
    making = Making()
    waiting = list(range(draw(st.integers(1, 6))))
    open_: list[int] = []
    adds: list[int] = []
    while waiting or open_:
        if waiting and (not open_ or draw(st.booleans())):
            process = waiting.pop(0)
            if draw(st.booleans()):
                making.begin(process, "add", process)
                adds.append(process)
            else:
                making.begin(process, "read")
            open_.append(process)
        else:
            process = open_.pop(draw(st.integers(0, len(open_) - 1)))
            if process in adds:
                making.end(process, draw(st.sampled_from(["ok", "ok", "info", "fail"])))
            else:
                making.end(process, "ok", draw(st.lists(st.sampled_from(adds), unique=True)) if adds else [])
    return making.calls()


@settings(max_examples=400, deadline=None)
@given(tiny_histories())
def test_the_checker_and_trying_every_order_agree(history: tuple[Call, ...]) -> None:
    result = checker.check(history)
    possible = oracle.some_order(history, frozenset(), oracle.growing_set, realtime=True)
    assert (result.valid is not False) == possible, result


def simulated(seed: int) -> Making:
    simulation = Simulation(seed)
    numbers = simulation.numbers
    state: list[int] = []
    added: list[int] = []

    def ask() -> tuple[str, Any]:
        if numbers.random() < 0.3:
            return "read", None
        added.append(len(added))
        return "add", added[-1]

    def happen(f: str, value: Any) -> Any:
        if f == "read":
            return list(state)
        state.append(value)
        return value

    making = simulation.run(300, ask, happen)
    making.did(1000, "read", None, list(state))
    return making


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**16))
def test_a_correct_set_is_valid_and_an_element_taken_out_of_it_is_found(seed: int, which: int) -> None:
    making = simulated(seed)
    assert checker.check(making.calls()).valid is not False
    last = making.calls()[-1]
    acknowledged = [call.value for call in making.calls() if call.f == "add" and call.ok]
    if acknowledged:
        last.value.remove(acknowledged[which % len(acknowledged)])  # type: ignore[attr-defined]
        assert "lost" in kinds(checker.check(making.calls()))
