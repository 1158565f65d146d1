"""A node that was the primary becomes a replica, whatever writers that died may have left there."""

import contextlib
import os
import signal

import pytest

from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.roles.test_roles import ids, insert, make, pair, switch
from tests.support.sql import Session
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)

# The kernel forgets names and files while the journals are rolled back: with one database seldom before it.
DATABASES = 12


def has_another_applier(node: DirectedNode, before: int) -> bool:
    with contextlib.suppress(AssertionError):
        return node.applier() != before
    return False


def test_what_dead_writers_have_begun_is_undone_when_the_node_is_demoted(directed: Direct) -> None:
    a = directed("a")
    a.promote(1)
    names = [f"{number}.db" for number in range(DATABASES)]
    for name in names:
        make(a, "DELETE", name)
        insert(a, 1, name)
        writer = Session(a.path(name))
        writer.run("PRAGMA cache_size=3")  # so that it writes before its commit: its journal protects something
        writer.run("BEGIN")
        for number in range(2, 12):
            writer.run("INSERT INTO t VALUES (?, randomblob(3000))", number)
        writer.kill()
        assert (a.data / "files" / f"{name}-journal").exists()
    a.demote()
    assert len(a.log_lines("transaction_rolled_back")) == DATABASES
    assert not any((a.data / "files" / f"{name}-journal").exists() for name in names)
    a.promote(2)
    for name in names:
        assert ids(a, name) == [1]
        insert(a, 2, name)


def test_a_wal_that_has_begun_again_since_is_not_taken_for_one_that_shows_too_little(directed: Direct) -> None:
    a, b = pair(directed)
    make(a, "WAL")
    with Session(a.path()) as reader:
        reader.run("SELECT id FROM t")
        insert(a, 1)
        switch(a, b, 2)
        wal = a.data / "files" / "app.db-wal"
        before = wal.read_bytes()[16:24]
        assert before

        insert(b, 2)
        a.wait_for("app.db", b.position())
        wait_until(lambda: not wal.stat().st_size, "all of it is folded", 30)
        insert(b, 3)
        a.wait_for("app.db", b.position())
        assert wal.read_bytes()[16:24] != before
        applier = a.applier()
        os.kill(applier, signal.SIGKILL)
        wait_until(lambda: has_another_applier(a, applier), "there is another one")
        insert(b, 4)
        a.wait_for("app.db", b.position())
        assert reader.run("SELECT id FROM t") == [(1,), (2,), (3,), (4,)]
    assert not a.log_lines("wal_index_reset")
