import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import register as checker
from jepsen.checkers.register_search import search
from jepsen.checkers.result import Result
from jepsen.history import Call, Malformed, Type
from tests.jepsen import oracle
from tests.jepsen.making import Making
from tests.jepsen.simulated import Simulation


def check(making: Making | tuple[Call, ...], **options: Any) -> Result:
    calls = making.calls() if isinstance(making, Making) else making
    return checker.check(calls, clock=time.monotonic, **options)


def test_reads_after_writes() -> None:
    making = Making()
    making.did(0, "read", ["x", None])
    making.did(0, "write", ["x", 1])
    making.did(1, "cas", ["x", [1, 2]])
    making.did(0, "cas", ["x", [1, 3]], type_="fail")
    making.did(2, "read", ["x", None], ["x", 2])
    assert check(making).valid is True


def test_an_old_value_after_a_new_one_was_acknowledged() -> None:
    making = Making()
    making.did(0, "write", ["x", 1])
    making.did(0, "write", ["x", 2])
    making.did(1, "read", ["x", None], ["x", 1])
    result = check(making)
    assert result.valid is False
    assert [anomaly.kind for anomaly in result.anomalies] == ["nonlinearizable"]
    assert result.anomalies[0].text == (
        "T4 (process 1) found 1 in register x, but T2 (process 0) had left 2 before that began, and nobody wrote it "
        "again"
    )
    assert result.anomalies[0].operations[-1].index == 5


def test_two_that_compare_and_set_the_same_value() -> None:
    making = Making()
    making.did(0, "write", ["x", 1])
    making.begin(0, "cas", ["x", [1, 2]])
    making.begin(1, "cas", ["x", [1, 3]])
    making.end(0)
    making.end(1)
    assert check(making).valid is False


def test_what_is_open_may_be_seen_by_one_and_not_yet_by_another() -> None:
    making = Making()
    making.did(0, "write", ["x", 1])
    making.begin(0, "write", ["x", 2])
    making.did(1, "read", ["x", None], ["x", 1])
    making.did(1, "read", ["x", None], ["x", 2])
    making.end(0)
    assert check(making).valid is True


def test_what_was_seen_is_not_unseen() -> None:
    making = Making()
    making.did(0, "write", ["x", 1])
    making.begin(0, "write", ["x", 2])
    making.did(1, "read", ["x", None], ["x", 2])
    making.did(1, "read", ["x", None], ["x", 1])
    making.end(0)
    result = check(making)
    assert result.valid is False
    assert "but T3 (process 1) had found 2 before that began, and nobody wrote it again" in result.anomalies[0].text


def test_a_write_without_an_answer_may_happen_much_later_and_once() -> None:
    making = Making()
    making.did(0, "write", ["x", 1], type_="info")
    for number in range(2, 30):
        making.did(1, "write", ["x", number])
    making.did(1, "read", ["x", None], ["x", 1])
    assert check(making).valid is True
    making.did(1, "write", ["x", 99])
    making.did(1, "read", ["x", None], ["x", 1])
    assert check(making).valid is False


def test_a_write_that_failed_is_not_seen() -> None:
    making = Making()
    making.did(0, "write", ["x", 1], type_="fail")
    making.did(1, "read", ["x", None], ["x", 1])
    result = check(making)
    assert [each.text for each in result.anomalies] == [
        "T2 (process 1) found 1 in register x, which nobody had begun to write"
    ]


def test_two_that_no_order_explains_are_told_with_what_the_register_holds() -> None:
    making = Making()
    making.did(0, "write", ["x", 1])
    making.begin(0, "cas", ["x", [1, 2]])
    making.begin(1, "cas", ["x", [1, 3]])
    making.end(0)
    making.end(1)
    (anomaly,) = check(making).anomalies
    assert anomaly.text == (
        "T3 (process 1) found 1, and left 3 in register x, and no order of all calls allows that: before it, and "
        "before what else was open then (nothing), the register holds 2"
    )
    assert [each.index for each in anomaly.operations] == [2, 3, 4, 5]


def test_keys_are_judged_alone() -> None:
    making = Making()
    for key in range(3):
        making.did(0, "write", [key, key])
        making.did(0, "read", [key, None], [key, key if key != 1 else 7])
    result = check(making)
    assert (result.valid, len(result.anomalies), result.counts["keys"]) == (False, 1, 3)


def test_zero_is_not_false() -> None:
    making = Making()
    making.did(0, "write", ["x", 0])
    making.did(0, "read", ["x", None], ["x", False])
    assert check(making).valid is False


def test_what_was_kept_aside_is_no_part_of_the_history() -> None:
    making = Making()
    making.did(0, "write", ["x", 1])
    lost = making.did(0, "write", ["x", 2])
    making.did(0, "read", ["x", None], ["x", 2])
    making.did(1, "read", ["x", None], ["x", 1])
    assert check(making).valid is False
    result = check(making, lost=[lost])
    assert (result.valid, result.counts["lost-and-listed"]) == (True, 2)


