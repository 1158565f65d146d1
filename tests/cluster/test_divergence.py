"""A node that returns with transactions that the others do not have, with real processes and mounts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.comparing import assert_same, caught_up, content
from tests.cluster.group import kill
from tests.support.nodes import ROOT, Node, Nodes
from tests.support.sql import Session, SqlError, refusal, run_sql
from tests.support.waiting import wait_until

DB = "app.db"
ROWS = 200
LOST = 50
NUMBERS = "WITH RECURSIVE numbers(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < 6000)"


def lead(primary: Node, *replicas: Node) -> None:
    """From the next start on ``primary`` is the static primary of all of them."""
    for node in (primary, *replicas):
        node._primary = (primary.name, primary.http_port, primary.replication_port)
        node.configure()


def diverged(node: Node, *arguments: object) -> Any:
    """What ``litereplica diverged`` answers on the machine of a node."""
    done = subprocess.run(
        [sys.executable, "-m", "litereplica", "-c", node.config, "--json", "diverged", *map(str, arguments)],
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fill(node: Node, first: int, count: int) -> None:
    with Session(node.path(DB)) as session:
        for number in range(first, first + count):
            session.run("INSERT INTO t VALUES (?, ?)", number, f"{node.name} {number} " * 40)


@pytest.mark.parametrize(("mode", "killed"), [("wal", False), ("wal", True), ("delete", False)])
def test_an_old_primary_keeps_what_only_it_had_goes_back_and_follows(  # noqa: PLR0915  one story
    nodes: Nodes, tmp_path: Path, mode: str, killed: bool
) -> None:
    a = nodes.primary("a")
    b = nodes.replica(a, "b")
    run_sql(a.path(DB), f"PRAGMA journal_mode={mode}; CREATE TABLE t (n INTEGER PRIMARY KEY, v);")
    fill(a, 0, ROWS)
    caught_up(a, [b])
    common = a.position(DB)
    b.stop()
    fill(a, ROWS, LOST)
    run_sql(a.path(DB), "DELETE FROM t WHERE n % 7 = 0;")
    run_sql(a.path(DB), "PRAGMA wal_checkpoint(TRUNCATE);")
    had, end = content(a.path(DB)), a.position(DB)
    if killed:
        a.kill()
    else:
        a.stop()

    lead(b, a)
    a.start(wait=False)
    wait_until(lambda: len(a.log_lines("ready_to_serve")) == 2, "a is mounted again", 30)
    with Session(a.path(DB), mode="ro") as reader, Session(a.path(DB), mode="ro") as other:
        seen = reader.run("SELECT count(*), max(n) FROM t")
        assert seen[0][1] == ROWS + LOST - 1
        reader.run("BEGIN")
        assert reader.run("SELECT count(*), max(n) FROM t") == seen
        b.start()
        fill(b, 1000, 30)
        # Not /wait: until it has gone back, it says 409.
        caught_up(b, [a])
        # Not /wait: until it has gone back, it says 409.
        caught_up(b, [a])
        after = [(ROWS + 30, 1029)]
        if mode == "wal":
            assert reader.run("SELECT count(*), max(n) FROM t") == seen, "a reader keeps what it reads"
            assert other.run("SELECT count(*), max(n) FROM t") == after
            reader.run("COMMIT")
            assert reader.run("SELECT count(*), max(n) FROM t") == after
        else:
            with pytest.raises(SqlError, match=r"SQLITE_CANTOPEN|SQLITE_IOERR"):
                other.run("SELECT count(*), max(n) FROM t")
            assert run_sql(a.path(DB), "SELECT count(*), max(n) FROM t") == after
    assert_same([b, a])

    assert a.log_lines("went_back")
    assert not a.log_lines("snapshot_begins"), "everything that was needed was here"
    [entry] = diverged(a, "list")
    assert (entry["database"], entry["base"], entry["end"]) == (DB, common, end)
    assert (entry["records"], entry["node"], entry["primary"], entry["kept"]) == (LOST + 1, "a", "b", "database")
    diverged(a, "export", entry["id"], tmp_path / "export.db")
    assert (tmp_path / "export.db").read_bytes() == had
    lost = f"SELECT count(*) FROM t WHERE n BETWEEN {ROWS} AND {ROWS + LOST - 1} AND n % 7"
    assert run_sql(tmp_path / "export.db", lost)[0][0] > 0
    diverged(a, "drop", "--yes", entry["id"])
    assert not list((a.data / "diverged").iterdir())

    # And nothing of that comes up again.
    a.stop()
    fill(b, 2000, 5)
    a.start()
    caught_up(b, [a])
    assert_same([b, a])
    assert len(a.log_lines("went_back")) == 1


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_both_sides_have_made_alike_is_lost_once_and_listed(nodes: Nodes, mode: str) -> None:
    """Each has counted to three, and was told so; the cluster has three of the six."""
    a = nodes.primary("a")
    b = nodes.replica(a, "b")
    run_sql(a.path(DB), f"PRAGMA journal_mode={mode}; CREATE TABLE t (n); INSERT INTO t VALUES (0);")
    caught_up(a, [b])
    common = a.position(DB)
    b.stop()
    count = "UPDATE t SET n = n + 1;" * 3
    run_sql(a.path(DB), count)
    end = a.position(DB)
    a.stop()
    lead(b, a)
    b.start()
    run_sql(b.path(DB), count)
    assert b.position(DB) == end, "to SQLite the same statements make the same pages of the same pages"
    a.start(wait=False)
    wait_until(lambda: a.log_lines("went_back"), "a has gone back", 30)
    caught_up(b, [a])
    [entry] = diverged(a, "list")
    assert (entry["database"], entry["base"], entry["end"], entry["records"]) == (DB, common, end, 3)
    run_sql(b.path(DB), count)
    caught_up(b, [a])
    assert run_sql(a.path(DB), "SELECT n FROM t", mode="ro") == [(6,)]
    assert_same([b, a])


@pytest.mark.parametrize(("mode", "fetched"), [("wal", False), ("delete", False), ("delete", True)])
def test_a_connection_that_knows_a_lost_schema_is_told_so_before_it_can_use_it(
    nodes: Nodes, mode: str, *, fetched: bool
) -> None:
    """Schema changes are counted; after as many others, of the other history, the number is the same again."""
    sections: dict[str, Any] = {"writes": {"on_replica": "forward"}}
    a = nodes.make_primary("a")
    b = nodes.make_replica(a, "b")
    for node in (a, b):
        node.configure(**sections)
        node.start()
    run_sql(a.path(DB), f"PRAGMA journal_mode={mode}; CREATE TABLE t (n INTEGER PRIMARY KEY, v);")
    fill(a, 0, ROWS)
    caught_up(a, [b])
    b.stop()
    if fetched:
        # Nobody goes back over that: a snapshot is needed.
        run_sql(a.path(DB), "PRAGMA page_size=8192; VACUUM;")
    run_sql(a.path(DB), "CREATE TABLE lost (x, y); INSERT INTO lost VALUES (1, 2);")
    [(lost,)] = run_sql(a.path(DB), "PRAGMA schema_version")
    a.stop()

    lead(b, a)
    for node in (a, b):
        node.configure(**sections)
    a.start(wait=False)
    wait_until(lambda: len(a.log_lines("ready_to_serve")) == 2, "a is mounted again", 30)
    with Session(a.path(DB)) as reader, Session(a.path(DB)) as writer, Session(a.path(DB)) as unused:
        for session in (reader, writer):
            assert session.run("SELECT x, y FROM lost") == [(1, 2)]
        b.start()
        run_sql(b.path(DB), "CREATE TABLE other (z); INSERT INTO other VALUES (3);")
        while run_sql(b.path(DB), "PRAGMA schema_version")[0][0] < lost:
            run_sql(b.path(DB), "CREATE INDEX i ON other (z)")
        caught_up(b, [a])
        assert run_sql(a.path(DB), "PRAGMA schema_version") == [(lost,)]
        assert run_sql(a.path(DB), "SELECT z FROM other") == [(3,)], "who opens it now sees what there is"
        for session, sql in (
            (reader, "SELECT x, y FROM lost"),
            (reader, "SELECT count(*) FROM t"),
            (writer, "INSERT INTO lost VALUES (8, 9)"),
            (unused, "INSERT INTO other VALUES (9)"),
        ):
            assert refusal(session, sql) in {"SQLITE_CANTOPEN", "SQLITE_IOERR_FSTAT"}, sql
    run_sql(a.path(DB), "INSERT INTO other VALUES (4)")
    caught_up(b, [a])
    assert run_sql(a.path(DB), "SELECT z FROM other ORDER BY z") == [(3,), (4,)]
    assert_same([b, a])
    assert a.log_lines("snapshot_installed" if fetched else "went_back")
    assert a.log_lines("connections_cut_off")


def test_a_connection_goes_on_where_no_schema_was_lost(nodes: Nodes) -> None:
    a = nodes.primary("a")
    b = nodes.replica(a, "b")
    run_sql(a.path(DB), "PRAGMA journal_mode=wal; CREATE TABLE t (n INTEGER PRIMARY KEY, v);")
    caught_up(a, [b])
    b.stop()
    fill(a, 0, LOST)
    a.stop()
    lead(b, a)
    a.start(wait=False)
    wait_until(lambda: len(a.log_lines("ready_to_serve")) == 2, "a is mounted again", 30)
    with Session(a.path(DB), mode="ro") as reader:
        assert reader.run("SELECT count(*) FROM t") == [(LOST,)]
        b.start()
        run_sql(b.path(DB), "CREATE TABLE other (z); INSERT INTO other VALUES (3);")
        caught_up(b, [a])
        assert reader.run("SELECT z FROM other") == [(3,)]
    assert not a.log_lines("connections_cut_off")


STEPS = ("history_diverged", "transactions_kept", "content_rebuilt", "log_set_aside", "went_back")


def test_killed_at_each_step_on_the_way_back_it_arrives(nodes: Nodes, tmp_path: Path) -> None:
    a = nodes.primary("a")
    b = nodes.replica(a, "b")
    run_sql(a.path(DB), "PRAGMA journal_mode=wal; CREATE TABLE t (n INTEGER PRIMARY KEY, v);")
    with Session(a.path(DB)) as session:
        session.run(f"{NUMBERS} INSERT INTO t SELECT value, randomblob(1000) FROM numbers WHERE value < 4000")
    caught_up(a, [b])
    b.stop()
    with Session(a.path(DB)) as session:
        session.run(f"{NUMBERS} INSERT INTO t SELECT value, randomblob(1000) FROM numbers WHERE value > 5000")
        session.run("UPDATE t SET v = randomblob(1000) WHERE n % 5 = 0")
    run_sql(a.path(DB), "PRAGMA wal_checkpoint(TRUNCATE);")
    had = content(a.path(DB))
    a.stop()
    lead(b, a)
    b.start()
    fill(b, 10_000, 20)
    for step in STEPS:
        a.start(wait=False)
        wait_until(lambda step=step: a.log_lines(step) or same_position(a, b), f"a comes to {step}", 60)  # type: ignore[misc]
        kill(a)
    a.start()
    caught_up(b, [a])
    fill(b, 20_000, 5)
    caught_up(b, [a])
    assert_same([b, a])
    assert not a.log_lines("snapshot_begins")
    [entry] = [each for each in diverged(a, "list") if each["kept"] != "log only"]
    diverged(a, "export", entry["id"], tmp_path / "export.db")
    assert (tmp_path / "export.db").read_bytes() == had


def same_position(one: Node, other: Node) -> bool:
    code, found = one.get("/status")
    return code == 200 and found["databases"] == other.status()["databases"]
