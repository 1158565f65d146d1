"""Applications and daemons that die at any moment: nothing acknowledged is lost, and log and files stay one."""

import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalHeader, encode_frames, parse_wal_header
from tests.cluster.comparing import assert_same, caught_up
from tests.support.late import late
from tests.support.mounts import is_mounted
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, fold, integrity, make_database, run_sql
from tests.support.waiting import wait_until

# Writes rows 1, 2, 3 … in a transaction each, and says each number on a plain file once SQLite has acknowledged it.
_WRITER = """
import sqlite3, sys
path, acknowledged, synchronous = sys.argv[1:]
connection = sqlite3.connect(path, isolation_level=None, timeout=20)
connection.execute(f"PRAGMA synchronous={synchronous}")
print("up", flush=True)
with open(acknowledged, "wb", buffering=0) as said:
    for number in range(1, 1_000_000):
        connection.execute("INSERT INTO t (id, v) VALUES (?, ?)", (number, "x" * (number % 3000)))
        said.write(b"%d\\n" % number)
"""


class Writer:
    """A process that commits as fast as it can."""

    def __init__(self, path: Path, acknowledged: Path, synchronous: str = "NORMAL") -> None:
        self._acknowledged = acknowledged
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(acknowledged), synchronous],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def acknowledged(self) -> int:
        """The last row that SQLite has said is committed."""
        lines = self._acknowledged.read_bytes().split(b"\n")[:-1] if self._acknowledged.exists() else []
        return int(lines[-1]) if lines else 0

    def has_acknowledged(self, rows: int) -> bool:
        return self.acknowledged() > rows

    def end(self, number: int = signal.SIGKILL) -> int:
        """End it, if it has not ended by itself; the last acknowledged row."""
        self.process.send_signal(number)
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.acknowledged()


def numbers(path: Path) -> list[int]:
    return [row[0] for row in run_sql(path, "SELECT id FROM t ORDER BY id")]


def test_a_writer_killed_in_a_transaction_leaves_nothing_of_it(node: Node) -> None:
    path = node.path("open.db")
    make_database(path, rows=10)
    at = node.position("open.db")
    session = Session(path)
    session.run("PRAGMA cache_size=5")
    session.run("BEGIN")
    session.run("UPDATE t SET v = randomblob(2000)")
    session.run("INSERT INTO t (v) SELECT randomblob(3000) FROM t, t, t")  # far beyond the cache: it is in the WAL
    session.kill()
    assert node.position("open.db") == at
    assert run_sql(path, "SELECT count(*), min(v) FROM t") == [(10, "row 1")]
    run_sql(path, "INSERT INTO t (v) VALUES ('next')")
    assert integrity(path) == "ok"


def test_a_database_stays_writable_for_others_whenever_a_writer_is_killed(node: Node, tmp_path: Path) -> None:
    path = node.path("killed.db")
    make_database(path)
    moments = random.Random(3)
    with Session(path) as other:
        other.run("SELECT count(*) FROM t")
        for round_number in range(12):
            other.run("DELETE FROM t")
            writer = Writer(path, tmp_path / f"acknowledged-{round_number}")
            wait_until(partial(writer.has_acknowledged, 5), "some rows")
            time.sleep(moments.random() * 0.02)  # anywhere in a commit
            last = writer.end()

            def writable(other: Session = other) -> bool:
                try:
                    other.run("INSERT INTO t (id, v) VALUES (-1, 'other')")
                except SqlError as error:
                    # Once, when it began before what the dead writer had logged was published.
                    assert error.code.startswith("SQLITE_IOERR"), error  # noqa: PT017  most of the time it goes well
                    return False
                return True

            wait_until(writable, "the other connection can write")
            found = [row[0] for row in other.run("SELECT id FROM t ORDER BY id")]
            # What was acknowledged is there, and at most the one that died unacknowledged.
            assert found in ([-1, *range(1, last + 1)], [-1, *range(1, last + 2)])
        assert other.run("PRAGMA integrity_check") == [("ok",)]
    fold(path)
    assert integrity(path) == "ok"


