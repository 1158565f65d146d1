"""Packets are lost in one direction only."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import NOBODY, one_node
from jepsen.nemeses.partition import Partition


class OneWay(Partition):
    """``mute``: nobody hears a node. ``deaf``: it hears nobody. ``peer``: one node does not hear one other."""

    name = "one-way"
    KINDS: tuple[str, ...] = ("mute", "deaf", "peer")

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        node = one_node(cluster, numbers, numbers.choice(["primary", "any"]))
        if node is None:
            return NOBODY
        if kind == "mute":
            cluster.network.mute(node.name)
        elif kind == "deaf":
            cluster.network.deafen(node.name)
        else:
            other = numbers.choice(cluster.others(node))
            cluster.network.part_one_way([node.name], [other.name])
            return f"{node.name} → {other.name}"
        return node.name
