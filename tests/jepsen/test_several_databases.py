"""Workloads with several databases: multi and journal."""

from typing import Any

import pytest

from jepsen.checkers import journal, multi
from jepsen.checkers.result import Result
from jepsen.history import Malformed
from tests.jepsen.making import Making

MODULES = [multi, journal]


def add(making: Making, database: str, element: int, type_: Any = "ok") -> int:
    return making.did(0, "add", {"database": database, "element": element}, type_=type_)


def read(making: Making, database: str, *elements: int, whole: list[int] | None = None, parts: int = -1) -> int:
    answer = {
        "database": database,
        "elements": list(elements),
        "whole": list(elements) if whole is None else whole,
        "parts": len(elements) if parts < 0 else parts,
    }
    return making.did(1, "read", {"database": database}, answer, node="b")


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


@pytest.mark.parametrize("checker", MODULES)
def test_each_database_is_a_set_of_its_own(checker: Any) -> None:
    making = Making()
    add(making, "x", 1)
    add(making, "y", 2)
    add(making, "y", 3, "info")
    read(making, "x", 1)
    read(making, "y", 2, 3)
    result = checker.check(making.calls())
    assert result.valid is True
    assert (result.counts["databases"], result.counts["recovered"], result.counts["adds"]) == (2, 1, 3)


@pytest.mark.parametrize("checker", MODULES)
def test_an_element_in_the_wrong_database_is_unexpected_there_and_lost_here(checker: Any) -> None:
    making = Making()
    add(making, "x", 1)
    add(making, "y", 2)
    read(making, "x", 1, 2)
    read(making, "y")
    result = checker.check(making.calls())
    assert kinds(result) == {"unexpected", "lost"}
    assert (result.counts["unexpected"], result.counts["lost"]) == (1, 1)
    assert any(anomaly.text.startswith("y: 2 was acknowledged") for anomaly in result.anomalies)


@pytest.mark.parametrize("checker", MODULES)
def test_what_was_kept_aside_may_be_missing_and_old_reads_are_told(checker: Any) -> None:
    making = Making()
    lost = add(making, "x", 1)
    add(making, "x", 2)
    read(making, "x", 1)
    read(making, "x", 2)
    assert checker.check(making.calls(), lost=[lost], stale_reads=True).valid is True
    assert kinds(checker.check(making.calls(), stale_reads=True)) >= {"lost"}


def test_a_database_that_only_a_lost_history_has_need_not_be_read() -> None:
    making = Making()
    read(making, "y")
    made = making.did(0, "create", {"database": "x"})
    added = add(making, "x", 1)
    making.did(1, "read", {"database": "x"}, type_="fail")
    assert multi.check(making.calls(), lost=[made, added]).valid is True
    assert multi.check(making.calls(), lost=[made]).valid == "unknown"
    assert multi.check(making.calls()).valid is False


@pytest.mark.parametrize("checker", MODULES)
def test_without_a_read_nothing_is_known(checker: Any) -> None:
    making = Making()
    add(making, "x", 1)
    result = checker.check(making.calls())
    assert (result.valid, result.why) == ("unknown", "x: no read was answered")


@pytest.mark.parametrize("checker", MODULES)
@pytest.mark.parametrize(
    ("asked", "answer"),
    [({}, {}), ({"database": 1}, {}), ({"database": "x"}, {"database": "y", "elements": []}), ({"database": "x"}, 7)],
)
def test_what_is_no_such_call_is_an_error(checker: Any, asked: Any, answer: Any) -> None:
    making = Making()
    making.did(0, "read", asked, answer)
    with pytest.raises(Malformed, match=r"operation [01]"):
        checker.check(making.calls())


# ------------------------------------------------------------------------------------------------------------- multi
def test_a_database_that_was_created_is_found() -> None:
    making = Making()
    made = making.did(0, "create", {"database": "x"})
    making.did(1, "read", {"database": "x"}, type_="fail")
    result = multi.check(making.calls())
    assert kinds(result) == {"missing-database"}
    assert kinds(multi.check(making.calls(), lost=[made])) == set()
    read(making, "x")
    assert kinds(multi.check(making.calls())) == set()


def test_a_database_whose_making_nobody_answered_need_not_be_there() -> None:
    making = Making()
    making.did(0, "create", {"database": "x"}, type_="info")
    making.did(1, "read", {"database": "x"}, type_="fail")
    assert kinds(multi.check(making.calls())) == set()


def test_a_database_is_created_once() -> None:
    making = Making()
    making.did(0, "create", {"database": "x"})
    making.did(0, "create", {"database": "x"})
    with pytest.raises(Malformed, match="operation 2: x was created before, by T0"):
        multi.check(making.calls())


# ----------------------------------------------------------------------------------------------------------- journal
@pytest.mark.parametrize(
    ("elements", "whole", "parts", "torn"),
    [
        ([1, 2], [1, 2], 2, False),
        ([1, 2], [1], 2, True),  # some parts of 2 are missing
        ([1, 2], [1], 1, True),  # all parts of 2 are missing
        ([1], [1, 2], 2, True),  # parts of an element that is not there
        ([1], [1], 2, True),  # some parts of one that is not there
    ],
)
def test_a_transaction_is_there_as_a_whole(elements: list[int], whole: list[int], parts: int, *, torn: bool) -> None:
    making = Making()
    add(making, "x", 1)
    add(making, "x", 2, "ok" if 2 in elements else "info")
    read(making, "x", *elements, whole=whole, parts=parts)
    assert kinds(journal.check(making.calls())) == ({"torn"} if torn else set())


@pytest.mark.parametrize(("mode", "switched", "expected"), [("wal", 1, set()), ("delete", 0, set())])
def test_a_switch_says_which_mode_it_is_now(mode: str, switched: int, expected: set[str]) -> None:
    making = Making()
    making.did(0, "switch", {"database": "x", "mode": "wal"}, {"database": "x", "mode": mode})
    result = journal.check(making.calls())
    assert (kinds(result), result.counts["switched"]) == (expected, switched)


def test_a_mode_that_there_is_not() -> None:
    making = Making()
    making.did(0, "switch", {"database": "x", "mode": "wal"}, {"database": "x", "mode": "memory"})
    assert kinds(journal.check(making.calls())) == {"wrong-mode"}


@pytest.mark.parametrize("checker", MODULES)
def test_of_many_anomalies_all_are_counted(checker: Any) -> None:
    making = Making()
    for element in range(50):
        add(making, "x", element)
    add(making, "y", 50)
    read(making, "x")
    read(making, "y")
    result = checker.check(making.calls())
    assert result.counts["lost"] == 51
    assert len(result.anomalies) == 20
    assert result.counts["adds"] == 51
