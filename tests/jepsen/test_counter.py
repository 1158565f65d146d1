from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import counter as checker
from jepsen.checkers.result import Result
from jepsen.history import Call, Malformed
from tests.jepsen import oracle
from tests.jepsen.making import Making
from tests.jepsen.simulated import Simulation


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


def test_a_read_lies_between_what_is_sure_and_what_is_possible() -> None:
    for value, expected in ((2, {"too-low"}), (3, set()), (4, set()), (10, set()), (11, {"too-high"})):
        making = Making()
        making.did(0, "add", 3)
        making.did(0, "add", 5, type_="info")
        making.did(1, "add", 50, type_="fail")
        making.begin(1, "read")
        making.begin(2, "add", 2)
        making.end(1, "ok", value)
        making.did(3, "add", 100)
        assert kinds(checker.check(making.calls())) == expected, value


def test_subtractions_widen_the_bounds_the_other_way() -> None:
    for value, expected in ((-6, {"too-low"}), (-5, set()), (-3, set()), (-2, {"too-high"})):
        making = Making()
        making.did(0, "add", -3)
        making.did(0, "add", -2, type_="info")
        making.did(1, "read", None, value)
        assert kinds(checker.check(making.calls())) == expected, value


def test_a_counter_that_only_rises_never_shows_less() -> None:
    making = Making()
    making.begin(9, "add", 5)
    making.did(1, "read", None, 5)
    making.did(2, "read", None, 0)
    assert kinds(checker.check(making.calls())) == {"went-back"}
    assert checker.check(making.calls(), stale_reads=True).valid is True


def test_what_was_kept_aside_may_be_missing() -> None:
    making = Making()
    lost = making.did(0, "add", 5)
    making.did(1, "read", None, 5)
    making.did(1, "read", None, 0)
    assert kinds(checker.check(making.calls())) == {"too-low", "went-back"}
    assert checker.check(making.calls(), lost=[lost]).valid is True


def test_without_a_read_nothing_is_known() -> None:
    assert checker.check(()).valid == "unknown"


@pytest.mark.parametrize(("f", "value"), [("add", None), ("add", 1.5), ("read", None), ("read", "1")])
def test_what_is_no_counter_is_an_error(f: str, value: object) -> None:
    making = Making()
    making.did(0, f, value)
    with pytest.raises(Malformed, match="whole number"):
        checker.check(making.calls())


@st.composite
def tiny_histories(draw: st.DrawFn) -> tuple[Call, ...]:
    making = Making()
    waiting = list(range(draw(st.integers(1, 6))))
    open_: list[int] = []
    asked: dict[int, str] = {}
    while waiting or open_:
        if waiting and (not open_ or draw(st.booleans())):
            process = waiting.pop(0)
            asked[process] = draw(st.sampled_from(["add", "read"]))
            making.begin(process, asked[process], draw(st.integers(-2, 3)) if asked[process] == "add" else None)
            open_.append(process)
        else:
            process = open_.pop(draw(st.integers(0, len(open_) - 1)))
            if asked[process] == "add":
                making.end(process, draw(st.sampled_from(["ok", "ok", "info", "fail"])))
            else:
                making.end(process, "ok", draw(st.integers(-3, 6)))
    return making.calls()


@settings(max_examples=300, deadline=None)
@given(tiny_histories())
def test_what_some_order_explains_is_never_called_wrong(history: tuple[Call, ...]) -> None:
    possible = oracle.some_order(history, 0, oracle.counter, realtime=True)
    result = checker.check(history)
    assert result.valid is not False or not possible, result


@settings(max_examples=300, deadline=None)
@given(tiny_histories())
def test_with_one_read_and_steps_of_one_the_bounds_say_everything(history: tuple[Call, ...]) -> None:
    reads = [call for call in history if call.f == "read"]
    adds = [call for call in history if call.f == "add" and call.invocation.value == 1]
    some = sorted([*adds, *reads[:1]], key=lambda call: call.index)
    possible = oracle.some_order(some, 0, oracle.counter, realtime=True)
    assert (checker.check(some).valid is not False) == possible


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_correct_counter_is_valid_and_a_read_that_misses_everything_is_not(seed: int) -> None:
    simulation = Simulation(seed)
    total = [0]

    def happen(f: str, value: Any) -> Any:
        total[0] += value if f == "add" else 0
        return value if f == "add" else total[0]

    def ask() -> tuple[str, Any]:
        return ("read", None) if simulation.numbers.random() < 0.4 else ("add", simulation.numbers.randint(1, 5))

    making = simulation.run(300, ask, happen)
    assert checker.check(making.calls()).valid is not False
    if any(call.ok and call.f == "add" for call in making.calls()):
        making.did(1000, "read", None, 0)
        assert "too-low" in kinds(checker.check(making.calls()))
