"""A primary that is told to stop and cannot hand over: what it has acknowledged is in the cluster all the same."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.line import Line
from tests.lease.support import leased_node
from tests.support.consul import Agent
from tests.support.nodes import ROOT, Node, Nodes, free_ports
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)

LIMIT_S = 30.0
TTL_S = 10.0


def kept(node: Node) -> list[object]:
    """What a node lists in ``diverged/``."""
    command = [sys.executable, "-m", "litereplica", "-c", str(node.config), "--json", "diverged", "list"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=env, check=True)
    found: list[object] = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def two_nodes(nodes: Nodes, agent: Agent) -> Iterator[tuple[Node, Node, Line]]:
    """The primary with one transaction, its replica, and the line between them, whose silence neither notices."""
    key = f"stops/{uuid.uuid4().hex[:8]}"
    ports = free_ports(2)
    with Line(ports[1]) as line:
        old = leased_node(
            nodes, "a", agent.url, key, ttl_s=TTL_S, ports=(ports[0], ports[1]), reached_at=line.port, timeout="60s"
        ).start()
        new = leased_node(nodes, "b", agent.url, key, ttl_s=TTL_S, timeout="60s", on_replica="forward").start()
        run_sql(old.path(), "CREATE TABLE t (x)", mode="rwc")
        new.wait_for("app.db", old.position())
        yield old, new, line


def assert_nothing_diverged(old: Node, new: Node) -> None:
    """The old primary comes back and follows."""
    run_sql(new.path(), "INSERT INTO t VALUES (100)", mode="rw")
    old.start()
    old.wait_for("app.db", new.position())
    assert kept(old) == []


def test_what_a_late_replica_lacks_reaches_it_before_the_lease_is_given_up(nodes: Nodes, shared_agent: Agent) -> None:
    with two_nodes(nodes, shared_agent) as (old, new, line), Session(new.path(), mode="rw") as other:
        run_sql(old.path("late.db"), "CREATE TABLE t (x)", mode="rwc")
        line.stall()
        for number in range(20):
            run_sql(old.path("late.db"), "INSERT INTO t VALUES (?)", number, mode="rw")
        last = old.position("late.db")
        old.signal(signal.SIGTERM)
        wait_until(lambda: old.log_lines("not_handed_off"), "the replica does not catch up", LIMIT_S)
        # What is forwarded now arrives when no commit is accepted any more.
        other.send("INSERT INTO t VALUES (1)")
        time.sleep(1.0)
        line.go_on()
        assert old.wait_ended() == 0
        wait_until(lambda: new.status()["role"] == "primary", "the other one leads", LIMIT_S)
        assert new.position("late.db") == last
        other.receive()
        assert_nothing_diverged(old, new)
        assert run_sql(old.path("late.db"), "SELECT count(*) FROM t", mode="ro") == [(20,)]
        assert run_sql(old.path(), "SELECT x FROM t ORDER BY x", mode="ro") == [(1,), (100,)]


def test_a_stop_pushes_through_what_an_application_has_kept_a_person_from_doing(
    nodes: Nodes, shared_agent: Agent
) -> None:
    """Somebody sits in a transaction, so a handoff without force is about to be called off when the node is stopped."""
    with two_nodes(nodes, shared_agent) as (old, new, _), Session(old.path(), mode="rw") as sitting:
        sitting.run("BEGIN IMMEDIATE")
        sitting.run("INSERT INTO t VALUES (1)")
        person = http.client.HTTPConnection("127.0.0.1", old.http_port, timeout=LIMIT_S)
        with contextlib.closing(person):
            person.request("POST", "/failover", b"{}", {"content-type": "application/json"})
            time.sleep(0.7)  # it waits two seconds for that transaction
            old.signal(signal.SIGTERM)
            wait_until(lambda: new.status()["role"] == "primary", "the other one leads", LIMIT_S)
        assert "hands off to b" in new.log or "offered" in new.log, new.log
        with contextlib.suppress(SqlError):
            sitting.run("ROLLBACK")
        assert old.wait_ended() == 0
    assert_nothing_diverged(old, new)
