"""Applications that write where the applier writes too: nobody waits longer than for the other's transaction."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from litereplica.applier.protocol import Failed, Release, Released
from litereplica.applier.turns import LOCK_WAIT_S
from litereplica.sqlite.shm import read_checkpoint_info, write_checkpoint_info
from tests.applier.applications import application, open_files
from tests.applier.support import Child, Primary, assert_equal_files, rows, until
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)

# Takes the write lock and gives it back, without a pause and without a change.
_LOCKING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
print("up", flush=True)
while True:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE t SET n = 0")
    connection.execute("ROLLBACK")
"""


@pytest.fixture
def primary(tmp_path: Path, child: Child) -> Primary:
    """A primary whose first transactions the child has applied."""
    made = Primary(tmp_path)
    child.apply(made.change("CREATE TABLE t (n)"), made.change("INSERT INTO t VALUES (1)"))
    return made


def test_what_waits_for_an_open_transaction_is_there_a_moment_after_its_end(child: Child, primary: Primary) -> None:
    with application(child.mount / "app.db") as app:

        def median_s() -> float:
            delays = []
            for _ in range(20):
                assert app.run("BEGIN IMMEDIATE") == []
                assert app.run("UPDATE t SET n = 0") == []
                child.send(primary.change("INSERT INTO t VALUES (2)"))
                time.sleep(0.03)
                assert app.run("ROLLBACK") == []
                started = time.monotonic()
                child.expect_applied(primary.txid)
                delays.append(time.monotonic() - started)
            return sorted(delays)[10]

        # Again while the machine is busy with something else.
        wait_until(lambda: median_s() < 0.01, "a moment after the end")
    assert_equal_files(primary, child.mount / "app.db")


def test_applies_come_through_beside_writers_without_a_pause(child: Child, primary: Primary) -> None:
    path = child.mount / "app.db"
    lockers = [subprocess.Popen([sys.executable, "-c", _LOCKING, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for each in lockers:
            assert each.stdout
            assert each.stdout.readline() == b"up\n"
        for _ in range(20):
            started = time.monotonic()
            child.apply(primary.change("INSERT INTO t VALUES (3)"))
            assert time.monotonic() - started < LOCK_WAIT_S
    finally:
        for each in lockers:
            each.kill()
            each.communicate()
    assert_equal_files(primary, path)


def test_an_open_transaction_is_said_once_and_then_waited_for(child: Child, primary: Primary) -> None:
    span = primary.change("INSERT INTO t VALUES (2)")
    with application(child.mount / "app.db") as app:
        assert app.run("BEGIN IMMEDIATE") == []
        child.send(span)
        failed = child.expect(Failed)
        assert failed.retry
        assert app.described in failed.reason
        child.send(span._replace(redo_until=span.last_txid))
        child.socket.settimeout(LOCK_WAIT_S + 2)
        with pytest.raises(TimeoutError):
            child.expect(Failed)
        child.socket.settimeout(30)
        assert app.run("ROLLBACK") == []
        child.expect_applied(span.last_txid)
        # Somebody else waits: then it is not waited for that long.
        assert app.run("BEGIN IMMEDIATE") == []
        child.send(primary.change("INSERT INTO t VALUES (2)"))
        started = time.monotonic()
        child.send(Release("app.db"))
        child.expect(Failed)
        child.expect(Released)
        assert time.monotonic() - started < LOCK_WAIT_S + 1


def test_applications_fold_and_begin_the_wal_again_as_they_like(child: Child, primary: Primary) -> None:
    path = child.mount / "app.db"
    with application(path, 5) as app:
        for turn in range(30):
            child.apply(primary.change("INSERT INTO t VALUES (zeroblob(5000))"))
            app.run(f"PRAGMA wal_checkpoint({('PASSIVE', 'FULL', 'RESTART', 'TRUNCATE')[turn % 4]})")
            assert app.run("BEGIN IMMEDIATE") == []
            app.run("UPDATE t SET n = 0")
            assert app.run("ROLLBACK") == []
            assert app.run("SELECT count(*) FROM t") == [(turn + 2,)]
    assert_equal_files(primary, path)


def test_an_application_may_be_the_last_to_close_what_the_applier_has_let_go(child: Child, primary: Primary) -> None:
    path = child.mount / "app.db"
    for turn in range(3):
        child.send(Release("app.db"))
        child.expect(Released)
        until(lambda: f"{path}-wal" not in open_files(child.process.pid))
        assert rows(path, "SELECT count(*) FROM t") == [(turn + 1,)]
        assert not Path(f"{path}-wal").exists()
        child.apply(primary.change("INSERT INTO t VALUES (2)"))
    assert_equal_files(primary, path)


def test_what_this_node_has_committed_itself_is_not_asked_for(child: Child, primary: Primary) -> None:
    path = child.mount / "app.db"
    with application(path) as app:
        assert app.run("INSERT INTO t VALUES (5)") == []
    own = primary.change("INSERT INTO t VALUES (5)")
    following = primary.change("INSERT INTO t VALUES (6)")
    child.send(following)
    refused = child.receive()
    assert isinstance(refused, Failed)
    assert "were not sent" in refused.reason
    child.apply(following._replace(applied=own.last_txid))
    assert_equal_files(primary, path)


def test_a_wal_index_whose_writer_died_while_it_began_the_wal_again_is_rebuilt(child: Child, primary: Primary) -> None:
    path = child.mount / "app.db"
    with application(path) as app:
        assert app.run("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
        # The header says that the WAL is empty, and what was copied of it was not reset.
        with Path(f"{path}-shm").open("r+b") as file:
            block = bytearray(file.read())
            info = read_checkpoint_info(memoryview(block))
            assert info.backfilled == 0
            write_checkpoint_info(memoryview(block), info.__class__(3, info.read_marks, 3))
            file.seek(0)
            file.write(block)
        child.apply(primary.change("INSERT INTO t VALUES (2)"))
        assert app.run("SELECT count(*) FROM t") == [(2,)]
    assert_equal_files(primary, path)
