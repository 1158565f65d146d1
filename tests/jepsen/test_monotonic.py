import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import monotonic as checker
from jepsen.checkers.result import Result
from jepsen.ending import Kept
from jepsen.history import Malformed
from jepsen.periods import restored
from tests.jepsen.making import STEP_NS, Making


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


def seen(
    making: Making, process: int, count: int, txid: int | None = None, node: str = "b", database: str = "d"
) -> int:
    return making.did(process, "read", None, {"database": database, "seen": count, "txid": txid}, node=node)


def kept(at_ns: int, base: int, end: int, database: str = "d") -> dict[str, list[Kept]]:
    return {"b": [Kept("1", database, base, end, at_ns)]}


def test_a_reader_that_goes_on_is_right() -> None:
    making = Making()
    for count in (0, 0, 1, 5, 5):
        seen(making, 0, count, count)
    assert checker.check(making.calls()).valid is True


@pytest.mark.parametrize("process", [0, 1])
def test_a_reader_of_a_node_that_goes_back_is_wrong_whoever_read_before(process: int) -> None:
    making = Making()
    seen(making, 0, 5)
    seen(making, process, 4)
    seen(making, process, 4)
    result = checker.check(making.calls())
    assert (kinds(result), result.counts["went-back"]) == ({"went-back"}, 1)
    assert f"T2 (process {process}) saw 4 on b, and T0 (process 0) saw 5 on b before that began" in str(
        result.anomalies
    )


def test_a_node_that_is_given_an_old_directory_begins_where_it_was_then() -> None:
    making = Making()
    seen(making, 0, 5)
    at_ns = seen(making, 0, 9)  # while it is given that
    seen(making, 0, 5)
    seen(making, 0, 6)
    calls = making.calls()
    during = calls[1].invocation.time_ns
    spans = {"b": [(during, during + 1)]}
    assert at_ns
    assert checker.check(calls, restored=spans).valid is True
    assert checker.check(calls, restored={"c": spans["b"]}).valid is False
    seen(making, 0, 5)
    assert kinds(checker.check(making.calls(), restored=spans)) == {"went-back"}, "once, and not from then on"


def test_when_a_node_was_given_an_old_directory_stands_in_the_history() -> None:
    making = Making()
    for f, value in (
        ("start-rejoin", "away a"),
        ("stop-rejoin", "a"),
        ("start-rejoin", "restored b"),
        ("stop-rejoin", "b"),
    ):
        making.nemesis(f, value)
    began, ended = making.operations[-2:]
    assert restored(making.operations) == {"b": [(began.time_ns, ended.time_ns)]}


def test_a_position_that_goes_back_is_wrong_too() -> None:
    making = Making()
    seen(making, 0, 5, 9)
    seen(making, 0, 5, 8)
    assert kinds(checker.check(making.calls())) == {"went-back"}


def test_other_nodes_databases_and_reads_at_the_same_time_promise_nothing() -> None:
    making = Making()
    seen(making, 0, 5)
    seen(making, 0, 3, node="c")
    seen(making, 0, 2, database="e")
    making.begin(1, "read", node="b")
    seen(making, 0, 7)
    making.end(1, "ok", {"database": "d", "seen": 6, "txid": None}, node="b")
    assert checker.check(making.calls()).valid is True


def test_what_nobody_counted_cannot_be_seen() -> None:
    making = Making()
    making.did(0, "increment", "d")
    seen(making, 1, 2)
    assert kinds(checker.check(making.calls())) == {"from-nowhere"}


def test_an_entry_of_diverged_excuses_one_step_back_after_it() -> None:
    making = Making()
    seen(making, 0, 5, 105)
    now = making.now_ns
    making.wait(1)
    seen(making, 0, 3, 103)
    seen(making, 0, 4, 104)
    result = checker.check(making.calls(), diverged=kept(now + STEP_NS, 103, 105))
    assert (result.valid, result.counts["excused"]) == (True, 1)
    seen(making, 0, 3, 103)
    assert kinds(checker.check(making.calls(), diverged=kept(now + STEP_NS, 103, 105))) == {"went-back"}


