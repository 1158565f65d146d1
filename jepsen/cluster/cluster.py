"""The cluster that a run is made on: nodes, Consul and the network, with everything that can be broken.

Knows how it is put together for one run after the other, healed, and looked at in the end. Does not know who breaks
what (nemeses/), or what clients do (workloads/).
"""

import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from jepsen.cluster.at_the_end import Start, find_out, start
from jepsen.cluster.looking import Calls
from jepsen.cluster.machine import BreakableMachine
from jepsen.description import Replication
from jepsen.ending import Ending
from tests.failover.field import DATABASE, NAMES, SETTLED_LIMIT_S, Field
from tests.failover.machine import Machine

TTL_S: Final = 3.0
ENDING_LIMIT_S: Final = 60.0
EACH_LIMIT_S: Final = 1.0
"""More for each database: with several workloads there are dozens."""
CLEAR_LIMIT_S: Final = 30.0


class Cluster(Field):
    """Use it as a context; all is well then, and there is an empty database app.db that nobody needs.

    ``small_disk``: data directories are on file systems of limited size, for disk-full. ``faults``: disks and clocks
    obey switches, for io-error and clock. ``proxies``: nodes reach each other through relays, for slow. ``proxied``:
    databases of web applications that run beside the nodes, behind the proxies of HTTP. ``environment``: of every
    daemon. ``mutation``: a bug that all of them have (jepsen/mutations). Other ``options``: of lease.consul.

    ``kill_client`` is set by whoever has clients: it kills one of them, and says which.
    """

    def __init__(
        self,
        names: Sequence[str] = NAMES,
        *,
        seed: int,
        replication: Replication = "async",
        on_replica: str = "forward",
        small_disk: bool = False,
        faults: bool = False,
        proxies: bool = False,
        proxied: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        mutation: str = "",
        ttl_s: float = TTL_S,
        **options: Any,
    ) -> None:
        assert replication == "async", "nodes know no other replication yet"
        self.seed = seed
        self.small_disk, self.faults, self.proxies = small_disk, faults, proxies
        self._proxied = tuple(proxied)
        self._environment = dict(environment or {})
        self._mutation = mutation
        self.kill_client: Callable[[random.Random], str] | None = None
        super().__init__(names, ttl_s=ttl_s, on_replica=on_replica, **options)
        # Checkers judge what stands in logs.
        self.surprising = False

    def make(self, name: str) -> Machine:
        return BreakableMachine(
            self.network,
            self.folder / name,
            name,
            self.consul.urls,
            on_replica=self._on_replica,
            small_disk=self.small_disk,
            faults=self.faults,
            slow_wire=self.proxies,
            proxied=self._proxied,
            environment=self._environment,
            mutation=self._mutation,
            **self._options,
        )

    @property
    def machines(self) -> list[BreakableMachine]:
        """All nodes."""
        return [self.machine(each.name) for each in self.all]

    def machine(self, name: str) -> BreakableMachine:
        """One node, with what can be put wrong about it."""
        node = self.nodes[name]
        assert isinstance(node, BreakableMachine)
        return node

    @property
    def forwards(self) -> bool:
        """Whether replicas take writes."""
        return self._on_replica != "refuse"

    def mount(self, node: str) -> Path:
        """Where applications of a node see their databases."""
        return self.nodes[node].mount

    # -- one run after the other -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A run begins: its clock is 0, and what happened before is no part of its ending. All nodes answer."""
        self.since: Start = start(self.machines)

    def clock_ns(self) -> int:
        """Since the run began, on CLOCK_MONOTONIC."""
        return time.monotonic_ns() - self.since.began_ns

    def let_go_on(self) -> None:
        for each in self.machines:
            each.mend()

    def clear(self) -> None:
        """What earlier runs have left is dropped, so that nodes do not carry it along. AssertionError when it stays."""
        for each in self.machines:
            each.drop_diverged()
        primary = self.await_settled()
        left = [each["name"] for each in primary.status()["databases"] if each["name"] != DATABASE]
        if left:
            paths = [primary.path(f"{name}{suffix}") for name in left for suffix in ("", "-wal", "-shm", "-journal")]
            done = subprocess.run(["rm", "-f", "--", *paths], capture_output=True, timeout=CLEAR_LIMIT_S, check=False)
            assert done.returncode == 0, f"databases of earlier runs cannot be dropped: {done.stderr.decode()}"
            self.await_settled()

    def ending(
        self, databases: Sequence[str], calls_in: Calls | None = None, limit_s: float = ENDING_LIMIT_S
    ) -> Ending:
        """The one ending of all ``databases``."""
        return self.endings([databases], calls_in, limit_s)[0]

    def endings(
        self, groups: Sequence[Sequence[str]], calls_in: Calls | None = None, limit_s: float = ENDING_LIMIT_S
    ) -> list[Ending]:
        """Everything is healed and clients have ended: wait until the cluster is at rest, and look at all of it.

        ``groups``: of databases; each has its own ending, in which log lines about databases of others are left out.
        ``calls_in``: given the name of a database and a plain copy of it, the indexes of the calls whose rows are in
        it. Never raises for what nodes do: what cannot be found out is the ``problem`` of a node. Takes ``limit_s``,
        and some seconds more when nodes hang.
        """
        limit_s += EACH_LIMIT_S * sum(map(len, groups))
        with self.limited(limit_s + SETTLED_LIMIT_S):
            return find_out(self, groups, calls_in, limit_s)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.begin()
        except BaseException:
            self.tear_down()
            raise
        return self
