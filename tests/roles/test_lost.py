"""A node goes back behind what only it had, while its applier and its applications still have it in hand."""

import os
import signal

import pytest

from tests.cluster.comparing import assert_same, caught_up
from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.roles.test_roles import ids, insert, make, pair
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)
CUT_OFF = {"SQLITE_CANTOPEN", "SQLITE_IOERR_FSTAT", "SQLITE_IOERR_READ"}


def part(node: DirectedNode, other: DirectedNode) -> None:
    """It hears of nobody any more: the other one is no primary."""
    node.follow(other)


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_records_of_a_lost_history_that_the_applier_has_not_looked_at_yet_are_forgotten(
    directed: Direct, mode: str
) -> None:
    a, b = pair(directed)
    c = directed("c")
    c.follow(a)
    make(a, mode)
    insert(a, 1)
    caught_up(a, [b, c])
    part(c, b)
    os.kill(b.applier(), signal.SIGSTOP)
    for number in range(2, 6):
        run_sql(a.path(), f"INSERT INTO t VALUES ({number}, randomblob({20_000 + number}))")
    wait_until(lambda: b.position() == a.position(), "b has logged them")
    a.demote()
    c.promote(2)
    insert(c, 10)
    b.follow(c)
    wait_until(lambda: bool(b.log_lines("went_back")), "b has gone back")
    insert(c, 11)
    os.kill(b.applier(), signal.SIGCONT)
    caught_up(c, [b])
    assert ids(b) == [1, 10, 11]
    assert_same([c, b])
    assert not b.log_lines("apply_failed")


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_connection_of_the_old_primary_does_not_go_on_with_a_schema_that_is_lost(directed: Direct, mode: str) -> None:
    """It has read the schema as the primary's; after as many changes of the new one its number is the same."""
    a, b = pair(directed)
    make(a, mode)
    insert(a, 1)
    caught_up(a, [b])
    with Session(a.path()) as idle, Session(a.path()) as unused:
        part(b, b)
        run_sql(a.path(), "CREATE TABLE lost (x); INSERT INTO lost VALUES (1)")
        assert idle.run("SELECT x FROM lost") == [(1,)]
        a.demote()
        b.promote(2)
        run_sql(b.path(), "CREATE TABLE other (y, z); INSERT INTO other VALUES (2, 3)")
        a.follow(b)
        caught_up(b, [a])
        # The node is the primary again, and what such a connection writes would be its own.
        b.demote()
        a.promote(3)
        b.follow(a)
        for session, sql in (
            (idle, "SELECT x FROM lost"),
            (idle, "INSERT INTO lost VALUES (9)"),
            (idle, "SELECT id FROM t"),
            (unused, "INSERT INTO t VALUES (9, 9)"),
        ):
            with pytest.raises(SqlError) as told:
                session.run(sql)
            assert told.value.code in CUT_OFF, (sql, told.value)
    assert run_sql(a.path(), "SELECT y, z FROM other") == [(2, 3)]
    insert(a, 2)
    caught_up(a, [b])
    assert ids(a) == ids(b) == [1, 2]
    assert_same([a, b])
    assert a.log_lines("connections_cut_off")
