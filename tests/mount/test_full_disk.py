"""A data directory on a disk that fills up: commits are refused whole, and go on by themselves when there is room."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, fold, integrity, make_database, run_sql

DISK_BYTES = 24 * 2**20


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, nodes: Nodes) -> Path:
    """A mounted file system of its own with DISK_BYTES: tmpfs unless the test asks for another."""
    kind = getattr(request, "param", "tmpfs")
    folder = nodes.folder / "disk"
    folder.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    else:
        image = nodes.folder / "image"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True, timeout=30)
        command = ["mount", "-o", "loop", str(image), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"no {kind} here: {done.stderr.strip()}")
    return folder


def fill(disk: Path) -> Path:
    """Leave no block free."""
    ballast = disk / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4096"], capture_output=True, timeout=30, check=False)
    return ballast


def write_until_full(session: Session) -> int:
    """Rows that were committed until SQLite said five times in a row that the disk is full."""
    committed = refused = 0
    while refused < 5:
        try:
            session.run("INSERT INTO t (v) VALUES (randomblob(3000))")
        except SqlError as error:
            assert error.code == "SQLITE_FULL", error  # noqa: PT017  which of many inserts fails is not known
            refused += 1
        else:
            committed += 1
            refused = 0
    return committed


@pytest.mark.parametrize("small_disk", ["tmpfs", "ext4"], indirect=True)
def test_commits_are_refused_when_the_disk_is_full_and_go_on_when_there_is_room(nodes: Nodes, small_disk: Path) -> None:
    node = nodes.make(data=small_disk / "data").start()
    make_database(node.path())
    with Session(node.path()) as session, Session(node.path()) as reader:
        ballast = fill(small_disk)
        committed = write_until_full(session)
        position = node.position()
        assert int(position[:16], 16) == committed + 2
        # Readers go on, and see exactly what was committed; SQLite has rolled the rest back.
        assert reader.run("SELECT count(*) FROM t") == [(committed,)]
        assert session.run("SELECT count(*) FROM t") == [(committed,)]
        assert node.get("/livez")[0] == 200
        refused = node.log_lines("commits_refused")
        # One line for each time that it got full, however often the application tries.
        assert len(refused) == len(node.log_lines("commits_accepted_again")) + 1
        assert "make room" in refused[0]
        ballast.unlink()
        session.run("INSERT INTO t (v) VALUES ('room')", times=20)
        assert len(refused) == len(node.log_lines("commits_accepted_again")) == len(node.log_lines("commits_refused"))
        assert reader.run("SELECT count(*) FROM t") == [(committed + 20,)]
    check_after_restart(node, committed + 20)


def test_a_large_transaction_that_does_not_fit_is_rolled_back_whole(nodes: Nodes, small_disk: Path) -> None:
    node = nodes.make(data=small_disk / "data").start()
    make_database(node.path(), rows=5)
    position = node.position()
    with Session(node.path()) as session:
        with pytest.raises(SqlError) as failure:
            session.run(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
                " INSERT INTO t (v) SELECT randomblob(3000) FROM n"
            )
        assert failure.value.code == "SQLITE_FULL"
        assert node.position() == position
        assert session.run("SELECT count(*) FROM t") == [(5,)]
        # The WAL still has what was rolled back, and the log needs room too: what is small goes on.
        session.run("PRAGMA wal_checkpoint(TRUNCATE)")
        session.run("INSERT INTO t (v) VALUES ('small')")
    check_after_restart(node, 6)


def test_a_database_that_cannot_be_made_on_a_full_disk_can_be_made_later(nodes: Nodes, small_disk: Path) -> None:
    node = nodes.make(data=small_disk / "data").start()
    ballast = fill(small_disk)
    with pytest.raises(SqlError):
        make_database(node.path())
    ballast.unlink()
    for path in node.mount.glob("app.db*"):
        path.unlink(missing_ok=True)
    make_database(node.path(), rows=3)
    check_after_restart(node, 3)


def test_a_node_on_a_full_disk_starts_and_stops_and_loses_nothing(nodes: Nodes, small_disk: Path) -> None:
    node = nodes.make(data=small_disk / "data").start()
    make_database(node.path())
    with Session(node.path()) as session:
        ballast = fill(small_disk)
        committed = write_until_full(session)
    code = node.terminate()
    assert code in (0, 3), node.log
    assert "internal error" not in node.log
    ballast.unlink()
    node.start()
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(committed,)]
    check_after_restart(node, committed)


def check_after_restart(node: Node, rows: int) -> None:
    """What the log says and what the files hold is one thing."""
    fold(node.path())
    position = node.position()
    node.stop()
    node.start()
    assert node.position() == position
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(rows,)]
    assert integrity(node.path()) == "ok"


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
@pytest.mark.parametrize("small_disk", ["tmpfs", "ext4"], indirect=True)
def test_in_rollback_modes_a_refused_commit_is_rolled_back_and_others_go_on_when_there_is_room(
    nodes: Nodes, small_disk: Path, mode: str
) -> None:
    node = nodes.make(data=small_disk / "data").start()
    path = node.path()
    with Session(path) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("CREATE TABLE t (v)")
        session.run("INSERT INTO t (v) VALUES (randomblob(3000))", times=20)
        ballast = fill(small_disk)
        committed, refused = 20, 0
        while refused < 5:
            try:
                session.run("INSERT INTO t (v) VALUES (randomblob(3000))")
                committed += 1
            except SqlError as error:
                assert error.code in {  # noqa: PT017  which of many inserts fails, and at which step, is not known
                    "SQLITE_FULL",
                    "SQLITE_IOERR_DELETE",
                    "SQLITE_IOERR_TRUNCATE",
                    "SQLITE_IOERR_WRITE",
                }
                refused += 1
        assert session.run("SELECT count(*) FROM t") == [(committed,)]
        position = node.position()
        ballast.unlink()
        session.run("INSERT INTO t (v) VALUES (randomblob(3000))", times=10)
        assert int(node.position()[:16], 16) == int(position[:16], 16) + 10
        assert session.run("SELECT count(*) FROM t") == [(committed + 10,)]
    assert integrity(path) == "ok"
    node.stop()
    node.start()
    assert run_sql(path, "SELECT count(*) FROM t") == [(committed + 10,)]
    assert integrity(path) == "ok"


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
@pytest.mark.parametrize("bound", [False, True], ids=["mount", "bind-mount"])
def test_a_transaction_over_two_databases_is_in_both_or_refused(
    nodes: Nodes, small_disk: Path, tmp_path: Path, mode: str, bound: bool
) -> None:
    """Whatever step of the commit the disk refuses: in a folder that is mounted a second time too."""
    node = nodes.make(data=small_disk / "data").start()
    folder = node.path("folder")
    folder.mkdir()
    where = tmp_path / "bound" if bound else folder
    if bound:
        where.mkdir()
        subprocess.run(["mount", "--bind", str(folder), str(where)], check=True, timeout=30)
    try:
        for name in ("one.db", "two.db"):
            run_sql(where / name, f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
        committed, refused = 0, 0
        with Session(where / "one.db") as session:
            session.run(f"PRAGMA journal_mode={mode}")
            session.run("ATTACH ? AS other", str(where / "two.db"))
            session.run(f"PRAGMA other.journal_mode={mode}")
            for room in range(0, 80 << 10, 4 << 10):
                ballast = fill(small_disk)
                os.truncate(ballast, max(0, ballast.stat().st_size - room))
                try:
                    session.run("BEGIN")
                    session.run("INSERT INTO main.t (v) VALUES (randomblob(3000))")
                    session.run("INSERT INTO other.t (v) VALUES (randomblob(3000))")
                    session.run("COMMIT")
                except SqlError:
                    refused += 1
                    with contextlib.suppress(SqlError):
                        session.run("ROLLBACK")  # SQLite has not always done it already
                else:
                    committed += 1
                ballast.unlink()
                rows = session.run("SELECT (SELECT count(*) FROM main.t), (SELECT count(*) FROM other.t)")
                assert rows == [(committed, committed)], room
                for name in ("folder/one.db", "folder/two.db"):
                    assert int(node.position(name)[:16], 16) == committed + 1, (room, name)
        assert committed, "the disk was full all the time"
        assert refused, "the disk was never full"
    finally:
        if bound:
            subprocess.run(["umount", str(where)], check=True, timeout=30)
    for name in ("one.db", "two.db"):
        assert integrity(folder / name) == "ok"
