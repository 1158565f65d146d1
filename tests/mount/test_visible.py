"""GET /wait on the node that commits: an answer means that a reader sees it, however late its writer publishes.

SQLite's last write of a COMMIT is answered when the transaction is logged; strace keeps the writer from going on then.
"""

import time
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.mount.twin_node import TwinNode
from tests.support.late import late
from tests.support.nodes import Node
from tests.support.sql import Session, run_sql
from tests.support.waiting import wait_until

# So long a writer stands still after each of these calls: far longer than a wait that does not look.
LATE_S: Final = 0.2
# The last call of a COMMIT, by journal mode.
LAST_CALLS: Final = {"WAL": "pwrite64", "DELETE": "unlink", "TRUNCATE": "ftruncate", "PERSIST": "pwrite64"}


def txid_of(node: Node, name: str) -> int:
    return int(node.position(name)[:16], 16)


def wait(node: Node, name: str, txid: int, timeout: str) -> tuple[int, int]:
    """The answer's code, and the TXID that it names."""
    code, found = node.get(f"/wait?db={name}&txid={txid:x}&timeout={timeout}", 30)
    return code, int(found["txid"], 16)


@pytest.mark.parametrize("mode", LAST_CALLS)
def test_a_reader_sees_the_row_after_the_wait_when_its_commit_has_not_returned(
    node: Node, tmp_path: Path, mode: str
) -> None:
    name = f"{mode}.db"
    path = node.path(name)
    run_sql(path, f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (0);")
    with Session(path) as writer, Session(path) as reader:
        writer.run("PRAGMA synchronous=NORMAL")
        for number in range(1, 3):
            txid = txid_of(node, name) + 1
            with late(writer, LAST_CALLS[mode], LATE_S, tmp_path / "trace"):
                writer.send("INSERT INTO t VALUES (?)", number)
                wait_until(partial(lambda txid: txid_of(node, name) == txid, txid), "it is logged", 20)
                assert wait(node, name, txid - 1, "0s")[0] == 200, "who waits for less does not wait for it"
                assert wait(node, name, txid, "20s") == (200, txid)
                assert reader.run("SELECT max(id) FROM t") == [(number,)]
                writer.receive()
            assert wait(node, name, txid, "0s") == (200, txid)


def test_so_it_is_on_a_replica_whose_application_commits_elsewhere(twin_node: TwinNode, tmp_path: Path) -> None:
    name, path = twin_node.database, twin_node.path()
    run_sql(path, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY);")
    with Session(path) as writer, Session(path) as reader:
        assert reader.run("SELECT max(id) FROM t") == [(None,)]
        txid = txid_of(twin_node, name) + 1
        with late(writer, "pwrite64", LATE_S, tmp_path / "trace"):
            writer.send("INSERT INTO t VALUES (1)")
            wait_until(lambda: txid_of(twin_node, name) == txid, "it is logged", 20)
            assert wait(twin_node, name, txid, "20s") == (200, txid)
            assert reader.run("SELECT max(id) FROM t") == [(1,)]
            writer.receive()


def test_a_wait_says_that_a_writer_stands_still_in_its_commit_and_ends_when_it_goes_on(
    node: Node, tmp_path: Path
) -> None:
    path = node.path("still.db")
    run_sql(path, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY);")
    with Session(path) as writer, Session(path) as reader:
        assert reader.run("SELECT max(id) FROM t") == [(None,)]
        txid = txid_of(node, "still.db") + 1
        with late(writer, "pwrite64", 1.5, tmp_path / "trace"):
            writer.send("INSERT INTO t VALUES (1)")
            wait_until(lambda: txid_of(node, "still.db") == txid, "it is logged", 20)
            began = time.monotonic()
            assert wait(node, "still.db", txid, "0s") == (504, txid - 1)
            assert time.monotonic() - began < 1
            assert reader.run("SELECT max(id) FROM t") == [(None,)]
            assert wait(node, "still.db", txid, "20s") == (200, txid)
            assert reader.run("SELECT max(id) FROM t") == [(1,)]
            writer.receive()


def test_a_writer_that_dies_in_its_commit_does_not_hold_up_who_waits(node: Node, tmp_path: Path) -> None:
    path = node.path("dead.db")
    run_sql(path, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY);")
    with Session(path) as reader:
        assert reader.run("SELECT max(id) FROM t") == [(None,)]
        txid = txid_of(node, "dead.db") + 1
        writer = Session(path)
        writer.run("SELECT count(*) FROM t")
        with late(writer, "pwrite64", 1.5, tmp_path / "trace"):
            writer.send("INSERT INTO t VALUES (1)")
            wait_until(lambda: txid_of(node, "dead.db") == txid, "it is logged", 20)
            writer.kill()
        assert wait(node, "dead.db", txid, "5s") == (200, txid)
        assert reader.run("SELECT max(id) FROM t") == [(1,)]
