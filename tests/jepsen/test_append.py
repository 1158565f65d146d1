from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import append as checker
from jepsen.checkers.result import Result
from jepsen.history import Call, Malformed, Type
from tests.jepsen import oracle
from tests.jepsen.making import Making, append, asked, read, transactions
from tests.jepsen.simulated import Simulation


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


GOOD: dict[str, tuple[Any, ...]] = {
    "one after the other": ([append("x", 1)], [read("x", 1), append("x", 2)], [read("x", 1, 2)]),
    "a read of a list that is not there": ([read("x")], [append("x", 1)]),
    "own appends are seen": ([append("x", 1), append("x", 2), read("x", 1, 2)],),
    "read, append, read again": ([append("x", 1)], [read("x", 1), append("x", 2), read("x", 1, 2)]),
    "nobody saw an append": ([append("x", 1)], [append("x", 2)], [read("x", 1)]),
}

BAD: dict[str, tuple[str, tuple[Any, ...]]] = {
    "two transactions overwrite each other": (
        "G0",
        ([append("x", 1), append("y", 1)], [append("x", 2), append("y", 2)], [read("x", 1, 2), read("y", 2, 1)]),
    ),
    "two transactions see each other": ("G1c", ([append("x", 1), read("y", 1)], [append("y", 1), read("x", 1)])),
    "the middle of a transaction is seen": (
        "G1b",
        ([append("x", 1), append("x", 2)], [read("x", 1)], [read("x", 1, 2)]),
    ),
    "half of another transaction is seen": (
        "G-single",
        ([append("x", 1), append("y", 1)], [read("x", 1), read("y")], [read("y", 1)]),
    ),
    "an update is lost": (
        "G-single",
        ([append("x", 1)], [read("x", 1), append("x", 2)], [read("x", 1), append("x", 3)], [read("x", 1, 2, 3)]),
    ),
    "each misses the other's append": (
        "G2-item",
        ([read("x"), append("y", 1)], [read("y"), append("x", 1)], [read("x", 1), read("y", 1)]),
    ),
    "each misses the other's append, and nobody else reads": (
        "G2-item",
        ([read("x"), append("y", 1)], [read("y"), append("x", 1)]),
    ),
    "two orders of one list": (
        "incompatible-order",
        ([append("x", 1)], [append("x", 2)], [read("x", 1, 2)], [read("x", 2, 1)]),
    ),
    "one transaction's elements in another order": (
        "own-order",
        ([append("x", 1), append("x", 2)], [append("x", 3)], [read("x", 2, 1, 3)]),
    ),
    "an element twice": ("duplicate", ([append("x", 1)], [read("x", 1, 1)])),
    "an element twice in a list that others read once": (
        "duplicate",
        ([append("x", 1)], [append("x", 2)], [read("x", 1, 1)], [read("x", 1, 2)], [read("x", 1, 2)]),
    ),
    "an element from nowhere": ("from-nowhere", ([append("x", 1)], [read("x", 7)])),
    "own append not seen": ("internal", ([append("x", 1), read("x")],)),
    "two reads that differ": ("internal", ([append("x", 1)], [read("x"), read("x", 1)])),
}


@pytest.mark.parametrize("several", GOOD.values(), ids=GOOD)
def test_what_can_have_happened_is_valid(several: tuple[Any, ...]) -> None:
    assert checker.check(transactions(*several)).valid is True
    assert (
        checker.check(transactions(*several, together=False), realtime=True).valid is True
        or several is GOOD["nobody saw an append"]
    )


@pytest.mark.parametrize(("kind", "several"), BAD.values(), ids=BAD)
def test_what_cannot_have_happened_is_named(kind: str, several: tuple[Any, ...]) -> None:
    result = checker.check(transactions(*several))
    assert result.valid is False
    assert kind in kinds(result), result
    assert result.counts[kind] >= 1
    assert not oracle.some_order(transactions(*several), {}, oracle.lists, realtime=False)


def test_what_failed_must_not_be_seen() -> None:
    result = checker.check(transactions([append("x", 1)], [read("x", 1)], types={0: "fail"}))
    assert kinds(result) == {"G1a"}
    assert [each.index for each in result.anomalies[0].operations] == [0, 1, 2, 3]


def test_what_has_no_answer_may_be_seen_or_not() -> None:
    for seen in ([1], []):
        assert checker.check(transactions([append("x", 1)], [read("x", *seen)], types={0: "info"})).valid is True


