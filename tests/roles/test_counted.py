"""Connections without a WAL know by the change counter whether their pages are old: every commit has to count.

And who has a WAL in rollback mode keeps it.
"""

import os
import signal

import pytest

from tests.cluster.comparing import assert_same, caught_up
from tests.roles.conftest import Direct
from tests.roles.test_forwarding import hand_over
from tests.roles.test_roles import insert, make, pair
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)


@pytest.mark.parametrize("what", ["reads", "writes", "reads what was folded"])
def test_what_was_committed_through_the_wal_of_a_replica_is_seen_by_who_was_idle_all_the_time(
    forwarding: Direct, what: str
) -> None:
    a, b = pair(forwarding)
    make(a, "DELETE")
    insert(a, 1)
    caught_up(a, [b])
    with Session(a.path()) as idle:
        assert idle.run("SELECT v FROM t") == [("row 1",)]
        with Session(b.path()) as other:
            other.run("SELECT v FROM t")
            hand_over(a, b, 2, [])
            other.run("UPDATE t SET v = 'newer'")
            caught_up(b, [a])
            hand_over(b, a, 3, [])
        # Who closes a database last would remove its WAL.
        run_sql(a.path(), "SELECT v FROM t")
        if what == "reads what was folded":
            assert run_sql(a.path(), "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
        if what != "writes":
            assert idle.run("SELECT v FROM t") == [("newer",)]
        else:
            idle.run("INSERT INTO t VALUES (2, 'row 2')")
    assert run_sql(a.path(), "SELECT v FROM t ORDER BY id")[0] == ("newer",)
    insert(a, 3)
    caught_up(a, [b])
    assert_same([a, b])


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_wal_is_emptied_only_where_readers_find_wal_mode_without_it(forwarding: Direct, mode: str) -> None:
    """What is logged says so already, and is not applied."""
    a, b = pair(forwarding)
    make(a, mode)
    insert(a, 1)
    caught_up(a, [b])
    wal = b.data / "files" / "app.db-wal"
    with Session(b.path()) as session:
        session.run("INSERT INTO t VALUES (2, 'row 2')")
        caught_up(a, [b])
        os.kill(b.applier(), signal.SIGSTOP)
        try:
            run_sql(a.path(), "PRAGMA journal_mode=WAL; INSERT INTO t VALUES (3, 'row 3')")
            wait_until(lambda: b.position() == a.position(), "it is logged")
            if mode == "WAL":
                assert session.run("PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
            else:
                with pytest.raises(SqlError, match="SQLITE_IOERR_TRUNCATE"):
                    session.run("PRAGMA wal_checkpoint(TRUNCATE)")
            assert (wal.stat().st_size > 0) == (mode == "DELETE")
        finally:
            os.kill(b.applier(), signal.SIGCONT)
        caught_up(a, [b])
        assert session.run("SELECT id FROM t") == [(1,), (2,), (3,)]
    assert_same([a, b])
