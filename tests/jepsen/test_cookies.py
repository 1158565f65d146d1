from typing import Any

import pytest

from jepsen.checkers import cookies as checker
from jepsen.checkers.result import Result
from jepsen.history import Malformed
from tests.jepsen.making import Making


def check(making: Making, *lost: int) -> Result:
    return checker.check(making.calls(), lost=lost)


def look(making: Making, process: int, after: int, value: Any, key: int = 1) -> None:
    making.did(process, "look", {"key": key}, {"key": key, "value": value, "after": after})


def two_writes() -> tuple[Making, int]:
    """1 and then 2 into register 1; the second by process 0, whose index comes with it."""
    making = Making()
    making.did(1, "write", [1, 1])
    return making, making.did(0, "write", [1, 2])


def test_who_sees_what_he_wrote_is_content() -> None:
    making, mine = two_writes()
    look(making, 0, mine, 2)
    result = check(making)
    assert (result.valid, result.counts) == (True, {"looks": 1, "of-lost-histories": 0})


def test_a_newer_value_is_as_good() -> None:
    making, mine = two_writes()
    making.begin(1, "cas", [1, [2, 3]])
    look(making, 0, mine, 3)
    assert check(making).valid is True


@pytest.mark.parametrize("value", [1, None])
def test_who_does_not_see_what_he_wrote_is_not(value: int | None) -> None:
    making, mine = two_writes()
    look(making, 0, mine, value)
    result = check(making)
    assert (result.valid, result.counts["not-seen"]) == (False, 1)
    assert f"but T{mine} had come after that" in result.anomalies[0].text


def test_what_others_were_acknowledged_before_that_is_seen_too() -> None:
    making = Making()
    making.did(1, "write", [1, 1])
    making.did(1, "write", [1, 2])
    mine = making.did(0, "txn", [["append", 5, 1]])
    look(making, 0, mine, 1)
    assert check(making).counts["not-seen"] == 1


def test_what_was_open_when_he_wrote_need_not_be_there() -> None:
    making = Making()
    making.did(1, "write", [1, 1])
    making.begin(1, "write", [1, 2])
    mine = making.did(0, "txn", [["append", 5, 1]])
    making.end(1)
    look(making, 0, mine, 1)
    assert check(making).valid is True


def test_a_value_that_a_read_found_again_may_be_shown() -> None:
    making = Making()
    making.did(1, "write", [1, 1])
    making.did(2, "read", [1, None], [1, 1])
    mine = making.did(0, "txn", [["append", 5, 1]])
    look(making, 0, mine, 1)
    assert check(making).valid is True


def test_other_registers_say_nothing() -> None:
    making, mine = two_writes()
    look(making, 0, mine, None, key=9)
    assert check(making).valid is True


def test_after_a_write_that_was_lost_nothing_is_expected() -> None:
    making, mine = two_writes()
    look(making, 0, mine, 1)
    result = check(making, mine)
    assert (result.valid, result.counts["of-lost-histories"]) == (True, 1)


def test_nothing_is_expected_of_what_others_lost_either() -> None:
    making = Making()
    making.did(1, "write", [1, 1])
    gone = making.did(1, "write", [1, 2])
    mine = making.did(0, "txn", [["append", 5, 1]])
    look(making, 0, mine, 1)
    assert check(making).valid is False
    assert check(making, gone).valid is True


def test_what_nobody_wrote_or_what_failed_is_not_shown() -> None:
    making, mine = two_writes()
    making.did(1, "write", [1, 7], type_="fail")
    look(making, 0, mine, 7)
    look(making, 0, mine, 99)
    assert [anomaly.kind for anomaly in check(making).anomalies] == ["failed-seen", "from-nowhere"]


def test_a_look_after_no_call_cannot_be_judged() -> None:
    making = Making()
    look(making, 0, 77, None)
    with pytest.raises(Malformed, match="after what is no call"):
        check(making)