def test_an_acknowledged_append_that_is_missing_later_needs_time_to_be_wrong() -> None:
    history = transactions([append("x", 1)], [read("x")], together=False)
    assert checker.check(history).valid is True
    result = checker.check(history, realtime=True)
    assert kinds(result) == {"G-single-realtime"}
    assert "was acknowledged (operation 1) before T2 was begun (operation 2)" in result.anomalies[0].text


@pytest.mark.parametrize(
    ("kind", "several"),
    [
        ("G0-realtime", ([append("x", 1)], [append("x", 2)], [read("x", 2, 1)])),
        ("G1c-realtime", ([read("x", 1)], [append("x", 1)])),
        ("G-single-realtime", ([append("x", 1)], [append("x", 2)], [read("x", 1)], [read("x", 1, 2)])),
    ],
)
def test_time_is_part_of_the_order_when_asked_for(kind: str, several: tuple[Any, ...]) -> None:
    history = transactions(*several, together=False)
    assert checker.check(history).valid is True
    result = checker.check(history, realtime=True)
    assert kind in kinds(result), result
    assert not oracle.some_order(history, {}, oracle.lists, realtime=True)


def test_two_misses_and_time_make_a_cycle_of_their_own_name() -> None:
    making = Making()
    making.begin(0, "txn", asked([read("x"), append("y", 1)]))
    making.did(1, "txn", [append("x", 1)])
    making.did(2, "txn", asked([read("y")]), [read("y")])
    making.end(0, "ok", [read("x"), append("y", 1)])
    making.did(3, "txn", asked([read("y", 1), read("x", 1)]), [read("y", 1), read("x", 1)])
    assert checker.check(making.calls()).valid is True
    result = checker.check(making.calls(), realtime=True)
    assert kinds(result) == {"G2-item-realtime"}
    assert not oracle.some_order(making.calls(), {}, oracle.lists, realtime=True)


def test_a_cycle_is_told_with_its_operations() -> None:
    result = checker.check(transactions([append("x", 1), read("y", 1)], [append("y", 1), read("x", 1)]))
    anomaly = next(each for each in result.anomalies if each.kind == "G1c")
    assert anomaly.text == (
        "T0 (process 0), T1 (process 1): T1 read 1 as the last element of x, which T0 had appended; T0 read 1 as the "
        "last element of y, which T1 had appended. So T0 < T1 < T0: a cycle."
    )
    assert [each.index for each in anomaly.operations] == [0, 1, 2, 3]


def test_without_a_read_nothing_is_known() -> None:
    result = checker.check(transactions([append("x", 1)]))
    assert (result.valid, result.why) == ("unknown", "nothing was read: nothing can be said")


def test_what_was_kept_aside_is_no_part_of_the_history() -> None:
    history = transactions([append("x", 1)], [read("x", 1)], [append("x", 2)], [read("x", 2)], together=False)
    assert checker.check(history, realtime=True).valid is False
    result = checker.check(history, realtime=True, lost=[0])
    assert result.valid is True
    assert result.counts["lost-and-listed"] == 2


def test_nobody_who_survived_saw_what_was_lost() -> None:
    history = transactions([append("x", 1)], [read("x", 1), append("y", 1)], [read("y", 1)], together=False)
    assert kinds(checker.check(history, lost=[0])) == {"based-on-lost"}


@pytest.mark.parametrize(
    "value",
    [None, 7, [1], [["append", "x"]], [["delete", "x", 1]], [["append", ["x"], 1]], [["append", "x", {}]]],
)
def test_what_is_no_transaction_is_an_error(value: object) -> None:
    making = Making()
    making.did(0, "txn", value)
    with pytest.raises(Malformed, match=r"operation [01]"):
        checker.check(making.calls())


def test_an_element_that_is_appended_twice_is_an_error() -> None:
    with pytest.raises(Malformed, match="1 is appended to x by T0 and by T1"):
        checker.check(transactions([append("x", 1)], [append("x", 1)]))


def test_a_read_that_answers_no_list_is_an_error() -> None:
    with pytest.raises(Malformed, match="not a list"):
        checker.check(transactions([["r", "x", 5]]))


def test_an_answer_that_appended_something_else_is_an_error() -> None:
    making = Making()
    making.did(0, "txn", [append("x", 1)], [append("x", 2)])
    with pytest.raises(Malformed, match="other appends"):
        checker.check(making.calls())


