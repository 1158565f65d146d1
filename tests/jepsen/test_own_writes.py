import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import own_writes as checker
from jepsen.checkers.result import Result
from jepsen.description import Description
from jepsen.ending import Ending, Kept, LogLine, NodeEnd
from jepsen.history import Malformed, Type
from jepsen.judge import judge
from jepsen.lines import Record
from tests.jepsen.making import Making


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


def wrote(making: Making, value: int, txid: int, type_: Type = "ok", process: int = 0) -> int:
    asked: dict[str, Any] = {"key": "k", "value": value}
    return making.did(process, "write", asked, {**asked, "txid": txid} if type_ == "ok" else asked, type_, node="a")


def found(making: Making, value: int | None, after: int, process: int = 1) -> int:
    asked: dict[str, Any] = {"key": "k", "after": after}
    return making.did(process, "read", asked, {**asked, "value": value}, node="b")


def test_what_was_written_at_the_txid_is_seen_or_something_newer() -> None:
    for value in (1, 2):
        making = Making()
        wrote(making, 1, 10)
        wrote(making, 2, 11)
        found(making, value, 10)
        assert checker.check(making.calls()).valid is True


def test_what_was_begun_after_the_read_is_not_expected_though_it_has_the_txid() -> None:
    """Of another history: the node that read has been given back a directory, and nothing says that it went back."""
    making = Making()
    wrote(making, 1, 10)
    found(making, 1, 12)
    wrote(making, 2, 11)
    assert checker.check(making.calls()).valid is True


@pytest.mark.parametrize(
    ("value", "after", "kind"),
    [(1, 11, "not-seen"), (None, 10, "not-seen"), (7, 10, "from-nowhere"), (3, 10, "failed-seen")],
)
def test_what_must_not_be_seen(value: int | None, after: int, kind: str) -> None:
    making = Making()
    wrote(making, 1, 10)
    wrote(making, 2, 11)
    wrote(making, 3, 0, "fail")
    found(making, value, after)
    assert kinds(checker.check(making.calls())) == {kind}


def test_before_the_first_write_there_is_nothing() -> None:
    making = Making()
    wrote(making, 1, 10)
    found(making, None, 9)
    assert checker.check(making.calls()).valid is True


def test_a_value_from_the_future() -> None:
    making = Making()
    found(making, 1, 0)
    wrote(making, 1, 10)
    assert kinds(checker.check(making.calls())) == {"from-future"}


def test_a_write_without_an_answer_may_be_seen_at_any_time() -> None:
    making = Making()
    wrote(making, 1, 0, "info")
    wrote(making, 2, 11, process=2)
    found(making, 1, 11)
    result = checker.check(making.calls())
    assert (result.valid, result.counts["reads-of-indeterminate"]) == (True, 1)


def test_what_was_kept_aside_is_not_expected() -> None:
    making = Making()
    wrote(making, 1, 10)
    lost = wrote(making, 2, 11)
    found(making, 1, 11)
    assert kinds(checker.check(making.calls())) == {"not-seen"}
    assert checker.check(making.calls(), lost=[lost]).valid is True


def test_a_position_that_is_later_than_the_write_accuses_nobody() -> None:
    making = Making()
    making.begin(0, "write", {"key": "k", "value": 1})
    making.begin(2, "write", {"key": "k", "value": 2})
    making.end(2, "ok", {"key": "k", "value": 2, "txid": 6})
    making.end(0, "ok", {"key": "k", "value": 1, "txid": 10})
    found(making, 2, 10)
    assert checker.check(making.calls()).valid is True


@pytest.mark.parametrize(
    ("f", "value"),
    [("write", None), ("write", {"key": "k", "value": 1}), ("read", {"key": "k", "value": 1}), ("read", {"key": []})],
)
def test_what_is_no_such_call_is_an_error(f: str, value: object) -> None:
    making = Making()
    making.did(0, f, value)
    with pytest.raises(Malformed, match="operation"):
        checker.check(making.calls())


def test_a_value_that_is_written_twice_is_an_error() -> None:
    making = Making()
    wrote(making, 1, 1)
    wrote(making, 1, 2)
    with pytest.raises(Malformed, match="written before"):
        checker.check(making.calls())


