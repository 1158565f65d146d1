"""A node that has not yet gone back to the cluster's history, or has nothing of it, is no candidate."""

import shutil
import subprocess

import pytest

from tests.failover.checking import kept
from tests.failover.conftest import TTL_S, pause
from tests.failover.field import Field
from tests.failover.machine import Machine
from tests.support.sql import run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)

# A field of its own: a node that is killed as soon as it leads knows of a reign that nobody else has heard of.
OPTIONS = {"outage": "stop"}
LARGE, SMALL = "large.db", "small.db"
LIMIT_S = 20.0


def write(node: Machine, database: str, what: str) -> None:
    run_sql(node.path(database), "INSERT INTO t VALUES (?, NULL)", what)


def at(node: Machine, database: str) -> str:
    """Its position; "" when it is not there, or the node does not answer."""
    databases = node.get("/status")[1].get("databases", ())
    return next((f"{each['txid']}/{each['checksum']}" for each in databases if each["name"] == database), "")


def what(node: Machine, database: str) -> set[str]:
    return {row[0] for row in run_sql(node.path(database), "SELECT what FROM t WHERE what IS NOT NULL", mode="ro")}


def killed_while_it_goes_back(field: Field) -> tuple[Machine, Machine, Machine]:
    """The old primary, which runs and has lost history in one database; who followed it, and the third: both killed."""
    old = field.await_settled()
    for database in (LARGE, SMALL):
        run_sql(old.path(database), "PRAGMA journal_mode=WAL; CREATE TABLE t (what, filler)")
        write(old, database, "common")
    filler = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150) "
        "INSERT INTO t SELECT NULL, zeroblob(1000000) FROM n"
    )
    run_sql(old.path(LARGE), filler, limit_s=60.0)
    field.await_settled()
    away = field.others(old)[1]
    away.kill()
    # Transactions that only the old primary has, of one database.
    field.part_from_peers(old)
    write(old, LARGE, "lost")
    old.kill()
    new = field.primary()
    field.network.heal()
    for database in (LARGE, SMALL):
        write(new, database, "newer")
    newer = at(new, SMALL)
    # It is as far as anybody with one of them, and killed before it has gone back with the other.
    old.start(wait=False)
    wait_until(lambda: at(old, SMALL) == newer, f"{old.name} has what was written since", LIMIT_S)
    old.kill()
    new.kill()
    old.start(wait=False)
    wait_until(lambda: old.role == "replica", f"{old.name} runs", LIMIT_S)
    return old, new, away


def end(field: Field) -> None:
    """Everybody runs; nothing of all this is left."""
    names = [field.primary().path(f"{each}{suffix}") for each in (LARGE, SMALL) for suffix in ("", "-wal", "-shm")]
    subprocess.run(["rm", "-f", "--", *names], check=True, timeout=LIMIT_S)
    field.await_settled()


def test_a_node_that_was_killed_while_it_went_back_does_not_bring_lost_transactions_back(field: Field) -> None:
    old, new, away = killed_while_it_goes_back(field)
    had = at(old, LARGE)
    pause(2.5 * TTL_S)
    assert old.role == "replica"
    assert at(old, LARGE) == had
    new.start()
    wait_until(lambda: new.role == "primary", f"{new.name} leads again", LIMIT_S)
    away.start()
    field.await_settled()
    for node in field.all:
        assert what(node, LARGE) == what(node, SMALL) == {"common", "newer"}, node.name
    assert LARGE in {each["database"] for each in kept(old)}
    end(field)


def test_a_person_may_have_it_lead_all_the_same(field: Field) -> None:
    """The last primary is gone for good, say; if it is not, what it had is kept."""
    known = {each["id"] for node in field.all for each in kept(node)}
    old, new, away = killed_while_it_goes_back(field)
    had = at(old, LARGE)
    said = old.ask("POST", "/failover", {"to": old.name, "force": True}, limit_s=LIMIT_S)
    assert said[0] == 200, said
    wait_until(lambda: old.role == "primary", f"{old.name} leads", LIMIT_S)
    assert at(old, LARGE) == had
    # From here on its history is the cluster's, also when it is killed.
    old.kill()
    old.start()
    wait_until(lambda: old.role == "primary", f"{old.name} leads again", LIMIT_S)
    new.start()
    away.start()
    field.await_settled()
    for node in field.all:
        assert "lost" in what(node, LARGE), node.name
        assert what(node, SMALL) == {"common", "newer"}, node.name
    assert LARGE in {each["database"] for each in kept(new) if each["id"] not in known}
    end(field)


def test_a_node_that_has_lost_its_disk_does_not_lead_before_those_that_have_everything(field: Field) -> None:
    first = field.primary()
    run_sql(first.path(SMALL), "PRAGMA journal_mode=WAL; CREATE TABLE t (what, filler)")
    write(first, SMALL, "kept")
    field.await_settled()
    had = at(first, SMALL)
    # A second or so after the first transaction of a cluster.
    wait_until(lambda: first.get("/history")[1]["history"][-1]["positions"] != {}, "it is in the history", LIMIT_S)
    for node in field.all:
        node.kill()
    shutil.rmtree(first.data)
    first.start(wait=False)
    wait_until(lambda: first.role == "replica", f"{first.name} runs", LIMIT_S)
    pause(2.5 * TTL_S)
    assert first.role == "replica"
    assert first.log_lines("no_candidate")
    assert "failover --force" in first.get("/status")[1]["reason"]
    known = {each["id"] for node in field.others(first) for each in kept(node)}
    for node in field.others(first):
        node.start(wait=False)
    field.await_settled()
    assert field.primary() is not first
    assert at(first, SMALL) == had
    assert what(first, SMALL) == {"kept"}
    assert {each["id"] for node in field.others(first) for each in kept(node)} == known
    end(field)
