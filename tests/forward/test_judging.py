"""The judge of histories: it accepts what is right, and finds each thing that is wrong."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from tests.forward.history import Attempt, History, Misread
from tests.forward.judging import Content, Facts, Verdict, judge, total

NOTHING = Content({}, 0, {}, {})


def good(number: int, **changes: object) -> Attempt:
    at = float(number)
    values: dict[str, object] = {"outcome": "acknowledged", "commit_s": at + 0.1, "ended_s": at + 0.2}
    return Attempt("w", "a", number, "x.db", **{"kind": "small", "began_s": at} | values | changes)  # type: ignore[arg-type]


def bad(number: int, **changes: object) -> Attempt:
    return good(number, **{"outcome": "failed", "stage": "commit", "code": "SQLITE_IOERR_WRITE"} | changes)


def holding(*numbers: int, **changes: object) -> Content:
    entries = {("w", each): numbers.count(each) for each in numbers}
    return replace(Content(entries, len(numbers), {}, {}), **changes)  # type: ignore[arg-type]


def verdict_of(*attempts: Attempt, content: Content = NOTHING, facts: Facts | None = None) -> Verdict:
    return judge(attempts, (), {"x.db": content}, facts or Facts(), limit_s=10)


def test_successes_that_are_there_and_errors_that_are_nowhere_are_right() -> None:
    verdict = verdict_of(good(1), bad(2), bad(3, stage="begin", code="SQLITE_BUSY"), good(4), content=holding(1, 4))
    assert verdict.problems == []
    assert (verdict.acknowledged, verdict.failed, verdict.unknown_there, verdict.unknown_away) == (2, 2, 0, 0)
    assert verdict.codes == {"commit SQLITE_IOERR_WRITE": 1, "begin SQLITE_BUSY": 1}


WRONG: Mapping[str, tuple[tuple[Attempt, ...], Content]] = {
    "acknowledged and lost": ((good(1), good(2)), holding(1)),
    "there more than once": ((good(1),), holding(1, 1)),
    "refused and there": ((good(1), bad(2)), holding(1, 2)),
    "refused, and read by its own program": ((bad(1, seen=True),), NOTHING),
    "the counter is not the number of rows": ((good(1),), holding(1, counter=2)),
    "rows that nobody wrote": ((good(1),), holding(1, 7)),
    "written on top of what": ((good(1),), holding(1, misplaced=((1, 5, "w", 1),))),
    "part of a transaction": ((good(1, kind="several"),), holding(1, side={("w", 1): 4})),
    "the newest bulk rows": ((good(1, kind="bulk"), good(2, kind="bulk")), holding(1, 2, bulk={"w": 1})),
    "told that the database is damaged": ((bad(1, stage="statement", code="SQLITE_CORRUPT_VTAB"),), NOTHING),
    "took longer": ((good(1, ended_s=12.0),), holding(1)),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_thing_that_is_wrong_is_found(what: str) -> None:
    attempts, content = WRONG[what]
    (problem,) = verdict_of(*attempts, content=content).problems
    assert what in problem


def test_an_error_at_a_commit_that_the_killed_node_was_busy_with_may_be_either() -> None:
    facts = Facts(killed={"a": [(2.15, 2.16)]})
    there = verdict_of(bad(2), content=holding(2), facts=facts)
    away = verdict_of(bad(2), facts=facts)
    assert there.problems == away.problems == []
    assert (there.unknown_there, there.unknown_away) == (1, 0)
    assert (away.unknown_there, away.unknown_away) == (0, 1)


@pytest.mark.parametrize(
    "attempt",
    [
        bad(2, stage="statement", commit_s=0.0),
        bad(3),
        bad(1),
        replace(bad(2), node="b"),
    ],
    ids=["before its COMMIT", "after the kill", "before the kill", "on another node"],
)
def test_a_kill_excuses_no_other_error(attempt: Attempt) -> None:
    facts = Facts(killed={"a": [(2.15, 2.16)]})
    (problem,) = verdict_of(attempt, content=holding(attempt.number), facts=facts).problems
    assert "refused and there" in problem


def test_an_error_that_the_node_calls_unknown_may_be_either() -> None:
    facts = Facts(unknown={"a": [("x.db", 2.2)]})
    assert verdict_of(bad(2), content=holding(2), facts=facts).problems == []
    elsewhere = Facts(unknown={"a": [("y.db", 2.2)], "b": [("x.db", 2.2)]})
    (problem,) = verdict_of(bad(2), content=holding(2), facts=elsewhere).problems
    assert "refused and there" in problem


def test_a_program_that_was_killed_in_its_transaction_may_be_either() -> None:
    attempt = good(1, outcome="open", commit_s=0.0, ended_s=0.0)
    assert verdict_of(attempt, content=holding(1)).unknown_there == 1
    assert verdict_of(attempt).unknown_away == 1


def test_what_is_only_in_diverged_is_counted_after_an_unplanned_takeover_and_wrong_without() -> None:
    kept = frozenset({("w", 1)})
    after = verdict_of(good(1), facts=Facts(kept=kept, unplanned=True))
    assert (after.problems, after.kept) == ([], 1)
    (problem,) = verdict_of(good(1), facts=Facts(kept=kept)).problems
    assert "nobody took over" in problem


def test_the_time_in_which_a_node_stood_still_is_not_its_programs() -> None:
    facts = Facts(paused={"a": [(0.0, 1.5), (4.0, 20.0)]})
    verdict = verdict_of(good(1, ended_s=21.0), content=holding(1), facts=facts)
    assert verdict.problems == []
    assert verdict.longest_s == pytest.approx(3.5)


def test_a_read_that_cannot_be_is_a_problem_unless_history_was_lost() -> None:
    misread = [Misread("w", "a", 1, "own row 0 times in x.db")]
    found = judge([good(1)], misread, {"x.db": holding(1)}, Facts(), limit_s=10)
    assert "own row 0 times" in found.problems[0]
    lost = Facts(kept=frozenset({("w", 1)}), unplanned=True)
    assert judge([good(1)], misread, {"x.db": NOTHING}, lost, limit_s=10).problems == []


def test_verdicts_add_up() -> None:
    one, other = verdict_of(good(1), content=holding(1)), verdict_of(good(1), bad(2, ended_s=2.3))
    whole = total([one, other])
    assert (whole.acknowledged, whole.failed, len(whole.problems)) == (2, 1, 1)
    assert whole.longest_s == pytest.approx(0.3)


LOG = """B 1 x.db small 1.000000
A 1 1.100000 1.200000
M 1 own row 0 times in x.db
B 2 x.db auto 2.000000
F 2 commit 2.100000 2.300000 SQLITE_IOERR_WRITE disk I/O error
S 2
B 3 y.db bulk 3.000000
"""


@pytest.mark.parametrize("cut", [lambda text: [text], list], ids=["at once", "by the letter"])
def test_a_log_is_read_in_any_pieces(cut: Callable[[str], list[str]]) -> None:
    history = History("w", "a")
    for piece in cut(LOG):
        history.feed(piece)
    first, second, third = history.attempts
    assert first == Attempt("w", "a", 1, "x.db", "small", 1.0, "acknowledged", 1.1, 1.2)
    assert (second.outcome, second.stage, second.code, second.seen) == ("failed", "commit", "SQLITE_IOERR_WRITE", True)
    assert (third.outcome, third.kind, history.last) == ("open", "bulk", third)
    assert history.misread == [Misread("w", "a", 1, "own row 0 times in x.db")]
    assert history.acknowledged(1.2) == []
