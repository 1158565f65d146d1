"""Everybody reaches a majority, and no two the same one: those next to him on a ring."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.partition import Partition, machines


class Ring(Partition):
    """Nodes and Consul servers stand on the ring by chance."""

    name = "ring"
    KINDS: tuple[str, ...] = ("majorities",)

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        assert kind
        ring = machines(cluster)
        numbers.shuffle(ring)
        for one, others in strangers(ring).items():
            cluster.network.part([one], others)
        return " ".join(ring)


def strangers(ring: list[str]) -> dict[str, list[str]]:
    """Whom each one does not reach. With himself he reaches more than half of all."""
    count = len(ring)
    near = -(-(count // 2) // 2)
    found = {}
    for place, one in enumerate(ring):
        reached = {ring[(place + step) % count] for step in range(-near, near + 1)}
        found[one] = [other for other in ring if other not in reached]
    return found
