"""Transactions that one thread of a process begins and another one ends."""

import subprocess
import sys

from tests.locks.conftest import FAST
from tests.support.nodes import Nodes
from tests.support.sql import run_sql

FORWARDS = {"on_replica": "forward", "timeout": "3s"}
_PROGRAM = """
import sqlite3, sys, threading
connection = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
connection.execute("PRAGMA journal_mode=DELETE")
def begin():
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t (node) VALUES ('b')")
thread = threading.Thread(target=begin)
thread.start()
thread.join()
connection.execute("COMMIT")
"""


def test_the_end_of_the_thread_that_made_the_journal_is_not_the_end_of_its_process(nodes: Nodes) -> None:
    a = nodes.primary("a", replication=FAST, writes=FORWARDS)
    b = nodes.replica(a, "b", replication=FAST, writes=FORWARDS)
    path = b.path("new.db")
    run_sql(path, "PRAGMA journal_mode=DELETE; CREATE TABLE t (id INTEGER PRIMARY KEY, node TEXT);")
    for _ in range(5):
        subprocess.run([sys.executable, "-c", _PROGRAM, str(path)], check=True, timeout=30)
    assert run_sql(a.path("new.db"), "SELECT count(*) FROM t", mode="ro") == [(5,)]
    assert not b.log_lines("transaction_rolled_back")
