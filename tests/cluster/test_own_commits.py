"""A database in rollback mode that applications of a replica write, one transaction after the other.

The primary adds a counted page 1 to each: nobody here may notice, and at rest nothing of it may be missing.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

import pytest

from tests.cli.running import CommandLine
from tests.cluster.comparing import assert_same
from tests.support.mounts import force_unmount
from tests.support.nodes import Node, Nodes
from tests.support.sql import run_sql

pytestmark = pytest.mark.timeout(150)

LIMIT_S: Final = 100.0
REST_S: Final = 1.0

# A transaction now and then changes many pages, and some let the database grow. Prints the numbers that were committed.
WRITER: Final = """
import sqlite3, sys, time
path, name, count, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
connection = sqlite3.connect(path, isolation_level=None, timeout=10)
for number in range(count):
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (?, ?, ?)", (name, number, "x" * (number % 37 * 40)))
        if number % 50 == 0:
            connection.execute("UPDATE t SET text = text || 'y' WHERE rowid % 7 = 0")
        connection.execute("COMMIT")
        print(number, flush=True)
    except sqlite3.Error as error:
        print(error.sqlite_errorname, file=sys.stderr)
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        time.sleep(0.01)
    time.sleep(pause)
"""


@pytest.fixture
def pair(nodes: Nodes) -> list[Node]:
    """A primary and its replica, with a database in rollback mode."""
    primary = nodes.primary("p")
    replica = nodes.replica(primary, "r")
    run_sql(primary.path(), "PRAGMA journal_mode=DELETE; CREATE TABLE t (who, n, text)")
    replica.wait_for("app.db", primary.position())
    return [primary, replica]


def begin(node: Node, count: int, pause_s: float = 0.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(node.path()), node.name, str(count), str(pause_s)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> tuple[list[int], list[str]]:
    """What was committed, and how the others failed."""
    output, errors = process.communicate(timeout=LIMIT_S)
    return [int(line) for line in output.split()], errors.splitlines()


def written(node: Node, who: Node) -> list[int]:
    return [n for (n,) in run_sql(node.path(), f"SELECT n FROM t WHERE who = '{who.name}' ORDER BY rowid", mode="ro")]


def test_a_thousand_in_a_row_are_all_committed_and_at_rest_nothing_is_missing(pair: list[Node]) -> None:
    _, replica = pair
    assert end(begin(replica, 1000)) == (list(range(1000)), [])
    time.sleep(REST_S)
    assert_same(pair, "app.db")
    assert written(replica, replica) == list(range(1000))
    replica.stop()
    replica.start()
    assert_same(pair, "app.db")
    assert not replica.log_lines("apply_failed")


def test_an_application_that_begins_just_when_page_1_is_laid_over_is_not_refused(pair: list[Node]) -> None:
    _, replica = pair
    for pause_s in (0.1, 0.13, 0.17, 0.2):
        assert end(begin(replica, 30, pause_s))[1] == []
    time.sleep(REST_S)
    assert_same(pair, "app.db")


def test_while_page_1_is_not_laid_everything_that_looks_at_the_file_finds_it_sound(
    pair: list[Node], nodes: Nodes
) -> None:
    _, replica = pair
    line = CommandLine(nodes.folder)
    process = begin(replica, 600)
    while process.poll() is None:
        run_sql(replica.path(), "PRAGMA wal_checkpoint(PASSIVE)")
        assert run_sql(replica.path(), "PRAGMA integrity_check", mode="ro") == [("ok",)]
        found = line("--url", replica.url, "verify", "app.db")
        assert found.code == 0, found
    assert end(process)[1] == []
    assert not replica.log_lines("pages_damaged")
    assert_same(pair, "app.db")


def test_none_is_refused_when_the_applier_dies_again_and_again(pair: list[Node]) -> None:
    _, replica = pair
    process = begin(replica, 600, 0.004)
    while process.poll() is None:
        time.sleep(0.5)
        with suppress(AssertionError, ProcessLookupError):
            os.kill(replica.applier(), signal.SIGKILL)
    assert end(process) == (list(range(600)), [])
    time.sleep(REST_S)
    assert_same(pair, "app.db")


def test_a_daemon_that_is_killed_has_all_that_was_acknowledged(pair: list[Node]) -> None:
    primary, replica = pair
    process = begin(replica, 400)
    time.sleep(1.5)
    replica.kill()
    committed, _ = end(process)
    assert committed
    force_unmount(replica.folder)
    replica.start()
    assert set(committed) <= set(written(primary, replica))
    assert end(begin(replica, 100)) == (list(range(100)), [])
    time.sleep(REST_S)
    assert_same(pair, "app.db")


def test_two_nodes_that_write_refuse_each_other_only(pair: list[Node]) -> None:
    primary, replica = pair
    processes = [begin(node, 200, 0.01) for node in pair]
    (of_primary, none), (of_replica, refused) = (end(each) for each in processes)
    assert none == []
    assert len(of_replica) + len(refused) == 200
    assert len(of_replica) > 50  # on a busy machine more come in between
    assert written(replica, primary) == of_primary
    assert written(replica, replica) == of_replica
    time.sleep(REST_S)
    assert_same(pair, "app.db")
