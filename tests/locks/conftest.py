"""A primary and two replicas with a database."""

from dataclasses import dataclass

import pytest

from tests.support.nodes import Node, Nodes
from tests.support.sql import run_sql

FAST = {"heartbeat": "200ms", "timeout": "2s"}


@dataclass(frozen=True, slots=True)
class Three:
    """``a`` is the primary."""

    a: Node
    b: Node
    c: Node

    def ids(self) -> list[int]:
        """What the primary has."""
        return [number for (number,) in run_sql(self.a.path(), "SELECT id FROM t ORDER BY id", mode="ro")]

    def halt(self) -> dict[str, object] | None:
        """Who has the database, as the primary says."""
        (found,) = (each for each in self.a.status()["databases"] if each["name"] == "app.db")
        halt = found["halt"]
        assert halt is None or isinstance(halt, dict)
        return halt


@pytest.fixture
def three(nodes: Nodes) -> Three:
    """Started, with ``t`` in ``app.db``."""
    a = nodes.primary("a", replication=FAST)
    run_sql(a.path(), "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, node TEXT);")
    b, c = (nodes.replica(a, name, replication=FAST) for name in ("b", "c"))
    for each in (b, c):
        each.wait_for("app.db", a.position())
    return Three(a, b, c)
