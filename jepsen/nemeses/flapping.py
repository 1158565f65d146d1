"""A node is cut off and reached again, time and again, for moments shorter and longer than the ttl."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import NOBODY, Length, Meanwhile, one_node
from jepsen.nemeses.partition import Partition


class Flapping(Partition):
    """``node``: from everybody. ``peers``: from the other nodes only."""

    name = "flapping"
    KINDS: tuple[str, ...] = ("node", "peers")

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self._meanwhile: Meanwhile | None = None

    def lasts_s(self, ttl_s: float) -> Length:
        """For some ups and downs."""
        return 1.5 * ttl_s, 5 * ttl_s

    def lose(self, cluster: Cluster, numbers: random.Random, kind: str) -> str:
        node = one_node(cluster, numbers, numbers.choice(["primary", "any"]))
        if node is None:
            return NOBODY
        own = random.Random(numbers.random())  # noqa: S311 - chance, no secret
        cut = False

        def step() -> float:
            nonlocal cut
            cut = not cut
            if not cut:
                cluster.network.heal()
            elif kind == "node":
                cluster.network.cut(node.name)
            else:
                cluster.part_from_peers(node)
            return own.choice([0.02, 0.1, 0.5, 1.0]) * cluster.ttl_s * own.uniform(0.5, 1.0)

        self._meanwhile = Meanwhile(step)
        return node.name

    def end(self, cluster: Cluster) -> str:
        meanwhile, self._meanwhile = self._meanwhile, None
        try:
            if meanwhile is not None:
                meanwhile.end()
        finally:
            cluster.network.heal()
        return "all reach all"
