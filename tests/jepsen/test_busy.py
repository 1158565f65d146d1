import threading

import pytest

from jepsen.busy import EVERY_S, LATE_S, Busy, is_late
from jepsen.periods import BUSY
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("slept_s", "waited_s", "answered", "late"),
    [
        (EVERY_S, 0.0, True, False),
        (EVERY_S + LATE_S - 0.01, LATE_S, True, False),
        (EVERY_S + LATE_S + 0.01, 0.0, True, True),
        (EVERY_S, LATE_S + 0.01, True, True),
        (EVERY_S, 0.0, False, True),
    ],
)
def test_who_is_late(slept_s: float, waited_s: float, *, answered: bool, late: bool) -> None:
    assert is_late(slept_s, waited_s, answered=answered) is late


def test_an_answer_that_is_late_and_one_that_does_not_come_are_noted() -> None:
    noted: list[tuple[str, object]] = []
    never = threading.Event()

    def slow() -> str:
        never.wait(1.5 * LATE_S)
        return "at last"

    with Busy([slow, lambda: None], lambda f, value: noted.append((f, value))):
        wait_until(lambda: len({str(value)[-6:] for _, value in noted}) == 2, "both are noted", 20.0)
    assert {f for f, _ in noted} == {BUSY}
    answers = {value["answered"]: value["since_s"] for _, value in noted if isinstance(value, dict)}
    assert answers.keys() == {True, False}
    assert answers[True] >= EVERY_S + LATE_S
