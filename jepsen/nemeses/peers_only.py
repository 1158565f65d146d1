"""A node does not reach the other nodes; Consul it does, and so do they."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import NOBODY, one_node
from jepsen.nemeses.partition import Partition


class PeersOnly(Partition):
    """A primary keeps its lease, and nobody hears of what it commits."""

    name = "peers-only"
    KINDS: tuple[str, ...] = ("primary", "replica")

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        node = one_node(cluster, numbers, kind)
        if node is None:
            return NOBODY
        cluster.part_from_peers(node)
        return node.name