def test_without_a_read_nothing_is_known() -> None:
    assert checker.check(()).valid == "unknown"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_a_replica_that_waits_is_valid_and_one_that_does_not_is_found(seed: int) -> None:
    numbers = random.Random(seed)
    making = Making()
    log: list[int] = []
    for number in range(60):
        if numbers.random() < 0.5:
            log.append(number)
            wrote(making, number, len(log))
        elif log:
            after = numbers.randint(1, len(log))
            found(making, log[numbers.randint(after, len(log)) - 1], after)
    if len(log) < 2:
        return
    assert checker.check(making.calls()).valid is not False
    found(making, log[numbers.randrange(len(log) - 1)], len(log))
    assert kinds(checker.check(making.calls())) == {"not-seen"}


def test_a_node_that_is_killed_before_it_has_gone_back_shows_its_lost_history_until_it_has() -> None:
    making = Making()
    lost = making.did(0, "write", {"key": 1, "value": 1}, {"key": 1, "value": 1, "txid": 9}, node="a")
    making.did(2, "write", {"key": 1, "value": 2}, {"key": 1, "value": 2, "txid": 7}, node="b")
    kept_ns = making.now_ns
    making.wait(60)
    making.did(1, "read", {"key": 1, "after": 8}, {"key": 1, "after": 8, "value": 1}, node="a")
    gone_ns = making.now_ns

    def judged(*log: LogLine) -> Result:
        ending = Ending((NodeEnd("a", diverged=(Kept("x", "app.db", 6, 9, kept_ns, (lost,)),)),), log=log)
        record = Record(tuple(making.operations), Description("own-writes"), ending)
        found = judge(record, clock=lambda: 0.0)
        return next(each for each in found.results if each.checker == "own-writes")

    went_back = LogLine(gone_ns, "a", "info", "went_back", "info went_back database=app.db position=6/0")
    assert judged(went_back).valid is True
    assert kinds(judged()) == {"not-seen"}
    for other in (
        replace(went_back, node="b"),
        replace(went_back, event="replica_went_back"),
        replace(went_back, text="info went_back database=another.db position=6/0"),
        replace(went_back, time_ns=kept_ns - 1),
        replace(went_back, time_ns=kept_ns + 1),
    ):
        assert kinds(judged(other)) == {"not-seen"}
    # Only the first time counts: it has gone back then.
    assert kinds(judged(replace(went_back, time_ns=kept_ns + 1), went_back)) == {"not-seen"}


def test_a_node_shows_its_lost_history_until_it_has_put_it_aside() -> None:
    making = Making()
    lost = making.did(0, "write", {"key": 1, "value": 1}, {"key": 1, "value": 1, "txid": 9}, node="a")
    making.did(2, "write", {"key": 1, "value": 2}, {"key": 1, "value": 2, "txid": 7}, node="b")
    making.did(1, "read", {"key": 1, "after": 8}, {"key": 1, "after": 8, "value": 1}, node="a")
    entry = Kept("x", "app.db", 6, 9, making.now_ns + 1, (lost,))
    calls = making.calls()
    assert kinds(checker.check(calls)) == {"not-seen"}
    assert checker.check(calls, lost=[lost], diverged={"a": [entry]}).counts["reads-of-lost-histories"] == 1
    assert checker.check(calls, lost=[lost], diverged={"a": [entry]}).valid is True
    # Another node has put nothing aside, nor was what the entry says waited for.
    assert kinds(checker.check(calls, lost=[lost], diverged={"b": [entry]})) == {"not-seen"}
    before = Kept("x", "app.db", 8, 9, making.now_ns + 1, (lost,))
    assert kinds(checker.check(calls, lost=[lost], diverged={"a": [before]})) == {"not-seen"}
    # Later it shows what the cluster has.
    making.wait(60)
    making.did(1, "read", {"key": 1, "after": 8}, {"key": 1, "after": 8, "value": 1}, node="a")
    assert kinds(checker.check(making.calls(), lost=[lost], diverged={"a": [entry]})) == {"not-seen"}