def test_many_calls_without_an_answer_do_not_take_long() -> None:
    making = Making()
    for number in range(60):
        making.did(number, "write", ["x", number], type_="info")
    for number in range(200):
        making.did(100, "write", ["x", 1000 + number])
        making.did(101, "read", ["x", None], ["x", 1000 + number])
    began = time.monotonic()
    assert check(making).valid is True
    assert time.monotonic() - began < 30


def test_when_time_is_up_nobody_knows() -> None:
    making = Making()
    for process in range(40):
        making.begin(process, "write", ["x", process])
    making.did(99, "read", ["x", None], ["x", -1])
    moments = iter(range(10**9))
    result = checker.check(making.calls(), clock=lambda: float(next(moments)), limit_s=3)
    assert result.valid in {False, "unknown"}
    for process in range(40):
        making.end(process)
    making.did(99, "read", ["x", None], ["x", 5])
    making = Making()
    for process in range(40):
        making.begin(process, "write", ["x", process])
    for process in range(40):
        making.end(process)
    making.did(99, "read", ["x", None], ["x", 5])
    result = checker.check(making.calls(), clock=lambda: float(next(moments)), limit_s=3)
    assert (result.valid, result.why) == ("unknown", "no answer within 3 s for: x")


def test_without_a_read_nothing_is_known() -> None:
    making = Making()
    making.did(0, "write", ["x", 1])
    assert check(making).valid == "unknown"


@pytest.mark.parametrize(("f", "value"), [("read", 5), ("write", ["x"]), ("cas", ["x", 1]), ("write", [[], 1])])
def test_what_is_no_register_is_an_error(f: str, value: object) -> None:
    making = Making()
    making.did(0, f, value)
    with pytest.raises(Malformed, match=r"operation [01]"):
        check(making)


# ------------------------------------------------------------------------------------------------- against the oracle
@st.composite
def tiny_histories(draw: st.DrawFn) -> tuple[Call, ...]:
    making = Making()
    values = st.integers(0, 2)
    waiting = list(range(draw(st.integers(1, 6))))
    open_: list[int] = []
    answers: dict[int, Any] = {}
    while waiting or open_:
        if waiting and (not open_ or draw(st.booleans())):
            process = waiting.pop(0)
            f = draw(st.sampled_from(["read", "write", "cas"]))
            value: Any = draw(values) if f == "write" else [draw(values), draw(values)] if f == "cas" else None
            answers[process] = ["x", draw(st.none() | values) if f == "read" else value]
            making.begin(process, f, ["x", value])
            open_.append(process)
        else:
            process = open_.pop(draw(st.integers(0, len(open_) - 1)))
            type_: Type = draw(st.sampled_from(["ok", "ok", "ok", "info", "fail"]))
            making.end(process, type_, answers[process] if type_ == "ok" else ...)
    return making.calls()


@settings(max_examples=400, deadline=None)
@given(tiny_histories())
def test_the_checker_and_trying_every_order_agree(history: tuple[Call, ...]) -> None:
    result = check(history)
    assert (result.valid is not False) == oracle.some_order(history, {}, oracle.register, realtime=True), result


@settings(max_examples=300, deadline=None)
@given(tiny_histories(), st.integers(1, 3))
def test_a_search_with_few_configurations_is_made_again_with_more(history: tuple[Call, ...], width: int) -> None:
    actions = checker.actions_by_key(history).get("x", [])
    stuck = search(actions, None, time.monotonic, time.monotonic() + 60, (width, 500_000))
    assert (stuck is None) == oracle.some_order(history, {}, oracle.register, realtime=True)


# --------------------------------------------------------------------------------------------------------- simulation
def simulated(seed: int, steps: int = 400) -> Making:
    simulation = Simulation(seed, clients=5)
    numbers = simulation.numbers
    state: dict[int, int | None] = {}

    def ask() -> tuple[str, Any]:
        key = numbers.randrange(3)
        match numbers.randrange(3):
            case 0:
                return "read", [key, None]
            case 1:
                return "write", [key, numbers.randrange(5)]
            case _:
                return "cas", [key, [numbers.randrange(5), numbers.randrange(5)]]

    def happen(f: str, value: Any) -> Any:
        key, what = value
        if f == "read":
            return [key, state.get(key)]
        if f == "write":
            state[key] = what
        elif state.get(key) == what[0]:
            state[key] = what[1]
        else:
            return None
        return value

    making = simulation.run(steps, ask, happen)
    # A comparison that found another value is a failure.
    making.operations = [
        type(each)(each.index, each.time_ns, each.process, "fail", each.f, None)
        if each.type == "ok" and each.value is None
        else each
        for each in making.operations
    ]
    return making


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_correct_register_is_always_valid(seed: int) -> None:
    result = check(simulated(seed))
    assert result.valid is not False, result.anomalies


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**16))
def test_a_value_that_nobody_wrote_is_always_found(seed: int, which: int) -> None:
    making = simulated(seed)
    reads = [call for call in making.calls() if call.ok and call.f == "read"]
    if not reads:
        return
    completion = reads[which % len(reads)].completion
    assert completion is not None
    completion.value[1] = 77  # type: ignore[index]
    assert check(making).valid is False
