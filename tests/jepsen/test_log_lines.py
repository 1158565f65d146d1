import pytest

from jepsen.checkers import log_lines as checker
from jepsen.checkers.log_lines import Expected
from jepsen.checkers.result import Result
from jepsen.ending import LogLine
from jepsen.periods import Period

S = 10**9
KILL = Period("kill", 10 * S, 12 * S)


def line(at_s: float, event: str = "lease_lost", level: str = "warning", text: str = "") -> LogLine:
    return LogLine(round(at_s * S), "a", level, event, text or f"{event} why=x")


def check(*lines: LogLine, expected: tuple[Expected, ...] = ()) -> Result:
    return checker.check(lines, expected, [KILL])


def test_lines_below_warning_are_nobodys_business() -> None:
    result = check(line(1, level="info"), line(1, level="debug"))
    assert (result.valid, result.counts) == (True, {"lines": 2, "grave": 0})


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
def test_an_unexpected_line_is_told_once_for_each_node_and_event(level: str) -> None:
    result = check(line(1, level=level), line(2, level=level), line(3, "other", level))
    assert (result.counts["unexpected-line"], result.counts["grave"]) == (2, 3)
    assert result.anomalies[0].text.startswith(f"a logged lease_lost ({level}) 2 times, first 1.000 s after the start")


@pytest.mark.parametrize(("at_s", "valid"), [(9, False), (10, True), (12, True), (42, True), (42.5, False)])
def test_an_expectation_may_hold_only_under_a_nemesis_and_for_a_while_after_it(at_s: float, valid: bool) -> None:
    expected = Expected("lease_lost", "its holder is dead", during=frozenset({"kill"}))
    assert check(line(at_s), expected=(expected,)).valid is valid


def test_an_expectation_is_of_an_event_and_up_to_a_level() -> None:
    expected = Expected("lease_lost", "always so")
    assert check(line(1), expected=(expected,)).valid is True
    assert check(line(1, level="error"), expected=(expected,)).valid is False
    assert check(line(1, "other"), expected=(expected,)).valid is False


@pytest.mark.parametrize(("text", "valid"), [("no answer within 0.5 s", True), ("not ours any more", False)])
def test_an_expectation_may_be_of_some_words(text: str, valid: bool) -> None:
    expected = Expected("lease_lost", "a busy machine", saying=("no answer within", "in time"))
    assert check(line(1, text=f"lease_lost reason={text!r}"), expected=(expected,)).valid is valid


def test_a_traceback_is_never_expected() -> None:
    expected = Expected("lease_lost", "always so", level="critical")
    result = check(line(1, level="info", text=f"x\n{checker.TRACEBACK}\n…"), expected=(expected,))
    assert [anomaly.kind for anomaly in result.anomalies] == ["traceback"]


def test_without_a_log_nothing_is_known() -> None:
    assert check().valid == "unknown"
