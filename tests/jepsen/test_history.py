import pytest

from jepsen.checkers.result import SHOWN_OF_A_KIND, Findings, Result, overall
from jepsen.history import Malformed, Operation, Type, indexed, pair
from jepsen.periods import BUSY, Period, busy, merged, periods
from tests.jepsen.making import Making, append, read


def operation(index: int, process: int | str, type_: Type, f: str = "add", time_ns: int = 0) -> Operation:
    return Operation(index, time_ns, process, type_, f)


def test_completions_find_their_invocations() -> None:
    making = Making()
    making.begin(0, "add", 1, node="a")
    making.nemesis("start-kill")
    making.begin(1, "add", 2)
    making.end(1, "info")
    making.begin(2, "add", 3)
    making.end(0, "ok", node="b")
    first, second, third = making.calls()
    assert (first.ok, first.failed, first.indeterminate, first.node) == (True, False, False, "b")
    assert (second.ok, second.failed, second.indeterminate) == (False, False, True)
    assert (third.completion, third.indeterminate, third.operations) == (None, True, (third.invocation,))
    assert not first.before(third)
    making.begin(3, "read")
    assert first.before(making.calls()[3])
    assert not second.before(making.calls()[3])


def test_a_call_writes_by_its_name_or_by_its_parts() -> None:
    making = Making()
    making.did(0, "read")
    making.did(0, "cas", ["x", [1, 2]])
    making.did(0, "txn", [read("x")])
    making.did(0, "txn", [read("x"), append("x", 1)])
    assert [call.writes for call in making.calls()] == [False, True, False, True]


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        ([operation(1, 0, "invoke"), operation(1, 0, "ok")], "stands after"),
        ([operation(0, 0, "invoke", time_ns=5), operation(1, 0, "ok", time_ns=4)], "1 ns earlier"),
        ([operation(0, 0, "ok")], "has begun nothing"),
        ([operation(0, 0, "invoke"), operation(1, 0, "invoke")], "has not ended operation 0"),
        ([operation(0, 0, "invoke"), operation(1, 0, "ok", "read")], "began add, and read ended"),
        (
            [operation(0, 0, "invoke"), operation(1, 0, "info"), operation(2, 0, "invoke")],
            "goes on after an outcome that nobody knows",
        ),
        ([operation(0, "client", "info")], "no process 'client'"),
        ([operation(0, "nemesis", "ok")], "never ok"),
        ([operation(0, -1, "invoke")], "below 0"),
    ],
)
def test_what_cannot_have_been_recorded_is_an_error(operations: list[Operation], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        pair(operations)


def test_operations_are_numbered_in_their_order() -> None:
    assert [each.index for each in indexed([operation(7, 0, "invoke"), operation(9, 0, "ok")])] == [0, 1]


def test_periods_last_from_the_beginning_of_a_fault_until_it_is_known_to_be_undone() -> None:
    making = Making()
    making.nemesis("start-partition", "halves")
    making.nemesis("failover")
    making.nemesis("stop-partition")
    making.nemesis("start-kill")
    making.observed("status", {})
    found = [(each.name, each.began_ns, each.ended_ns, each.lasting) for each in periods(making.operations)]
    ms = 10**6
    assert found == [
        ("partition", 1 * ms, 6 * ms, True),
        ("failover", 3 * ms, 4 * ms, False),
        ("kill", 7 * ms, 9 * ms, True),
    ]
    assert periods(making.operations)[0].details == "halves"
    assert periods(()) == ()


def test_merged_stretches_do_not_overlap() -> None:
    assert merged([(5, 9), (0, 2), (2, 3), (6, 7)]) == [(0, 3), (5, 9)]


def test_of_many_anomalies_all_are_counted_and_the_first_are_kept() -> None:
    findings = Findings()
    for number in range(100):
        findings.add("lost", str(number))
    result = findings.result("x", {"reads": 1}, "why")
    assert (result.valid, len(result.anomalies), result.counts) == (False, SHOWN_OF_A_KIND, {"reads": 1, "lost": 100})


def test_the_worst_verdict_counts() -> None:
    good, bad, unknown = Result("a", valid=True), Result("b", valid=False), Result("c", valid="unknown")
    assert overall([good, good]) is True
    assert overall([good, unknown]) == "unknown"
    assert overall([good, unknown, bad]) is False
    assert overall([]) == "unknown"


def test_a_machine_that_did_not_keep_up_is_no_nemesis() -> None:
    making = Making()
    making.wait(2.0)
    making.observed(BUSY, {"since_s": 1.5, "answered": True})
    making.observed("status", {"node": "a"})
    ended_ns = making.operations[0].time_ns
    assert busy(making.operations) == [Period(BUSY, ended_ns - 1_500_000_000, ended_ns)]
    assert periods(making.operations) == ()