# ------------------------------------------------------------------------------------------------- against the oracle
@st.composite
def tiny_histories(draw: st.DrawFn) -> tuple[Call, ...]:
    """Up to five transactions over two lists; what they read is some arrangement of what was appended."""
    count = draw(st.integers(1, 5))
    shapes = draw(
        st.lists(
            st.lists(st.tuples(st.sampled_from(["append", "r"]), st.sampled_from("xy")), min_size=1, max_size=3),
            min_size=count,
            max_size=count,
        )
    )
    elements: dict[str, list[int]] = {"x": [], "y": []}
    for shape in shapes:
        for name, key in shape:
            if name == "append":
                elements[key].append(len(elements[key]) + 1)
    orders = {key: draw(st.permutations(of_key)) for key, of_key in elements.items()}
    next_ = {"x": 0, "y": 0}
    made: list[list[Any]] = []
    for shape in shapes:
        parts: list[Any] = []
        for name, key in shape:
            if name == "append":
                next_[key] += 1
                parts.append(append(key, next_[key]))
            else:
                order = draw(st.permutations(elements[key])) if draw(st.integers(0, 9)) == 0 else orders[key]
                parts.append(read(key, *order[: draw(st.integers(0, len(order)))]))
        made.append(parts)
    return interleaved(draw, made)


def interleaved(draw: st.DrawFn, made: list[list[Any]]) -> tuple[Call, ...]:
    making = Making()
    waiting = list(range(len(made)))
    open_: list[int] = []
    while waiting or open_:
        if waiting and (not open_ or draw(st.booleans())):
            process = waiting.pop(0)
            making.begin(process, "txn", asked(made[process]))
            open_.append(process)
        else:
            process = open_.pop(draw(st.integers(0, len(open_) - 1)))
            type_: Type = draw(st.sampled_from(["ok", "ok", "ok", "ok", "info", "fail"]))
            making.end(process, type_, made[process] if type_ == "ok" else asked(made[process]))
    return making.calls()


@settings(max_examples=600, deadline=None)
@given(tiny_histories(), st.booleans())
def test_the_checker_and_trying_every_order_agree(history: tuple[Call, ...], realtime: bool) -> None:
    result = checker.check(history, realtime=realtime)
    possible = oracle.some_order(history, {}, oracle.lists, realtime=realtime)
    assert (result.valid is not False) == possible, result


# --------------------------------------------------------------------------------------------------------- simulation
def simulated(seed: int, steps: int = 400) -> Making:
    simulation = Simulation(seed)
    numbers = simulation.numbers
    database: dict[int, list[int]] = {}
    appended: dict[int, int] = {}

    def ask() -> tuple[str, Any]:
        parts: list[Any] = []
        for _ in range(numbers.randint(1, 4)):
            key = numbers.randrange(3)
            if numbers.random() < 0.5:
                appended[key] = appended.get(key, 0) + 1
                parts.append(append(key, appended[key]))
            else:
                parts.append(["r", key, None])
        return "txn", parts

    def happen(_f: str, value: Any) -> Any:
        answer = []
        for name, key, element in value:
            if name == "append":
                database.setdefault(key, []).append(element)
                answer.append([name, key, element])
            else:
                answer.append([name, key, list(database.get(key, []))])
        return answer

    return simulation.run(steps, ask, happen)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_correct_database_is_always_valid(seed: int) -> None:
    result = checker.check(simulated(seed).calls(), realtime=True)
    assert result.valid is not False, result.anomalies


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**16))
def test_an_old_answer_in_it_is_always_found(seed: int, which: int) -> None:
    """One read answers without the last element, although whoever appended it had been answered before it began."""
    making = simulated(seed)
    calls = [call for call in making.calls() if call.ok]
    parts: dict[int, Any] = {call.index: call.value for call in calls}
    writers = {(key, each): call for call in calls for name, key, each in parts[call.index] if name == "append"}
    stale = [
        (call, at)
        for call in calls
        for at, (name, key, elements) in enumerate(parts[call.index])
        if name == "r" and elements and (key, elements[-1]) in writers and writers[key, elements[-1]].before(call)
    ]
    if not stale:
        return
    call, at = stale[which % len(stale)]
    parts[call.index][at][2].pop()
    assert checker.check(making.calls(), realtime=True).valid is False
