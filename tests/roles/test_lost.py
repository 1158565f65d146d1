"""A node goes back behind what only it had, while its applier and its applications still have it in hand."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litereplica.store.diverged import Entry, entries, export_entry
from tests.cluster.comparing import assert_same, caught_up, content
from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.roles.test_roles import ids, insert, make, pair
from tests.support.sql import Session, refusal, run_sql
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
    # In a rollback mode it waits until the applier has let go.
    wait_until(lambda: bool(b.log_lines("went_back" if mode == "WAL" else "content_rebuilt")), "b goes back")
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
            assert refusal(session, sql) in CUT_OFF, sql
    assert run_sql(a.path(), "SELECT y, z FROM other") == [(2, 3)]
    insert(a, 2)
    caught_up(a, [b])
    assert ids(a) == ids(b) == [1, 2]
    assert_same([a, b])
    assert a.log_lines("connections_cut_off")


def test_a_connection_under_a_rollback_journal_does_not_go_on_with_pages_that_are_lost(directed: Direct) -> None:
    """Without a WAL it knows by a counter in page 1 whether its pages are old; that may be the same again, too."""
    a, b = pair(directed)
    make(a, "DELETE")
    insert(a, 1)
    caught_up(a, [b])
    with Session(a.path()) as idle:
        part(b, b)
        idle.run("UPDATE t SET v = 'lost'")
        assert idle.run("SELECT v FROM t") == [("lost",)]
        lost = content(a.path())[24:40]
        a.demote()
        b.promote(2)
        wait_until(lambda: not has_wal_after_a_look(b), "the WAL that it had as a replica is gone", 30)
        run_sql(b.path(), "UPDATE t SET v = 'new!'")
        assert content(b.path())[24:40] == lost, "that is all that SQLite looks at"
        a.follow(b)
        caught_up(b, [a])
        b.demote()
        a.promote(3)
        b.follow(a)
        wait_until(lambda: not has_wal_after_a_look(a), "the WAL that it had as a replica is gone", 30)
        assert refusal(idle, "SELECT v FROM t") in CUT_OFF
    insert(a, 2)
    caught_up(a, [b])
    assert run_sql(b.path(), "SELECT id, v FROM t ORDER BY id") == [(1, "new!"), (2, "row 2")]
    assert_same([a, b])


def test_a_checkpoint_shortens_a_file_whose_content_is_about_to_be_replaced(forwarding: Direct) -> None:
    """It cuts the file to what the WAL has, and the content that is to come may be longer."""
    with about_to_be_replaced(forwarding) as (a, session):
        assert session.run("PRAGMA wal_checkpoint(PASSIVE)")[0][0] == 0
        assert a.path().stat().st_size < 100_000
    assert not a.log_lines("truncate_refused")


def test_nobody_empties_a_file_whose_content_is_about_to_be_replaced(forwarding: Direct) -> None:
    """As a shell's redirection, or a copy over it, would begin."""
    with about_to_be_replaced(forwarding) as (a, session):
        size = a.path().stat().st_size
        for wrong in (0, 100, size - 1):
            with pytest.raises(PermissionError):
                os.truncate(a.path(), wrong)
        assert a.path().stat().st_size == size
        assert session.run("SELECT id FROM t") == []
    assert len(a.log_lines("truncate_refused")) == 3


@contextmanager
def about_to_be_replaced(forwarding: Direct) -> Iterator[tuple[DirectedNode, Session]]:
    """A node that goes back to a longer content than its own, and whose applier has not begun to write that.

    With a connection there. Afterwards it has the content.
    """
    a, b = pair(forwarding)
    run_sql(a.path(), "PRAGMA auto_vacuum=FULL")
    make(a, "WAL")
    run_sql(a.path(), "INSERT INTO t VALUES (1, randomblob(400000))")
    caught_up(a, [b])
    part(b, b)
    with Session(a.path()) as session:
        session.run("DELETE FROM t")
        a.demote()
        b.promote(2)
        insert(b, 2)
        os.kill(a.applier(), signal.SIGSTOP)
        try:
            a.follow(b)
            wait_until(lambda: bool(a.log_lines("went_back")), "a goes back")
            yield a, session
        finally:
            os.kill(a.applier(), signal.SIGCONT)
        caught_up(b, [a])
        assert session.run("SELECT id FROM t") == [(1,), (2,)]
    assert_same([b, a])


def has_wal_after_a_look(node: DirectedNode) -> bool:
    """Who closes a database last removes its WAL."""
    run_sql(node.path(), "SELECT v FROM t")
    return Path(f"{node.path()}-wal").exists()


def test_a_node_is_no_further_than_others_for_a_database_that_only_it_had(directed: Direct) -> None:
    a, b = pair(directed)
    make(a, "WAL")
    insert(a, 1)
    caught_up(a, [b])
    part(b, b)
    b.promote(2)
    make(b, "WAL", "mine.db")
    for number in range(20):
        insert(b, number, "mine.db")
    b.demote()
    a.demote()
    a.promote(3)
    b.follow(a)
    wait_until(lambda: bool(b.log_lines("database_dropped")), "b has given it up")
    insert(a, 2)
    caught_up(a, [b])
    assert b.standing() == a.standing()
    assert (b.standing()["epoch"], b.standing()["total"]) == (3, 4)


def test_what_was_acknowledged_is_exported_though_a_large_transaction_was_open_over_it(
    directed: Direct, tmp_path: Path
) -> None:
    """Its pages were written through to the file of the old primary, and its journal goes with a snapshot."""
    a, b = pair(directed)
    make(a, "DELETE")
    insert(a, 1)
    many = "WITH RECURSIVE c(n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM c WHERE n < 2600)"
    run_sql(a.path(), f"{many} INSERT INTO t SELECT n, randomblob(3000) FROM c")
    caught_up(a, [b])
    part(b, b)
    run_sql(a.path(), "INSERT INTO t VALUES (50, 'acknowledged')")
    with Session(a.path()) as writer:
        for sql in ("PRAGMA cache_size = 10", "BEGIN", "UPDATE t SET v = zeroblob(3000) WHERE id >= 100"):
            writer.run(sql)
        a.demote()
        b.promote(2)
        insert(b, 77)
        a.follow(b)
        caught_up(b, [a])
        assert_same([b, a])
    [entry] = [each for each in entries(a.data / "diverged") if isinstance(each, Entry)]
    assert (entry.records, entry.whole) == (1, True)
    export_entry(a.data / "diverged", entry, tmp_path / "export.db")
    found = run_sql(tmp_path / "export.db", "SELECT count(*), sum(v = zeroblob(3000)) FROM t WHERE id <> 1")
    assert found == [(2502, 0)]
    assert run_sql(tmp_path / "export.db", "SELECT v FROM t WHERE id = 50") == [("acknowledged",)]
