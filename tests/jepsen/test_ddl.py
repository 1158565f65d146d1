import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import ddl as checker
from jepsen.checkers.result import Result
from jepsen.history import Malformed
from tests.jepsen.making import Making


def change(making: Making, what: str, name: str, type_: Any = "ok") -> list[Any]:
    """The row that it leaves."""
    return [making.did(0, "change", [what, name], type_=type_), what, name]


def look(making: Making, *changes: list[Any], **other: Any) -> int:
    there: dict[str, list[str]] = {"column": [], "index": [], "table": []}
    for _, what, name in changes:
        verb, _, kind = what.partition("-")
        if verb == "drop":
            there[kind].remove(name)
        else:
            there[kind].append(name)
    by_index = dict.fromkeys(there["index"], 3)
    answer = {"changes": list(changes), **there, "rows": 3, "by-index": by_index, "wrong": 0, **other}
    return making.did(1, "look", None, answer, node="b")


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


def test_schemas_go_with_their_changes() -> None:
    making = Making()
    look(making)
    one = change(making, "add-column", "c1")
    two = change(making, "create-index", "i1")
    look(making, one, two)
    three = change(making, "drop-column", "c1")
    change(making, "create-table", "t1", "fail")
    four = change(making, "create-table", "t2", "info")
    look(making, one, two, three)
    look(making, one, two, three, four)
    result = checker.check(making.calls())
    assert result.valid is True
    assert (result.counts["looks"], result.counts["changes"], result.counts["acknowledged"]) == (4, 5, 3)
    assert checker.check(()).valid == "unknown"


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"column": []}, "schema-differs"),
        ({"column": ["c1", "c2"]}, "schema-differs"),
        ({"index": []}, "schema-differs"),
        ({"table": ["t1"]}, "schema-differs"),
        ({"by-index": {"i1": 2}}, "index-differs"),
        ({"wrong": 1}, "wrong-column"),
    ],
)
def test_a_snapshot_that_contradicts_itself(other: dict[str, Any], expected: str) -> None:
    making = Making()
    one, two = change(making, "add-column", "c1"), change(making, "create-index", "i1")
    look(making, one, two, **other)
    assert kinds(checker.check(making.calls(), stale_reads=True)) == {expected}


def test_a_change_that_failed_or_that_nobody_asked_for_is_seen() -> None:
    making = Making()
    failed = change(making, "add-column", "c1", "fail")
    look(making, failed)
    assert kinds(checker.check(making.calls())) == {"failed-seen"}
    look(making, [failed[0], "add-column", "c2"])
    assert "from-nowhere" in kinds(checker.check(making.calls()))
    making = Making()
    look(making, [2, "add-column", "c1"])
    change(making, "add-column", "c1", "info")
    assert kinds(checker.check(making.calls())) == {"from-nowhere"}


def test_a_change_is_there_once() -> None:
    making = Making()
    one = change(making, "create-table", "t1")
    look(making, one, one)
    assert kinds(checker.check(making.calls())) == {"duplicate"}


@pytest.mark.parametrize("stale_reads", [False, True])
def test_an_acknowledged_change_is_lost_or_was_not_seen_yet(*, stale_reads: bool) -> None:
    making = Making()
    one = change(making, "add-column", "c1")
    look(making)
    result = checker.check(making.calls(), stale_reads=stale_reads)
    assert kinds(result) == {"lost"}
    look(making, one)
    result = checker.check(making.calls(), stale_reads=stale_reads)
    assert kinds(result) == (set() if stale_reads else {"stale"})


def test_two_histories_of_changes() -> None:
    making = Making()
    one, two = change(making, "add-column", "c1"), change(making, "add-column", "c2", "info")
    look(making, one)
    look(making, two)
    assert kinds(checker.check(making.calls())) == {"incompatible-order", "lost"}
    assert kinds(checker.check(making.calls(), lost=[one[0]])) == set()


def test_what_was_kept_aside_may_vanish_with_all_that_came_after_it() -> None:
    making = Making()
    one, two, three = (change(making, "create-table", name) for name in ("t1", "t2", "t3"))
    look(making, one, two, three)
    look(making, one)
    four = change(making, "create-index", "i1")
    look(making, one, four)
    assert checker.check(making.calls(), lost=[two[0], three[0]], stale_reads=True).valid is True
    assert kinds(checker.check(making.calls(), lost=[three[0]], stale_reads=True)) == {"incompatible-order", "lost"}


@pytest.mark.parametrize(
    ("f", "asked", "answer"),
    [
        ("change", "add-column", ...),
        ("change", ["add-column", 1], ...),
        ("look", None, None),
        ("look", None, {"changes": 1}),
        ("look", None, {"changes": [["add-column", "c1"]]}),
        ("look", None, {"changes": [], "column": "c1"}),
        (
            "look",
            None,
            {"changes": [], "column": [], "index": [], "table": [], "rows": "3", "by-index": {}, "wrong": 0},
        ),
        ("look", None, {"changes": [], "column": [], "index": [], "table": [], "rows": 3, "by-index": [], "wrong": 0}),
    ],
)
def test_what_is_no_such_call_is_an_error(f: str, asked: Any, answer: Any) -> None:
    making = Making()
    making.did(0, f, asked, answer)
    with pytest.raises(Malformed, match=r"operation [01]"):
        checker.check(making.calls())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_a_correct_database_is_valid_and_a_schema_without_one_change_is_not(seed: int) -> None:
    numbers = random.Random(seed)
    making = Making()
    done: list[list[Any]] = []
    there: list[tuple[str, str]] = []
    for number in range(40):
        if there and numbers.random() < 0.3:
            kind, name = there.pop(numbers.randrange(len(there)))
            done.append(change(making, f"drop-{kind}", name))
        elif numbers.random() < 0.6:
            kind = numbers.choice(["column", "index", "table"])
            there.append((kind, f"{kind[0]}{number}"))
            done.append(change(making, f"{'add' if kind == 'column' else 'create'}-{kind}", there[-1][1]))
        else:
            look(making, *done[: numbers.randint(0, len(done))])
    look(making, *done)
    assert checker.check(making.calls(), stale_reads=True).valid is True
    if there:
        kind, name = there[-1]
        answer = dict(making.operations[-1].value)  # type: ignore[call-overload]
        answer[kind] = [each for each in answer[kind] if each != name]
        making.did(1, "look", None, answer)
        assert kinds(checker.check(making.calls(), stale_reads=True)) == {"schema-differs"}
