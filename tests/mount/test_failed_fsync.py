"""A disk that loses writes: the node promises nothing more, says what to do, and goes on after a restart."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, fold, integrity, make_database, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(90)

REASON = "fsync of the log of app.db failed (Input/output error): check the disk, then restart this node"
ROWS = 10
INSERT = "INSERT INTO t (v) VALUES (randomblob(100))"


@pytest.fixture
def fails(nodes: Nodes) -> Path:
    """As long as this file is there, no log can be made durable."""
    return nodes.folder / "fails"


FILE_REASON = "the files of app.db could not be made durable: check the disk, then restart this node"


@pytest.fixture
def primary(nodes: Nodes, fails: Path) -> Iterator[Node]:
    """Its databases: app.db, which the test makes, and other.db in WAL mode."""
    node = nodes.make_primary().start(prefix=[sys.executable, "-m", "tests.mount.failing_disk", str(fails)])
    make_database(node.path("other.db"), rows=ROWS)
    yield node
    assert len(node.log_lines("fenced")) == 1, "it is said once"


def application(path: Path, mode: str, synchronous: str) -> Session:
    session = Session(path, busy_s=0)
    session.run(f"PRAGMA journal_mode={mode}")
    session.run(f"PRAGMA synchronous={synchronous}")
    session.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    session.run(INSERT, times=ROWS)
    return session


def assert_refused(session: Session, sql: str = INSERT) -> None:
    with pytest.raises(SqlError, match="SQLITE_IOERR"):
        session.run(sql)


def assert_fenced(node: Node) -> None:
    status = node.status()
    assert (status["ready"], status["reason"]) == (False, REASON)
    assert node.get("/readyz")[0] == 503
    assert node.get("/livez")[0] == 200
    assert REASON in node.log_lines("fenced")[0]


def restart(node: Node, *sessions: Session, clean: bool) -> None:
    """On a disk that works."""
    if clean:
        assert node.terminate() == 3
        assert "the next start finishes from the log what this stop could not" in node.log
    else:
        node.kill()
    for each in sessions:
        each.kill()
    node.start()
    assert node.status()["reason"] == ""


def assert_goes_on(primary: Node, replica: Node, rows: tuple[int, ...]) -> None:
    """What was acknowledged is there, what was refused is there whole or not at all, and the same everywhere."""
    (found,) = run_sql(primary.path(), "SELECT count(*) FROM t")[0]
    assert found in rows
    run_sql(primary.path(), INSERT)
    run_sql(primary.path("other.db"), INSERT)
    for name, expected in (("app.db", found + 1), ("other.db", ROWS + 1)):
        fold(primary.path(name))
        position = primary.position(name)
        replica.wait_for(name, position)
        for node in (primary, replica):
            assert run_sql(node.path(name), "SELECT count(*) FROM t", mode="ro") == [(expected,)]
            assert integrity(node.path(name)) == "ok"
    positions = [primary.position(name) for name in ("app.db", "other.db")]
    primary.stop()
    primary.start()
    assert [primary.position(name) for name in ("app.db", "other.db")] == positions


def test_a_drop_that_cannot_be_made_durable_fences_the_node(primary: Node, fails: Path) -> None:
    with application(primary.path(), "DELETE", "FULL"):
        pass
    other = Session(primary.path("other.db"), busy_s=0)
    other.run("SELECT count(*) FROM t")
    fails.touch()
    with pytest.raises(OSError, match="Input/output"):
        primary.path().unlink()
    assert_fenced(primary)
    assert_refused(other)
    fails.unlink()
    # Nobody was told whether it is gone.
    assert primary.path().exists()
    restart(primary, other, clean=False)
    run_sql(primary.path("other.db"), INSERT)
    assert integrity(primary.path("other.db")) == "ok"


@pytest.mark.parametrize(
    ("mode", "clean"), [("WAL", True), ("WAL", False), ("DELETE", True), ("TRUNCATE", False), ("PERSIST", False)]
)
def test_a_commit_that_cannot_be_made_durable_fences_the_node(
    nodes: Nodes, primary: Node, fails: Path, mode: str, clean: bool
) -> None:
    replica = nodes.replica(primary)
    session = application(primary.path(), mode, "FULL")
    other = Session(primary.path("other.db"), busy_s=0)
    other.run("SELECT count(*) FROM t")
    fails.touch()
    assert_refused(session)
    assert_fenced(primary)
    logged = [primary.position(name) for name in ("app.db", "other.db")]
    # Neither the same nor another database takes a commit, also when the disk seems to work again.
    for each in (session, other):
        assert_refused(each)
    fails.unlink()
    for each in (session, other):
        assert_refused(each)
    with Session(primary.path("new.db"), busy_s=0) as new:
        assert_refused(new, "CREATE TABLE t (v)")
    assert [primary.position(name) for name in ("app.db", "other.db")] == logged
    assert_fenced(primary)
    assert run_sql(primary.path("unread.db"), "SELECT 1") == [(1,)]
    if mode == "WAL":
        # Readers see what was acknowledged. (In rollback modes the journal stays hot until the restart.)
        for each in (session, other):
            assert each.run("SELECT count(*) FROM t") == [(ROWS,)]
    restart(primary, session, other, clean=clean)
    assert_goes_on(primary, replica, (ROWS, ROWS + 1))


def test_a_checkpoint_before_which_the_log_cannot_be_made_durable_fences_the_node(
    nodes: Nodes, primary: Node, fails: Path
) -> None:
    replica = nodes.replica(primary)
    session = application(primary.path(), "WAL", "OFF")
    before = primary.path().read_bytes()
    fails.touch()
    # Without fsync a commit needs none.
    session.run(INSERT)
    assert_refused(session, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert_fenced(primary)
    assert (primary.data / "files" / "app.db").read_bytes() == before, "the file is never ahead of the log"
    assert_refused(session)
    assert session.run("SELECT count(*) FROM t") == [(ROWS + 1,)]
    fails.unlink()
    restart(primary, session, clean=False)
    assert_goes_on(primary, replica, (ROWS + 1,))


@pytest.mark.parametrize("clean", [True, False])
def test_a_database_file_that_cannot_be_made_durable_is_said_once_and_made_again_by_a_restart(
    nodes: Nodes, fails: Path, clean: bool
) -> None:
    """Its log has everything and is kept, so commits go on; without a restart it would grow for ever."""
    node = nodes.make_primary().start(prefix=[sys.executable, "-m", "tests.mount.failing_disk", str(fails)])
    make_database(node.path("app.db"), rows=ROWS)
    fails.write_text("/files/app.db", encoding="utf-8")
    fold(node.path())
    wait_until(lambda: node.log_lines("maintenance_failed"), "retention has met the disk", 20)
    fails.unlink()
    run_sql(node.path(), INSERT)
    fold(node.path())
    status = node.status()
    assert (status["ready"], status["reason"]) == (True, FILE_REASON)
    # Retention runs every 5 s.
    time.sleep(11)
    (line,) = node.log_lines("maintenance_failed")
    assert "restart this node" in line
    assert node.log_lines("fenced") == []
    if clean:
        node.stop()
    else:
        node.kill()
    node.start()
    assert node.status()["reason"] == ""
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(ROWS + 1,)]
    assert integrity(node.path()) == "ok"
