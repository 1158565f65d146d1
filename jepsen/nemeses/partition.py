"""What all nemeses have in common that lose packets on the network. Knows nothing of who is lost to whom."""

import random
from typing import ClassVar

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import OneOf


class Partition(OneOf):
    """``lose`` says who is parted from whom; at the end all reach all again."""

    touches: ClassVar[frozenset[str]] = frozenset({"network"})

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        return f"{kind}: {self.lose(cluster, numbers, kind)}"

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        """Do it; who is parted from whom."""
        raise NotImplementedError

    def end(self, cluster: Cluster) -> str:
        cluster.network.heal()
        return "all reach all"


def machines(cluster: Cluster) -> list[str]:
    """Everybody on the network: nodes and Consul servers."""
    return [*cluster.nodes, *cluster.consul.machines]