@pytest.mark.parametrize("what", ["INSERT INTO t VALUES (3, 'three')", "PRAGMA wal_checkpoint(TRUNCATE)"])
def test_a_wal_does_not_begin_again_without_the_last_commit_of_a_dead_writer(
    nodes: Nodes, tmp_path: Path, what: str
) -> None:
    """All that others see is in the database file; the last one is logged, and its writer died before it showed it."""
    primary = nodes.primary()
    replica = nodes.replica(primary)
    path = primary.path()
    run_sql(path, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    with Session(path) as other, Session(path) as reader:
        other.run("INSERT INTO t VALUES (1, 'one')")
        # A reader from before the checkpoint: what is written now goes behind what is folded.
        reader.run("BEGIN")
        reader.run("SELECT * FROM t")
        assert other.run("PRAGMA wal_checkpoint(PASSIVE)") == [(0, 1, 1)]
        writer = Session(path)
        logged = int(primary.position("app.db")[:16], 16) + 1
        with late(writer, "pwrite64", 0.3, tmp_path / "trace"):
            writer.send("INSERT INTO t VALUES (2, randomblob(20000))")
            wait_until(lambda: int(primary.position("app.db")[:16], 16) == logged, "it is logged", 20)
            os.kill(primary.applier(), signal.SIGSTOP)  # which would see to it that it is shown
            writer.kill()
        reader.run("COMMIT")
        try:
            with pytest.raises(SqlError, match="SQLITE_IOERR"):
                other.run(what)
        finally:
            os.kill(primary.applier(), signal.SIGCONT)
        wait_until(lambda: primary.log_lines("wal_index_reset"), "it is shown")
        other.run("INSERT INTO t VALUES (4, 'four')")
        assert other.run("SELECT id FROM t") == [(1,), (2,), (4,)]
    assert len(primary.log_lines("wal_rewind_refused")) == 1
    caught_up(primary, [replica])
    assert_same([primary, replica])


@pytest.mark.parametrize("what", ["INSERT INTO t VALUES (3, 'three')", "PRAGMA wal_checkpoint(TRUNCATE)"])
@pytest.mark.parametrize("is_behind", [False, True])
def test_nor_does_that_of_a_replica_whose_applications_write(
    nodes: Nodes, tmp_path: Path, what: str, is_behind: bool
) -> None:
    """``is_behind``: a newer transaction is logged by then, and not applied."""
    primary = nodes.primary(writes={"on_replica": "forward"})
    replica = nodes.replica(primary, writes={"on_replica": "forward"})
    run_sql(primary.path(), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    replica.wait_for("app.db", primary.position())
    path = replica.path()
    with Session(path) as other, Session(path) as reader:
        other.run("INSERT INTO t VALUES (1, 'one')")
        reader.run("BEGIN")
        reader.run("SELECT * FROM t")
        ((busy, frames, folded),) = other.run("PRAGMA wal_checkpoint(PASSIVE)")
        assert (busy, frames) == (0, folded)
        writer = Session(path)
        logged = int(replica.position("app.db")[:16], 16) + 1
        with late(writer, "pwrite64", 0.3, tmp_path / "trace"):
            writer.send("INSERT INTO t VALUES (2, randomblob(20000))")
            wait_until(lambda: int(replica.position("app.db")[:16], 16) == logged, "it is logged", 20)
            os.kill(replica.applier(), signal.SIGSTOP)
            writer.kill()
        if is_behind:
            run_sql(primary.path(), "INSERT INTO t VALUES (5, 'five')")
            wait_until(lambda: int(replica.position("app.db")[:16], 16) == logged + 1, "the next is logged", 20)
        reader.run("COMMIT")
        try:
            with pytest.raises(SqlError, match="SQLITE_IOERR"):
                other.run(what)
        finally:
            os.kill(replica.applier(), signal.SIGCONT)
        caught_up(primary, [replica])
        expected = [(1,), (2,), *([(5,)] if is_behind else [])]
        wait_until(lambda: other.run("SELECT id FROM t ORDER BY id") == expected, "it is shown")
        other.run("INSERT INTO t VALUES (6, 'six')")
    caught_up(primary, [replica])
    assert_same([primary, replica])
    assert replica.log_lines("wal_rewind_refused")


def test_log_and_files_are_one_after_writers_were_killed(nodes: Nodes, tmp_path: Path) -> None:
    primary = nodes.primary()
    make_database(primary.path())
    replica = nodes.replica(primary)
    for round_number in range(4):
        run_sql(primary.path(), "DELETE FROM t")
        writer = Writer(primary.path(), tmp_path / f"acknowledged-{round_number}")
        wait_until(partial(writer.has_acknowledged, 20), "some rows")
        last = writer.end()
        assert len(numbers(primary.path())) in (last, last + 1)
    replica.wait_for("app.db", primary.position())
    assert numbers(replica.path()) == numbers(primary.path())


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
def test_every_acknowledged_row_is_there_after_the_daemon_was_killed_in_a_burst(
    nodes: Nodes, tmp_path: Path, synchronous: str
) -> None:
    node = nodes.standalone()
    make_database(node.path())
    writer = Writer(node.path(), tmp_path / "acknowledged", synchronous)
    wait_until(lambda: writer.acknowledged() > 300, "some rows")
    node.kill()
    last = writer.end()
    assert is_mounted(node.mount), "the dead mount is still there"
    node.start()
    assert node.log_lines("stale_mount_removed")
    found = numbers(node.path())
    assert found in (list(range(1, last + 1)), list(range(1, last + 2)))
    assert integrity(node.path()) == "ok"
    run_sql(node.path(), "INSERT INTO t (v) VALUES ('on')")


def test_a_writer_that_outlives_its_daemon_gets_errors_and_goes_on_after_it_opens_again(nodes: Nodes) -> None:
    node = nodes.standalone()
    make_database(node.path(), rows=3)
    with Session(node.path()) as session:
        session.run("INSERT INTO t (v) VALUES (1)")
        node.kill()
        with pytest.raises(SqlError):
            session.run("INSERT INTO t (v) VALUES (2)")
        node.start()
        with pytest.raises(SqlError):
            session.run("INSERT INTO t (v) VALUES (3)")
    assert run_sql(node.path(), "INSERT INTO t (v) VALUES (4) RETURNING id") == [(5,)]


def test_a_clean_restart_keeps_the_position_and_leaves_no_wal(nodes: Nodes) -> None:
    node = nodes.standalone()
    (node.mount / "in").mkdir()
    make_database(node.path(), rows=100)
    make_database(node.path("in/deep.db"), rows=100)
    session = Session(node.path())  # open over the stop: what it committed is only in the WAL
    session.run("INSERT INTO t (v) VALUES ('last')")
    positions = node.position(), node.position("in/deep.db")
    node.stop()
    session.kill()
    with closing(sqlite3.connect(node.data / "files" / "app.db")) as behind:
        assert behind.execute("SELECT count(*) FROM t").fetchall() == [(101,)]
    node.start()
    assert (node.position(), node.position("in/deep.db")) == positions
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(101,)]
    assert integrity(node.path("in/deep.db")) == "ok"


def test_an_applier_that_is_killed_comes_back_and_the_replica_goes_on(nodes: Nodes) -> None:
    primary = nodes.primary()
    replica = nodes.replica(primary)
    make_database(primary.path(), rows=10)
    replica.wait_for("app.db", primary.position())
    old = replica.applier()
    os.kill(old, signal.SIGKILL)
    run_sql(primary.path(), "INSERT INTO t (v) VALUES ('after')")
    replica.wait_for("app.db", primary.position())
    assert replica.applier() != old
    assert run_sql(replica.path(), "SELECT count(*) FROM t", mode="ro") == [(11,)]


def test_an_fsync_of_the_application_reaches_the_log(nodes: Nodes) -> None:
    node = nodes.standalone()
    make_database(node.path())
    counted = node.folder / "trace"
    with Session(node.path()) as session:
        session.run("PRAGMA synchronous=FULL")
        tracer = subprocess.Popen(
            ["strace", "-f", "-y", "-e", "trace=fdatasync", "-o", str(counted), "-p", str(node.pid)],
            stderr=subprocess.PIPE,
        )
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        session.run("INSERT INTO t (v) VALUES ('durable')", times=20)
        tracer.terminate()
        tracer.wait(10)
        tracer.stderr.close()
    synced = [line for line in counted.read_text().splitlines() if ".ltx" in line and "= 0" in line]
    assert len(synced) >= 20, counted.read_text()


@pytest.mark.parametrize("ends_by", ["close", "checkpoint"])
def test_a_commit_that_old_bytes_complete_is_logged_when_its_writer_is_gone(node: Node, ends_by: str) -> None:
    """After a restart of the WAL the page of a half-written frame may already be there, from before (see detector)."""
    path = node.path(f"settled-{ends_by}.db")
    make_database(path, rows=1)
    with Session(path) as session:
        session.run("PRAGMA wal_checkpoint(TRUNCATE)")
        session.run("UPDATE t SET v = 'one page, one frame'")
        assert session.run("PRAGMA wal_checkpoint(PASSIVE)") == [(0, 1, 1)]
        wal = path.with_name(f"{path.name}-wal")
        old = wal.read_bytes()
        header = parse_wal_header(old[:WAL_HEADER_BYTES])
        restarted = WalHeader.build(
            page_size=header.page_size,
            checkpoint_sequence=header.checkpoint_sequence + 1,
            salt1=header.salt1 + 1 & 0xFFFFFFFF,
            salt2=header.salt2,
            big_endian=header.big_endian,
        )
        encoded = restarted.encode()
        pgno, commit = struct.unpack_from(">II", old, WAL_HEADER_BYTES)
        page = old[WAL_HEADER_BYTES + FRAME_HEADER_BYTES :]
        frame, _, _ = encode_frames(restarted, restarted.s0, restarted.s1, [(pgno, page)], commit)
        at = int(node.position(path.name)[:16], 16)
        descriptor = os.open(wal, os.O_RDWR)
        try:
            os.pwrite(descriptor, encoded, 0)
            os.pwrite(descriptor, frame[:FRAME_HEADER_BYTES], WAL_HEADER_BYTES)
            assert int(node.position(path.name)[:16], 16) == at
            if ends_by == "checkpoint":
                data = os.open(path, os.O_RDWR)
                os.pwrite(data, page, (pgno - 1) * len(page))
                os.close(data)
                assert int(node.position(path.name)[:16], 16) == at + 1
        finally:
            os.close(descriptor)
        wait_until(lambda: int(node.position(path.name)[:16], 16) == at + 1, "the transaction is logged")
        session.run("INSERT INTO t (v) VALUES ('goes on')")
    assert integrity(path) == "ok"
    assert run_sql(path, "SELECT count(*) FROM t") == [(2,)]
