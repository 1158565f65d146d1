"""The primary reaches nobody, and nobody reaches it."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import NOBODY, one_node
from jepsen.nemeses.partition import Partition


class IsolatePrimary(Partition):
    """Its applications go on to write to it."""

    name = "isolate-primary"
    KINDS: tuple[str, ...] = ("primary",)

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        node = one_node(cluster, numbers, kind)
        if node is None:
            return NOBODY
        cluster.network.cut(node.name)
        return node.name
