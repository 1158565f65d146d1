"""Nodes do not reach Consul; each other they do."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import NOBODY, one_node
from jepsen.nemeses.partition import Partition


class ConsulOnly(Partition):
    """``primary``, ``replica``: one node. ``all``: nobody reaches it."""

    name = "consul-only"
    KINDS: tuple[str, ...] = ("primary", "replica", "all")

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        if kind == "all":
            cluster.part_from_consul(*cluster.all)
            return ",".join(cluster.nodes)
        node = one_node(cluster, numbers, kind)
        if node is None:
            return NOBODY
        cluster.part_from_consul(node)
        return node.name
