"""Transactions of a replica's applications in WAL mode: held, committed elsewhere, refused, and what comes between."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.twin_node import TwinNode
from tests.support.sql import Session, SqlError, integrity, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)


@pytest.fixture
def node(twin_node: TwinNode) -> TwinNode:
    """A replica with a database in WAL mode, made there, with a table t."""
    node = twin_node
    run_sql(node.path(), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    node.seen()
    return node


@pytest.fixture
def session(node: TwinNode) -> Iterator[Session]:
    with Session(node.path()) as session:
        yield session


def ids(node: TwinNode) -> list[int]:
    """As somebody sees it who opens the database now."""
    return [row[0] for row in run_sql(node.path(), "SELECT id FROM t ORDER BY id", mode="ro")]


def txid(node: TwinNode) -> int:
    return int(node.position().split("/")[0], 16)


def commits(node: TwinNode) -> list[list[object]]:
    return [each for each in node.seen() if each[0] == "commit"]


def assert_sound(node: TwinNode) -> None:
    """Readers see what is logged, and the file and the log agree."""
    node.wait_applied()
    assert integrity(node.path()) == "ok"
    verified = node.verify()
    assert verified["sound"], verified


def test_a_commit_is_made_elsewhere_once_and_seen_here_at_once(node: TwinNode, session: Session) -> None:
    before = txid(node)
    for number in range(20):
        session.run("INSERT INTO t VALUES (?, 'x')", number)
        assert ids(node) == list(range(number + 1))
    assert txid(node) == before + 20
    assert len(commits(node)) == 20
    assert_sound(node)


@pytest.mark.parametrize("cache", [-2000, 10])
def test_a_commit_of_many_pages(node: TwinNode, session: Session, cache: int) -> None:
    session.run(f"PRAGMA cache_size={cache}")
    before = txid(node)
    session.run("BEGIN")
    for number in range(300):
        session.run("INSERT INTO t VALUES (?, randomblob(10000))", number)
    session.run("COMMIT")
    assert txid(node) == before + 1
    assert ids(node) == list(range(300))
    assert_sound(node)


def test_a_rollback_sends_nothing(node: TwinNode, session: Session) -> None:
    session.run("PRAGMA cache_size=10")
    for _ in range(3):
        session.run("BEGIN")
        for number in range(100):
            session.run("INSERT INTO t VALUES (?, randomblob(4000))", number)
        session.run("ROLLBACK")
    assert commits(node) == []
    session.run("INSERT INTO t VALUES (1, 'x')")
    assert ids(node) == [1]
    assert_sound(node)


@pytest.mark.parametrize("cache", [-2000, 5])
def test_savepoints(node: TwinNode, session: Session, cache: int) -> None:
    session.run(f"PRAGMA cache_size={cache}")
    refused = False
    session.run("BEGIN")
    session.run("INSERT INTO t VALUES (1, 'kept')")
    for number in range(2, 60):
        session.run("INSERT INTO t VALUES (?, randomblob(4000))", number)
    session.run("SAVEPOINT one")
    session.run("UPDATE t SET v = randomblob(4000)")
    session.run("ROLLBACK TO one")
    session.run("INSERT INTO t VALUES (100, 'too')")
    try:
        session.run("COMMIT")
    except SqlError:  # SQLite 3.40 forgets to complete the frames: refused, as on a primary
        refused = True
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
    assert refused == (cache == 5) or not refused
    assert ids(node) == ([] if refused else [*range(1, 60), 100])
    session.run("INSERT INTO t VALUES (200, 'x')")
    assert ids(node)[-1] == 200
    assert_sound(node)


@pytest.mark.parametrize("how", ["refuse", "unknown"])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_refused_commit_is_rolled_back_and_the_next_one_takes_its_place(
    node: TwinNode, session: Session, how: str, rows: int
) -> None:
    session.run("INSERT INTO t VALUES (1, 'before')")
    for attempt in range(3):
        node.answer(how)
        session.run("BEGIN")
        for number in range(rows):
            session.run("INSERT INTO t VALUES (?, randomblob(3000))", 100 + number)
        with pytest.raises(SqlError) as error:
            session.run("COMMIT")
        assert error.value.code == "SQLITE_IOERR_WRITE"
        assert ids(node) == list(range(1, attempt + 2))
        node.answer("commit")
        session.run("INSERT INTO t VALUES (?, 'after')", attempt + 2)
    assert session.run("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,), (4,)]
    assert_sound(node)


def test_nobody_sees_a_commit_before_it_is_made_elsewhere(node: TwinNode, session: Session) -> None:
    with Session(node.path(), mode="ro") as reader:
        assert reader.run("SELECT id FROM t") == []
        node.answer("hold")
        session.send("INSERT INTO t VALUES (1, 'x')")
        node.wait_seen("commit")
        assert reader.run("SELECT id FROM t") == []
        node.go()
        session.receive()
        assert reader.run("SELECT id FROM t") == [(1,)]
    assert_sound(node)


def test_another_transaction_first_makes_it_stale_and_is_applied(node: TwinNode, session: Session) -> None:
    node.answer("other")
    with pytest.raises(SqlError):
        session.run("INSERT INTO t VALUES (1, 'x')")
    node.answer("commit")
    node.wait_applied()
    assert ids(node) == [1]  # the twin's other node has committed the same pages
    session.run("INSERT INTO t VALUES (2, 'x')")
    assert ids(node) == [1, 2]
    assert_sound(node)


def test_what_the_primary_adds_is_laid_over_it(node: TwinNode, session: Session) -> None:
    node.answer("bump")
    for number in range(5):
        session.run("INSERT INTO t VALUES (?, 'x')", number)
        node.wait_applied()
    assert ids(node) == [0, 1, 2, 3, 4]
    node.answer("commit")
    session.run("INSERT INTO t VALUES (7, 'x')")
    assert ids(node) == [0, 1, 2, 3, 4, 7]
    assert_sound(node)


def test_a_commit_that_is_known_too_late_is_applied_once(node: TwinNode, session: Session) -> None:
    node.answer("late")
    with pytest.raises(SqlError):
        session.run("INSERT INTO t VALUES (1, 'x')")
    node.answer("commit")
    wait_until(lambda: ids(node) == [1], "it is applied")
    session.run("INSERT INTO t VALUES (2, 'x')")
    assert ids(node) == [1, 2]
    assert_sound(node)


def test_transactions_of_applications_and_of_the_applier_in_turn(node: TwinNode, session: Session) -> None:
    expected = []
    for number in range(0, 60, 2):
        node.answer("other")  # applied by the applier
        with pytest.raises(SqlError):
            session.run("INSERT INTO t VALUES (?, randomblob(1000))", number)
        node.answer("commit")
        node.wait_applied()
        session.run("INSERT INTO t VALUES (?, randomblob(5000))", number + 1)
        expected += [number, number + 1]
    assert ids(node) == expected
    assert_sound(node)


def test_two_writers_in_turn(node: TwinNode, session: Session) -> None:
    with Session(node.path()) as other:
        for number in range(30):
            (session, other)[number % 2].run("INSERT INTO t VALUES (?, randomblob(2000))", number)
        session.send("INSERT INTO t VALUES (100, 'x')", times=1)
        other.send("INSERT INTO t VALUES (101, 'x')", times=1)
        session.receive()
        other.receive()
    assert ids(node) == [*range(30), 100, 101]
    assert_sound(node)


def test_the_wal_is_folded_and_begins_again(node: TwinNode, session: Session) -> None:
    session.run("PRAGMA wal_autocheckpoint=20")
    for number in range(300):
        session.run("INSERT INTO t VALUES (?, randomblob(3000))", number)
        if number % 50 == 25:
            node.answer("other")
            with pytest.raises(SqlError):
                session.run("INSERT INTO t VALUES (?, randomblob(3000))", 1000 + number)
            node.answer("commit")
            node.wait_applied()
    assert len(ids(node)) == 306
    assert node.path(f"{node.database}-wal").stat().st_size < 1 << 20
    assert_sound(node)


@pytest.mark.parametrize("kind", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_checkpoints_of_applications(node: TwinNode, session: Session, kind: str) -> None:
    for number in range(30):
        session.run("INSERT INTO t VALUES (?, randomblob(3000))", number)
        if number % 3 == 0:
            assert session.run(f"PRAGMA wal_checkpoint({kind})")[0][0] == 0
    session.run("DELETE FROM t WHERE id > 3")
    session.run("VACUUM")
    assert session.run(f"PRAGMA wal_checkpoint({kind})")[0][0] == 0
    session.run("INSERT INTO t VALUES (100, 'x')")
    assert ids(node) == [0, 1, 2, 3, 100]
    assert_sound(node)


def test_an_fsync_after_a_commit_is_asked_for_and_then_expected(node: TwinNode, session: Session) -> None:
    session.run("PRAGMA synchronous=FULL")
    for number in range(3):
        session.run("INSERT INTO t VALUES (?, 'x')", number)
    durable = [each[3] for each in node.seen() if each[0] == "commit"]
    assert durable[1:] == [True, True]
    session.run("PRAGMA synchronous=NORMAL")
    for number in range(3, 6):
        session.run("INSERT INTO t VALUES (?, 'x')", number)
    seen = node.seen()
    assert [each[3] for each in seen if each[0] == "commit"] == [True, False, False]
    assert [each for each in seen if each[0] == "make_durable"] == []


@pytest.mark.parametrize("how", ["commit", "refuse"])
@pytest.mark.parametrize("row", [2, 3, 7])
def test_a_writer_that_is_killed_while_its_commit_is_held(node: TwinNode, how: str, row: int) -> None:
    """Somebody reads the WAL meanwhile, so that the kernel has what is in it."""
    writer = Session(node.path())
    for number in range(1, row):
        writer.run("INSERT INTO t VALUES (?, 'x')", number)
    node.seen()
    node.answer("hold")
    writer.send("INSERT INTO t VALUES (?, 'x')", row)
    node.wait_seen("commit")
    wal = os.open(node.path(f"{node.database}-wal"), os.O_RDONLY)
    while os.read(wal, 1 << 20):
        pass
    os.kill(writer.pid, signal.SIGKILL)
    time.sleep(0.1)
    node.go(how)
    os.close(wal)
    writer.kill()
    node.answer("commit")
    expected = list(range(1, row + (how == "commit")))
    wait_until(lambda: ids(node) == expected, "what was committed is seen, and nothing else")
    with Session(node.path()) as other:
        wait_until(lambda: _succeeds(other, "INSERT INTO t VALUES (30, 'x')"), "the next one commits")
    assert ids(node) == [*expected, 30]
    assert_sound(node)


def _succeeds(session: Session, sql: str) -> bool:
    try:
        session.run(sql)
    except SqlError:  # it finds what the dead writer did not publish, once
        return False
    return True


@pytest.mark.parametrize("how", ["stale", "killed"])
def test_the_wal_never_becomes_shorter_by_itself(node: TwinNode, session: Session, how: str) -> None:
    """A kernel that is told of a shorter file zeroes what is on its way to us behind its end."""
    wal = node.path(f"{node.database}-wal")
    session.run("INSERT INTO t VALUES (1, randomblob(40000))")
    session.run("PRAGMA wal_checkpoint(TRUNCATE)")
    with Session(node.path()) as writer:
        writer.run("PRAGMA cache_size=5")
        writer.run("BEGIN")
        for number in range(10):
            writer.run("INSERT INTO t VALUES (?, randomblob(3000))", 100 + number)
        before = wal.stat().st_size
        assert before > 5 * 4096
        if how == "killed":
            os.kill(writer.pid, signal.SIGKILL)
            node.arrive()
        else:
            node.arrive()  # while the transaction keeps the applier away
            with pytest.raises(SqlError):
                writer.run("COMMIT")
        node.wait_applied()
        assert wal.stat().st_size >= before
    assert session.run("SELECT id FROM t") == [(1,)]
    assert wal.read_bytes()[before - 4096 : before].count(0) == 4096  # it is of no transaction any more
    session.run("INSERT INTO t VALUES (2, 'x')")
    assert ids(node) == [1, 2]
    assert_sound(node)


def test_writers_killed_at_any_moment_leave_whole_transactions(node: TwinNode) -> None:
    for round_number in range(12):
        writer = Session(node.path())
        writer.run("PRAGMA cache_size=10")
        writer.send("INSERT INTO t (v) VALUES (randomblob(9000))", times=10_000)
        time.sleep(0.02 + 0.007 * round_number)
        writer.kill()
    wait_until(lambda: len(ids(node)) > 12, "some were committed")
    with Session(node.path()) as session:
        wait_until(lambda: _succeeds(session, "INSERT INTO t VALUES (1000000, 'x')"), "the next one commits")
    count = txid(node)
    assert len(ids(node)) >= count - 12
    assert_sound(node)


@pytest.mark.usefixtures("changes_role")
def test_a_held_commit_is_made_here_when_this_node_becomes_the_primary(node: TwinNode, session: Session) -> None:
    session.run("INSERT INTO t VALUES (1, 'x')")
    before = txid(node)
    node.answer("hold")
    session.run("PRAGMA cache_size=10")
    session.run("BEGIN")
    for number in range(2, 50):
        session.run("INSERT INTO t VALUES (?, randomblob(5000))", number)
    node.seen()
    session.send("COMMIT")
    node.wait_seen("commit")
    node.lead()
    session.receive()
    assert txid(node) == before + 1
    session.run("INSERT INTO t VALUES (100, 'x')")
    assert ids(node) == [*range(1, 50), 100]
    node.demote()
    node.answer("commit")
    session.run("INSERT INTO t VALUES (101, 'x')")
    assert ids(node) == [*range(1, 50), 100, 101]
    assert_sound(node)


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize("rows", [1, 60])
def test_a_transaction_that_begins_in_one_role_commits_in_the_other(
    node: TwinNode, session: Session, rows: int
) -> None:
    session.run("PRAGMA cache_size=10")
    for epoch, change in enumerate((node.lead, node.demote) * 2):
        session.run("BEGIN")
        for number in range(rows):
            session.run("INSERT INTO t VALUES (?, randomblob(4000))", epoch * 1000 + number)
        change()
        for number in range(rows):
            session.run("INSERT INTO t VALUES (?, randomblob(4000))", epoch * 1000 + 500 + number)
        session.run("COMMIT")
    assert len(ids(node)) == 8 * rows
    assert_sound(node)


def test_a_problem_is_said_before_anything_is_sent(node: TwinNode, session: Session) -> None:
    node.tell("wrong", reason="the lock was lost")
    with pytest.raises(SqlError):
        session.run("INSERT INTO t VALUES (1, 'x')")
    assert commits(node) == []
    assert node.log_lines("commits_not_accepted")
    node.tell("wrong", reason=None)
    session.run("INSERT INTO t VALUES (1, 'x')")
    assert ids(node) == [1]


def test_wal_mode_is_not_left_on_a_replica(node: TwinNode, session: Session) -> None:
    session.run("INSERT INTO t VALUES (1, 'x')")
    with contextlib.suppress(SqlError):
        session.run("PRAGMA journal_mode=DELETE")
    with Session(node.path()) as other:
        assert other.run("PRAGMA journal_mode") == [("wal",)]
        other.run("INSERT INTO t VALUES (2, 'x')")
    assert ids(node) == [1, 2]
    assert_sound(node)


def test_names_stay_as_they_are(node: TwinNode) -> None:
    for call in (node.path("folder").mkdir, node.path().unlink, node.path(f"{node.database}-wal").unlink):
        with pytest.raises(OSError, match="Read-only"):
            call()
    with pytest.raises(OSError, match="Read-only"):
        node.path().rename(node.path("other.db"))
    with pytest.raises(OSError, match="Read-only"):
        Path(node.path("copy.db")).write_bytes(b"SQLite format 3\0")
