from dataclasses import replace

import pytest

from jepsen.checkers import final_state as checker
from jepsen.checkers.result import Result
from jepsen.ending import DatabaseEnd, Ending, Kept, NodeEnd
from tests.jepsen.making import Making, append, read

SOUND = DatabaseEnd("d", 7, "00000000000000aa", "00000000000000aa", "f00d", 4096)


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


def nodes(*databases: DatabaseEnd) -> Ending:
    return Ending(tuple(NodeEnd(name, (database,)) for name, database in zip("abc", databases, strict=False)))


def test_nodes_that_are_equal_and_sound_are_valid() -> None:
    result = checker.check((), nodes(SOUND, SOUND, SOUND), nodes=["a", "b", "c"])
    assert (result.valid, result.counts["nodes"], result.counts["databases"]) == (True, 3, 1)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (replace(SOUND, digest="beef"), {"bytes-differ"}),
        (replace(SOUND, size_bytes=8192), {"bytes-differ"}),
        (replace(SOUND, txid=6), {"positions-differ"}),
        (replace(SOUND, checksum="00000000000000ab"), {"positions-differ", "checksum"}),
        (replace(SOUND, computed="00000000000000ab"), {"checksum"}),
        (replace(SOUND, integrity=("row 1 missing from index i",)), {"integrity"}),
        (replace(SOUND, integrity=()), {"integrity"}),
        (replace(SOUND, name="e"), {"missing-database"}),
    ],
)
def test_each_difference_has_a_name(other: DatabaseEnd, expected: set[str]) -> None:
    result = checker.check((), nodes(SOUND, other, SOUND))
    assert kinds(result) == expected
    assert result.valid is False


def test_a_node_that_cannot_be_looked_at_is_an_anomaly_and_is_not_compared() -> None:
    ending = Ending((NodeEnd("a", (SOUND,)), NodeEnd("b", problem="does not answer since 40 s")))
    result = checker.check((), ending, nodes=["a", "b", "c"])
    assert [anomaly.text for anomaly in result.anomalies] == [
        "c took part, and nothing was found out about it",
        "b: does not answer since 40 s",
    ]


def test_without_any_node_nothing_is_known() -> None:
    assert checker.check((), Ending()).valid == "unknown"


def test_acknowledged_writes_are_there_or_listed() -> None:
    making = Making()
    there = making.did(0, "add", 1, node="a")
    listed = making.did(0, "add", 2, node="a")
    lost = making.did(0, "txn", [append("x", 1)], node="a")
    making.did(0, "txn", [read("x")], node="a")
    failed = making.did(0, "add", 3, type_="fail", node="a")
    recovered = making.did(0, "add", 4, type_="info", node="a")
    making.did(1, "add", 5, type_="info", node="a")
    kept = Kept("1", "d", 5, 6, 0, (listed, there))
    ending = Ending((NodeEnd("a", (SOUND,), (kept,)),), present=(there, recovered))
    result = checker.check(making.calls(), ending)
    assert kinds(result) == {"lost"}
    assert [anomaly.operations[0].index for anomaly in result.anomalies] == [lost]
    assert (result.counts["lost-and-listed"], result.counts["recovered"], result.counts["writes"]) == (1, 1, 6)
    result = checker.check(making.calls(), replace(ending, present=(there, lost, recovered)))
    assert result.valid is True
    result = checker.check(making.calls(), replace(ending, present=(there, lost)), replication="sync")
    assert kinds(result) == {"lost-in-sync-mode"}
    result = checker.check(making.calls(), replace(ending, present=(there, lost, failed, 99)))
    assert kinds(result) == {"failed-present", "from-nowhere"}
    assert checker.check(making.calls(), replace(ending, present=None)).valid is True


def test_a_failed_write_must_not_be_kept_aside_either() -> None:
    making = Making()
    failed = making.did(0, "add", 1, type_="fail", node="a")
    ending = Ending((NodeEnd("a", (SOUND,), (Kept("1", "d", 5, 6, 0, (failed,)),)),), present=())
    assert kinds(checker.check(making.calls(), ending)) == {"failed-present"}


def test_only_what_the_cluster_does_not_have_is_lost() -> None:
    entry = Kept("1", "d", 5, 6, 0, (1, 2))
    assert Ending((NodeEnd("a", (), (entry,)),), present=(2, 3)).kept == {1}
    assert Ending((NodeEnd("a", (), (entry,)),)).kept == {1, 2}
