"""A node that was the primary and has journals of dead writers becomes a replica all the same."""

import pytest

from tests.roles.conftest import Direct
from tests.roles.test_roles import ids, insert, make
from tests.support.sql import Session

pytestmark = pytest.mark.timeout(110)

# The kernel forgets names and files while the journals are rolled back: with one database seldom before it.
DATABASES = 12


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
