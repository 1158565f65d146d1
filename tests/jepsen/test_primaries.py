from jepsen.checkers import primaries as checker
from jepsen.checkers.result import Result
from jepsen.ending import Role, RoleChange
from tests.jepsen.making import STEP_NS, Making


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


def change(at: int, node: str, epoch: int, role: Role = "primary") -> RoleChange:
    return RoleChange(at * STEP_NS, node, role, epoch)


def test_one_after_the_other_is_right() -> None:
    roles = [change(0, "a", 1), change(5, "a", 1, "replica"), change(7, "b", 2), change(9, "a", 2, "replica")]
    result = checker.check((), roles)
    assert (result.valid, result.counts["reigns"], result.counts["epochs"]) == (True, 2, 2)
    first, second = checker.reigns(roles)
    assert (first.node, first.ended_ns, second.node, second.ended_ns) == ("a", 5 * STEP_NS, "b", None)


def test_what_is_said_again_changes_nothing_and_an_epoch_may_be_taken_up_again_by_its_node() -> None:
    roles = [change(0, "a", 1), change(1, "a", 1), change(2, "a", 1, "replica"), change(3, "a", 1), change(4, "b", 2)]
    result = checker.check((), roles)
    assert (result.valid, result.counts["reigns"], result.counts["epochs"]) == (True, 3, 2)
    assert [(each.node, each.began_ns // STEP_NS) for each in checker.reigns(roles)] == [("a", 0), ("a", 3), ("b", 4)]


def test_two_nodes_with_one_epoch() -> None:
    assert kinds(checker.check((), [change(0, "a", 1), change(9, "b", 1)])) == {"two-primaries"}


def test_a_node_whose_epoch_goes_back() -> None:
    roles = [change(0, "a", 5), change(1, "a", 5, "replica"), change(2, "a", 4)]
    assert kinds(checker.check((), roles)) == {"epoch-went-back"}


def test_an_old_primary_that_still_acknowledges() -> None:
    making = Making()
    making.did(0, "add", 1, node="a")
    making.did(0, "add", 2, node="b")
    making.did(1, "add", 3, node="a")
    roles = [change(0, "a", 1), change(3, "b", 2)]
    result = checker.check(making.calls(), roles)
    assert kinds(result) == {"late-acknowledgement"}
    assert [operation.index for operation in result.anomalies[0].operations] == [2, 3, 4, 5]


def test_what_began_before_a_change_may_end_after_it() -> None:
    making = Making()
    making.begin(1, "add", 3, node="a")
    making.did(0, "add", 2, node="b")
    making.end(1, node="a")
    assert checker.check(making.calls(), [change(0, "a", 1), change(2, "b", 2)]).valid is True


def test_what_a_replica_passed_on_is_of_no_epoch_of_its_own() -> None:
    making = Making()
    making.wait(1)
    making.did(0, "add", 1, node="b")
    making.did(0, "add", 2, node="a")
    roles = [change(0, "a", 1), change(1, "a", 1, "replica"), change(2, "b", 2)]
    result = checker.check(making.calls(), roles)
    assert (result.valid, result.counts["elsewhere"]) == (True, 1)


def test_who_forwards_may_have_passed_on_what_began_before_a_change() -> None:
    making = Making()
    making.did(0, "add", 1, node="b")
    making.begin(1, "add", 2, node="a")
    making.wait(1)
    at = making.now_ns // STEP_NS
    making.end(1, node="a")
    roles = [change(0, "a", 1), change(0, "b", 2), change(at, "a", 2, "replica")]
    assert kinds(checker.check(making.calls(), roles)) == {"late-acknowledgement"}
    result = checker.check(making.calls(), roles, forwards=True)
    assert (result.valid, result.counts["elsewhere"]) == (True, 1)
    # Acknowledged before it is told of the change, it was the primary's own.
    roles = [change(0, "a", 1), change(0, "b", 2), change(at + 9, "a", 2, "replica")]
    assert kinds(checker.check(making.calls(), roles, forwards=True)) == {"late-acknowledgement"}


def test_without_a_primary_nothing_is_known() -> None:
    assert checker.check((), []).valid == "unknown"
