"""Two groups that do not reach each other."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.partition import Partition, machines


class Halves(Partition):
    """``all``: nodes and Consul servers are dealt out by chance. ``nodes``: Consul is reached by both groups."""

    name = "halves"
    KINDS: tuple[str, ...] = ("all", "nodes")

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        everybody = machines(cluster) if kind == "all" else list(cluster.nodes)
        numbers.shuffle(everybody)
        size = len(everybody) // 2
        one, other = everybody[:size], everybody[size:]
        cluster.network.part(one, other)
        return f"{','.join(sorted(one))} | {','.join(sorted(other))}"