@pytest.mark.parametrize("later_s", [0, 10])
@pytest.mark.parametrize("still_s", [0.1, 10])
def test_the_position_may_step_back_before_what_is_seen(still_s: float, later_s: float) -> None:
    """So long the applier needs: the lost state is seen, and nothing else. Nobody has to look the moment after that."""
    making = Making()
    seen(making, 0, 5, 105)
    entry = kept(making.now_ns, 103, 105)
    seen(making, 0, 5, 103)
    making.wait(still_s)
    seen(making, 0, 5, 110)
    making.wait(later_s)
    seen(making, 0, 3, 111)
    result = checker.check(making.calls(), diverged=entry)
    assert (result.valid, result.counts["excused"]) == (True, 2)
    # That was it.
    seen(making, 0, 5, 113)
    seen(making, 0, 3, 114)
    assert kinds(checker.check(making.calls(), diverged=entry)) == {"went-back"}


def test_once_more_than_the_lost_state_was_seen_it_was_no_half_step() -> None:
    making = Making()
    seen(making, 0, 5, 105)
    entry = kept(making.now_ns, 103, 105)
    seen(making, 0, 5, 103)
    making.wait(10)
    seen(making, 0, 6, 104)
    assert checker.check(making.calls(), diverged=entry).valid is True
    seen(making, 0, 5, 105)
    assert kinds(checker.check(making.calls(), diverged=entry)) == {"went-back"}


def test_the_position_may_be_of_the_new_history_while_the_lost_one_is_seen() -> None:
    making = Making()
    seen(making, 0, 5, 105)
    entry = kept(making.now_ns, 103, 105)
    seen(making, 0, 5, 103)
    seen(making, 0, 5, 110)
    seen(making, 0, 3, 111)
    assert checker.check(making.calls(), diverged=entry).valid is True
    assert kinds(checker.check(making.calls(), diverged=kept(10**18, 103, 105))) == {"went-back"}


@pytest.mark.parametrize(
    "diverged",
    [
        kept(10**18, 103, 105),  # made after the read
        kept(1, 104, 105),  # goes back to a later position
        kept(3 * STEP_NS, 103, 104),  # did not have what was seen
        kept(1, 103, 105, database="e"),
        {"c": kept(1, 103, 105)["b"]},
    ],
)
def test_an_entry_that_does_not_fit_excuses_nothing(diverged: dict[str, list[Kept]]) -> None:
    making = Making()
    seen(making, 0, 5, 105)
    seen(making, 0, 3, 103)
    assert kinds(checker.check(making.calls(), diverged=diverged)) == {"went-back"}


def test_a_read_that_began_before_a_step_back_may_show_either_side() -> None:
    making = Making()
    seen(making, 0, 5)
    making.begin(1, "read", node="b")
    seen(making, 0, 3)
    making.end(1, "ok", {"database": "d", "seen": 5, "txid": None}, node="b")
    seen(making, 0, 3)
    assert checker.check(making.calls(), diverged=kept(1, 0, 10)).valid is True


@pytest.mark.parametrize("value", [None, {"database": "d"}, {"seen": 1}, {"database": 1, "seen": 1}])
def test_what_is_no_such_read_is_an_error(value: object) -> None:
    making = Making()
    making.did(0, "read", None, value, node="b")
    with pytest.raises(Malformed, match="operation 1"):
        checker.check(making.calls())
    making = Making()
    making.did(0, "read", None, {"database": "d", "seen": 1})
    with pytest.raises(Malformed, match="which database on which node"):
        checker.check(making.calls())


def test_without_a_read_nothing_is_known() -> None:
    assert checker.check(()).valid == "unknown"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 100))
def test_a_node_that_applies_in_order_is_valid_and_one_old_read_is_found(seed: int, back: int) -> None:
    numbers = random.Random(seed)
    making = Making()
    state = {"b": 0, "c": 0}
    for _ in range(100):
        node = numbers.choice("bc")
        state[node] += numbers.randrange(3)
        seen(making, numbers.randrange(4), state[node], state[node] if numbers.random() < 0.5 else None, node)
    assert checker.check(making.calls()).valid is True
    seen(making, 0, state["b"] - back, None)
    assert kinds(checker.check(making.calls())) <= {"went-back"}
    assert checker.check(making.calls()).valid is not (state["b"] > 0)
