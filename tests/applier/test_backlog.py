"""The order of the work for one database, whatever is asked for in between."""

from litereplica.applier.backlog import BATCH_RECORDS, Backlog
from litereplica.applier.protocol import Apply, Commit, Hold, Install, Lock, Release, Republish

CLAIM = Republish("a.db", 1, 2, 3)
LOCK = Lock("a.db", 100)
RELEASE = Release("a.db")


def records(first: int, last: int, redo_until: int = 0, *, applied: int = 0) -> Apply:
    return Apply("a.db", "/log", 0, 100, first, last, redo_until, applied)


def taken(backlog: Backlog) -> list[object]:
    found: list[object] = []
    while (work := backlog.take()) is not None:
        found.append(work)
    return found


def filled(*messages: Apply | Install | Republish | Release | Lock | Commit | Hold) -> Backlog:
    backlog = Backlog()
    for each in messages:
        assert backlog.add(each) is None
    return backlog


def test_everything_is_begun_in_the_order_in_which_it_came() -> None:
    one, two, three, four = (records(number, number) for number in (1, 2, 3, 4))
    backlog = filled(one, two, CLAIM, three, LOCK, four, RELEASE)
    assert taken(backlog) == [[one, two], CLAIM, [three], LOCK, [four], RELEASE]
    assert not backlog


def test_records_are_merged_up_to_a_limit() -> None:
    spans = [records(number, number) for number in range(1, BATCH_RECORDS + 2)]
    assert taken(filled(*spans)) == [spans[:-1], spans[-1:]]


def test_a_redo_waits_for_the_rest_but_keeps_nothing_else_waiting() -> None:
    first, rest = records(1, 2, redo_until=4), records(3, 4)
    backlog = filled(first, CLAIM)
    assert taken(backlog) == [CLAIM]
    assert backlog.add(rest) is None
    assert taken(backlog) == [[first, rest]]


def test_a_redo_whose_rest_cannot_come_any_more_is_refused_before_a_release() -> None:
    backlog = filled(records(1, 2), records(3, 4, redo_until=9))
    refusal = backlog.add(RELEASE)
    assert refusal is not None
    assert refusal[0] == 1
    assert taken(backlog) == [RELEASE]


def test_a_failure_drops_records_and_nothing_else() -> None:
    backlog = filled(records(2, 2), CLAIM, LOCK, records(3, 3))
    backlog.failed(1)
    assert backlog.add(records(4, 4)) is None  # of what was sent before the daemon had heard of it
    assert taken(backlog) == [CLAIM, LOCK]
    assert backlog.add(records(1, 1)) is None
    assert taken(backlog) == [[records(1, 1)]]


def test_after_a_release_any_transaction_may_come_also_when_one_before_it_failed() -> None:
    later = records(70, 70)
    backlog = filled(records(2, 2), RELEASE, later)
    backlog.failed(1)
    assert taken(backlog) == [RELEASE, [later]]


def test_missing_records_are_told_once_until_they_come() -> None:
    backlog = filled(records(1, 1))
    refusal = backlog.add(records(3, 3))
    assert refusal is not None
    assert refusal[0] == 2
    assert backlog.add(records(4, 4)) is None
    assert backlog.add(records(2, 4)) is None
    assert taken(backlog) == [[records(1, 1), records(2, 4)]]


def test_an_install_takes_the_place_of_records_and_of_nothing_else() -> None:
    install = Install("a.db", "/pages", 4096, 3, 50)
    backlog = filled(records(1, 1), CLAIM, install, records(51, 51))
    assert taken(backlog) == [CLAIM, install, [records(51, 51)]]


def test_the_newest_of_several_claims_counts() -> None:
    newest = CLAIM._replace(frames=9)
    assert taken(filled(CLAIM, newest)) == [newest]


def test_locks_that_nobody_wants_any_more_are_dropped() -> None:
    backlog = filled(records(1, 1), LOCK, RELEASE)
    backlog.drop_locks()
    assert taken(backlog) == [[records(1, 1)], RELEASE]


def test_records_may_follow_what_an_application_of_this_node_has_committed() -> None:
    backlog = filled(records(1, 2))
    assert taken(backlog) == [[records(1, 2)]]
    # 3 and 4 were committed here: nobody sends them.
    after = records(5, 5, applied=4)
    assert backlog.add(after) is None
    assert taken(backlog) == [[after]]
    assert backlog.add(records(7, 7, applied=5)) is not None
    # Of what was sent before the daemon had heard of the failure:
    assert backlog.add(records(8, 8, applied=5)) is None
    assert not backlog
    assert backlog.add(records(6, 6, applied=5)) is None
    assert taken(backlog) == [[records(6, 6, applied=5)]]


def test_what_is_applied_is_laid_over_again_when_the_node_asks_for_it() -> None:
    # As after a promotion that failed, of a database that was not released.
    backlog = filled(records(1, 2))
    assert taken(backlog) == [[records(1, 2)]]
    # Of what has been sent twice before the node had heard of the first one, nothing.
    assert backlog.add(records(2, 2, applied=1)) is None
    assert not backlog
    overlay = records(2, 2, applied=2)
    assert backlog.add(overlay) is None
    assert backlog.overlay() == 2
    # It is published at once: nothing that comes later is missing.
    assert taken(backlog) == [[overlay._replace(redo_until=2)]]
    after = records(3, 3, applied=2)
    assert backlog.add(after) is None
    assert taken(backlog) == [[after]]


def test_what_is_sent_again_with_more_takes_the_place_of_what_waits() -> None:
    # A promotion that is given up has everything sent again that was not applied, and some of it may still wait.
    again = records(2, 9)
    backlog = filled(records(1, 1), records(2, 4), records(5, 7), again)
    assert taken(backlog) == [[records(1, 1), again._replace(redo_until=7)]]


def test_what_does_not_follow_is_a_transaction_of_its_own() -> None:
    waits, again = records(1, 5), records(3, 7)
    assert taken(filled(waits, again)) == [[waits], [again._replace(redo_until=5)]]
    before, after = records(1, 2), records(5, 6, applied=4)
    assert taken(filled(before, after)) == [[before], [after]]


def test_commits_and_holds_can_be_taken_back() -> None:
    commit, hold = Commit("a.db", 1, "/spool", 10, 100), Hold("a.db", 2, 100)
    backlog = filled(records(1, 1), commit, LOCK, hold)
    assert backlog.take_commits() == [commit]
    assert backlog.take_holds() == [hold]
    assert taken(backlog) == [[records(1, 1)], LOCK]
