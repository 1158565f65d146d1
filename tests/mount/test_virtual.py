"""``.primary``, ``.lag`` and ``DB-pos``: exact bytes and times, as LiteFS's clients read them."""

import os
import re
import time

from tests.support.nodes import Node, Nodes
from tests.support.sql import make_database, run_sql
from tests.support.waiting import wait_until


def test_on_the_primary_there_is_no_primary_file_and_no_lag(node: Node) -> None:
    assert not (node.mount / ".primary").exists()
    assert (node.mount / ".lag").read_bytes() == b"+000000000\n"
    assert (node.mount / ".lag").stat().st_size == 11
    assert ".primary" not in {entry.name for entry in node.mount.iterdir()}


def test_the_position_file_is_34_bytes_and_its_time_is_the_last_transactions(node: Node) -> None:
    path, position = node.path("pos.db"), node.path("pos.db-pos")
    assert not position.exists()
    before_ms = time.time_ns() // 1_000_000
    make_database(path)
    content = position.read_bytes()
    assert re.fullmatch(rb"[0-9a-f]{16}/[0-9a-f]{16}\n", content)
    assert content.decode().strip() == node.position("pos.db")
    found = position.stat()
    assert found.st_size == 34
    assert before_ms <= found.st_mtime_ns // 1_000_000 <= time.time_ns() // 1_000_000
    assert found.st_mode & 0o777 == 0o444


def test_the_position_file_is_new_after_each_commit_and_whole_for_who_has_it_open(node: Node) -> None:
    path, position = node.path("moving.db"), node.path("moving.db-pos")
    make_database(path)
    with position.open("rb", buffering=0) as opened:
        first = opened.read(10)
        run_sql(path, "INSERT INTO t (v) VALUES (1)")
        old = first + opened.read(100)
    assert len(old) == 34
    new = position.read_bytes()
    assert int(new[:16], 16) == int(old[:16], 16) + 1


def test_a_replica_names_its_primary_and_its_lag(nodes: Nodes) -> None:
    primary = nodes.primary("first")
    replica = nodes.replica(primary, "second")
    make_database(primary.path(), rows=10)
    replica.wait_for("app.db", primary.position())
    assert (replica.mount / ".primary").read_bytes() == b"first\n"
    assert ".primary" in {entry.name for entry in replica.mount.iterdir()}
    lag = (replica.mount / ".lag").read_bytes()
    assert re.fullmatch(rb"[+-]\d{9}\n", lag)
    assert int(lag) < 5000
    ours, theirs = replica.path("app.db-pos"), primary.path("app.db-pos")
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_mtime_ns == theirs.stat().st_mtime_ns
    primary.stop()
    wait_until(lambda: int((replica.mount / ".lag").read_bytes()) > 0, "the lag grows without a primary")


def test_the_lag_before_the_first_contact_is_unknown(nodes: Nodes) -> None:
    nobody = nodes.make_primary("absent")
    replica = nodes.make_replica(nobody, "alone").start(wait=False)
    wait_until(lambda: replica.get("/livez")[0] == 200, "the replica answers")
    assert (replica.mount / ".lag").read_bytes() == b"+2147483647\n"
    assert (replica.mount / ".primary").read_bytes() == b"absent\n"
    assert os.stat(replica.mount / ".lag").st_size == 12  # noqa: PTH116  as an application asks
