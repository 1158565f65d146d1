"""A cluster that nemeses are tried on, one after the other, and what of its writes was acknowledged."""

import contextlib
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import BreakableMachine
from jepsen.nemeses.nemesis import NOBODY, Nemesis
from litereplica.ltx.decode import RecordDecoder
from litereplica.ltx.format import RecordHeader
from litereplica.store.store import folder_name
from tests.support.sql import SqlError, run_sql
from tests.support.waiting import wait_until

DATABASE: Final = "broken.db"
TAKEOVER_S: Final = 15.0
FRESH: Final = 0.65
"""Of a ttl: left of a lease of which no renewal has failed."""


class Shared:
    """The cluster, and what of its writes was acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.acknowledged: list[int] = []
        self.tried: set[str] = set()
        self._number = 0
        run_sql(
            cluster.primary().path(DATABASE),
            "PRAGMA journal_mode=WAL; CREATE TABLE row (call INTEGER PRIMARY KEY, filler)",
        )
        cluster.await_settled()

    def write(self, node: BreakableMachine) -> None:
        """One row, through the mount of a node; noted when it is acknowledged. Raises SqlError, AssertionError."""
        self._number += 1
        insert = "INSERT INTO row VALUES (?, zeroblob(3000))"
        run_sql(node.path(DATABASE), insert, self._number, mode="rw", busy_s=2.0, limit_s=10)
        self.acknowledged.append(self._number)

    def write_to_primary(self) -> None:
        """One row, on whoever is primary: that may be about to change once more after an outage."""
        end = time.monotonic() + TAKEOVER_S
        while True:
            try:
                self.write(self.primary())
            except (SqlError, AssertionError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return

    def primary(self) -> BreakableMachine:
        return self.cluster.machine(self.cluster.primary().name)

    def primary_of_a_fresh_lease(self) -> BreakableMachine:
        """Cut off now, it commits for some time yet. Consul that has just been wiped may be slow to renew a lease."""

        def found() -> list[BreakableMachine]:
            primary = self.primary()
            lease = primary.status()["lease"]
            return [primary] if (lease["remaining_ms"] or 0) > FRESH * lease["ttl_ms"] else []

        return wait_until(found, "a lease that was just renewed", TAKEOVER_S)[0]

    @staticmethod
    def primary_of(nodes: Sequence[BreakableMachine]) -> BreakableMachine:
        return next(each for each in nodes if each.role == "primary")

    def await_another_primary(self, old: BreakableMachine) -> None:
        wait_until(lambda: any(each is not old for each in self.cluster.primaries()), "another is primary", TAKEOVER_S)

    @contextlib.contextmanager
    def broken(self, nemesis: Nemesis, seed: int = 1) -> Iterator[str]:
        """While it is at work; afterwards the cluster is well by what the nemesis mends alone."""
        self.tried.add(nemesis.name)
        said = nemesis.begin(self.cluster, random.Random(seed))
        try:
            assert NOBODY not in said
            yield said
        finally:
            nemesis.end(self.cluster)
        for each in self.cluster.machines:
            each.wait_ready()
        self.cluster.consul.wait_formed()
        self.cluster.await_settled()


def newest_timestamp_s(node: BreakableMachine) -> float:
    """Of the last record in the log of a node."""
    newest = 0
    for path in (node.data / "db" / folder_name(DATABASE)).glob("*.ltx"):
        decoder = RecordDecoder()
        events = decoder.feed(path.read_bytes())
        while decoder.more:
            events += decoder.feed(b"")
        newest = max([newest, *(each.timestamp_ms for each in events if isinstance(each, RecordHeader))])
    return newest / 1000


def calls_in(_: str, database: Path) -> list[int]:
    """The rows of a plain copy."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [row[0] for row in connection.execute("SELECT call FROM row")]
