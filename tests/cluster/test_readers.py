"""Readers on a replica: their snapshot stays, nobody waits for them, and time never goes backwards."""

import pytest

from tests.cluster.comparing import assert_same, caught_up
from tests.cluster.group import Group, Watcher, Writer, prepare
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until


def test_a_reader_keeps_its_snapshot_for_the_whole_of_a_burst_and_delays_nobody(group: Group) -> None:
    replica = group.replicas[0]
    for name in ("long.db", "other.db"):
        prepare(group.path(name))
    caught_up(group.primary_node, group.replicas)
    with Writer(group.path("long.db"), count=100) as writer:
        writer.finish()
    caught_up(group.primary_node, group.replicas)
    question = "SELECT value, (SELECT count(*) FROM entry), (SELECT sum(length(payload)) FROM entry) FROM counter"
    wal = replica.data / "files" / "long.db-wal"
    with Session(replica.path("long.db")) as reader, Watcher(replica.path("long.db")) as watcher:
        reader.run("BEGIN")
        before = reader.run(question)
        assert before[0][:2] == (100, 100)
        with Writer(group.path("long.db"), count=5_000) as writer:
            while writer.acknowledged < 5_000:
                assert reader.run(question) == before
                assert not writer.stopped_by
                run_sql(group.path("other.db"), "UPDATE counter SET value = value + 1")
                replica.wait_for("other.db", group.primary_node.position("other.db"), 10)
            assert writer.finish() == 5_100
        replica.wait_for("long.db", group.primary_node.position("long.db"))
        assert run_sql(replica.path("long.db"), question)[0][:2] == (5_100, 5_100)
        assert reader.run(question) == before
        assert wal.stat().st_size > 0, "what the reader does not see is still in the WAL"
        assert watcher.finish()["reads"] > 100
        reader.run("COMMIT")
        wait_until(lambda: wal.stat().st_size == 0, "the WAL is folded in after the reader's end", 60)
        assert reader.run(question)[0][:2] == (5_100, 5_100)
    assert_same(group.all, "long.db", "other.db")


def test_readers_of_a_replica_cannot_write(group: Group) -> None:
    prepare(group.path("mine.db"))
    caught_up(group.primary_node, group.replicas)
    for sql in ("INSERT INTO entry VALUES ('me', 1, 'x')", "DROP TABLE entry", "VACUUM", "CREATE TABLE t (a)"):
        with pytest.raises(SqlError, match="readonly"):
            run_sql(group.replicas[0].path("mine.db"), sql)
    assert_same(group.all, "mine.db")
