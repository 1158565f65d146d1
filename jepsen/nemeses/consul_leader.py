"""Kill -9 of the Consul server that leads; it is started again at the end."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import NOBODY, OneOf


class ConsulLeader(OneOf):
    """The other two elect another."""

    name = "consul-leader"
    KINDS: tuple[str, ...] = ("leader",)
    touches = frozenset({"consul"})

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self._killed = ""

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        self._killed = cluster.consul.leader() or numbers.choice(cluster.consul.machines)
        cluster.consul.kill_one(self._killed)
        return self._killed

    def end(self, cluster: Cluster) -> str:
        if not self._killed:
            return NOBODY
        cluster.consul.start_one(self._killed)
        return self._killed
