"""``DB-halt`` on real nodes: who has it, in which order, and what others see of it."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.locks.conftest import FAST, Three
from tests.locks.opener import Opener
from tests.roles.conftest import Direct, forwarding  # noqa: F401  a fixture
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until

INSERT = "INSERT INTO t (node) VALUES (?)"
# A replica's connection is given up after 2 s (FAST), a lock that is not renewed after 10 s.
OVER_LIMIT_S = 15.0


def writes(path: Path, who: str, busy_s: float = 0.3) -> bool:
    try:
        run_sql(path, INSERT, who, mode="rw", busy_s=busy_s)
    except SqlError:
        return False
    return True


def test_openers_of_two_nodes_and_of_the_primary_have_it_one_after_the_other(three: Three) -> None:
    with Opener(three.b) as first:
        first.wait_held()
        with Opener(three.c) as second:
            wait_until(lambda: (three.halt() or {}).get("waiting") == 1, "c waits")
            with Opener(three.a) as third, Opener(three.b) as fourth:
                wait_until(lambda: (three.halt() or {}).get("waiting") == 3, "all wait")
                assert second.word(0.5) == third.word(0) == fourth.word(0) == ""
                first.close()
                second.wait_held()
                assert (three.halt() or {})["node"] == "c"
                second.close()
                third.wait_held()
                assert (three.halt() or {})["node"] == "a"
                assert fourth.word(0.5) == ""
                third.close()
                fourth.wait_held()
    wait_until(lambda: three.halt() is None, "nobody has it")


def test_under_a_replica_s_lock_it_alone_writes_and_reads_what_others_wrote_before(three: Three) -> None:
    run_sql(three.a.path(), INSERT, "a")
    with Opener(three.b) as opener, Session(three.b.path(), mode="rw") as session:
        opener.wait_held()
        assert session.run("SELECT node FROM t") == [("a",)]
        assert not writes(three.a.path(), "a")
        session.run(INSERT, "b", times=20)
        assert not writes(three.a.path(), "a")
        began = time.monotonic()
        assert not writes(three.c.path(), "c")
        assert time.monotonic() - began < 20
    assert writes(three.a.path(), "a", 20)
    wait_until(lambda: writes(three.c.path(), "c"), "c writes again")
    assert len(three.ids()) == 23


def test_under_a_lock_on_the_primary_its_applications_write_and_replicas_do_not(three: Three) -> None:
    with Opener(three.a) as opener:
        opener.wait_held()
        assert writes(three.a.path(), "a")
        assert not writes(three.b.path(), "b")
        assert writes(three.a.path(), "a")
    wait_until(lambda: writes(three.b.path(), "b"), "b writes again")
    assert len(three.ids()) == 3


def test_a_lock_on_the_primary_comes_after_a_transaction_of_a_replica_that_waits_there(three: Three) -> None:
    with Session(three.a.path()) as local, Session(three.b.path(), mode="rw") as remote:
        local.run("BEGIN IMMEDIATE")
        remote.send(INSERT, "b")
        time.sleep(0.5)  # it is at the primary's applier, which waits for SQLite's lock
        with Opener(three.a) as opener:
            assert opener.word(0.5) == ""
            local.run("ROLLBACK")
            remote.receive()
            opener.wait_held()
            ids = three.ids()
            time.sleep(0.3)
            assert len(ids) == 1
            assert three.ids() == ids


def test_a_signal_ends_the_waiting_and_a_kill_too(three: Three) -> None:
    with Opener(three.b) as holder:
        holder.wait_held()
        with Opener(three.c, handles=True) as first, Opener(three.c) as second:
            wait_until(lambda: (three.halt() or {}).get("waiting") == 2, "both wait")
            first.signal(signal.SIGUSR1)
            assert first.word(5) == "interrupted"
            second.signal(signal.SIGKILL)
            wait_until(lambda: (three.halt() or {}).get("waiting") == 0, "nobody waits")
        assert three.c.status()["writes"]["locks"] == []


def test_a_holder_that_is_killed_gives_it_back(three: Three) -> None:
    with Opener(three.b) as holder, Opener(three.c) as second:
        holder.wait_held()
        holder.signal(signal.SIGKILL)
        second.wait_held()


def test_a_database_that_is_not_there_cannot_be_locked(three: Three) -> None:
    with Opener(three.b, "other.db") as opener:
        assert opener.word().startswith("refused")


def test_the_primary_s_applier_dies_and_with_it_the_lock_until_it_is_taken_again(three: Three) -> None:
    with Opener(three.b) as holder:
        holder.wait_held()
        assert writes(three.b.path(), "b")
        os.kill(three.a.applier(), signal.SIGKILL)
        wait_until(lambda: three.b.status()["writes"]["locks"][0]["state"] == "lost", "b knows", OVER_LIMIT_S)
        assert not writes(three.b.path(), "b")
        assert "here lost" in three.b.path("app.db-halt").read_text(encoding="utf-8")
        with Opener(three.b) as another:
            assert another.word().startswith("refused")
    with Opener(three.b) as holder:
        holder.wait_held()
        assert writes(three.b.path(), "b")
    assert len(three.ids()) == 2


def test_a_lock_is_shown_counted_and_told(three: Three) -> None:
    with urllib.request.urlopen(f"{three.a.url}/events", timeout=10) as events:
        assert json.loads(events.readline())["type"] == "init"
        with Opener(three.b) as holder:
            holder.wait_held()
            told = json.loads(events.readline())
            assert (told["type"], told["db"], told["data"]["node"], told["data"]["state"]) == (
                "halt", "app.db", "b", "held",
            )  # fmt: skip
            figures = _figures(three.a)
            assert 'litereplica_halted{database="app.db",kind="lock",node="b"} 1.0' in figures
            assert 'litereplica_locks{database="app.db",state="held"} 1.0' in _figures(three.b)
            assert writes(three.b.path(), "b")
            assert json.loads(events.readline())["type"] == "tx"
            time.sleep(0.5)
        told = json.loads(events.readline())
        assert (told["type"], told["data"]["state"]) == ("halt", "ended")
    figures = _figures(three.a)
    assert not [line for line in figures if line.startswith("litereplica_halted{")]
    (seconds,) = (
        float(line.split()[1]) for line in figures if line.startswith('litereplica_halt_seconds_total{kind="lock"')
    )
    assert seconds >= 0.5
    assert 'litereplica_taken_transactions_total{outcome="committed"} 1.0' in figures
    assert 'litereplica_forwarded_transactions_total{outcome="committed"} 1.0' in _figures(three.b)


def test_a_transaction_that_the_primary_does_not_take_is_told_where_it_was_made(three: Three) -> None:
    with urllib.request.urlopen(f"{three.b.url}/events", timeout=20) as events, Opener(three.a) as opener:
        opener.wait_held()
        assert not writes(three.b.path(), "b")
        told: dict[str, Any] = {"type": "init"}
        while told["type"] in {"init", "tx"}:
            told = json.loads(events.readline())
    assert (told["type"], told["db"], told["data"]["outcome"]) == ("forward", "app.db", "busy")
    assert "node a has it" in told["data"]["reason"]


def _figures(node: Node) -> list[str]:
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=10) as answer:
        return str(answer.read(), "utf-8").splitlines()


def test_in_mode_lock_a_commit_needs_the_lock_and_in_mode_refuse_there_is_none(nodes: Nodes) -> None:
    a = nodes.primary("a", replication=FAST)
    run_sql(a.path(), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, node TEXT);")
    b = nodes.replica(a, "b", replication=FAST, writes={"on_replica": "lock"})
    c = nodes.replica(a, "c", replication=FAST, writes={"on_replica": "refuse"})
    for each in (b, c):
        each.wait_for("app.db", a.position())
    assert not writes(b.path(), "b")
    with Opener(b) as opener:
        opener.wait_held()
        assert writes(b.path(), "b")
    assert not writes(b.path(), "b")
    assert not writes(c.path(), "c")
    with Opener(c) as opener:
        assert opener.word().startswith("refused")
    assert len(run_sql(a.path(), "SELECT id FROM t", mode="ro")) == 1


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("holder", ["old", "new"])
def test_another_primary_ends_every_lock_and_gives_them_anew(
    forwarding: Direct,  # noqa: F811
    holder: str,
    mode: str,
) -> None:
    old, new = forwarding("a"), forwarding("b")
    old.promote(1)
    new.follow(old)
    run_sql(old.path(), f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, node TEXT);")
    new.wait_for("app.db", old.position())
    node = old if holder == "old" else new
    with Opener(node) as opener:
        opener.wait_held()
        assert writes(node.path(), "before")
        new.wait_for("app.db", old.position())
        old.demote()
        new.promote(2)
        old.follow(new)
        wait_until(lambda: node.status()["writes"]["locks"][0]["state"] == "lost", "it is lost", OVER_LIMIT_S)
        assert not writes(node.path(), "under the lost lock")
    for each in (old, new):
        wait_until(lambda each=each: writes(each.path(), "after"), f"{each.name} writes", OVER_LIMIT_S)  # type: ignore[misc]
        with Opener(each) as opener:
            opener.wait_held()
            assert writes(each.path(), "again")
    found = [who for (who,) in run_sql(new.path(), "SELECT node FROM t ORDER BY id", mode="ro")]
    assert found == ["before", "after", "again", "after", "again"]


def test_a_lock_is_kept_although_the_applier_runs_out_of_descriptors(nodes: Nodes) -> None:
    forwards = {"on_replica": "forward"}
    a = nodes.make_primary("a", replication=FAST, writes=forwards)
    a.start(prefix=("prlimit", "--nofile=136:136"))  # for 12 databases in the applier
    others = [f"other{number}.db" for number in range(14)]
    for name in ("app.db", *others):
        run_sql(a.path(name), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        run_sql(a.path(name), "INSERT INTO t VALUES (1, 0)")
    b = nodes.replica(a, "b", replication=FAST, writes=forwards)
    for name in ("app.db", *others):
        b.wait_for(name, a.position(name))
    add = "UPDATE t SET v = v + 100"
    with Opener(b) as opener, Session(b.path(), mode="rw") as session:
        opener.wait_held()
        ((value,),) = session.run("SELECT v FROM t")
        for name in others:
            run_sql(b.path(name), "UPDATE t SET v = v + 1", mode="rw")
            with pytest.raises(SqlError):
                run_sql(a.path(), add, busy_s=0.05)
        session.run("UPDATE t SET v = ?", value + 1)
    run_sql(a.path(), add, busy_s=5)
    assert run_sql(a.path(), "SELECT v FROM t", mode="ro") == [(101,)]
