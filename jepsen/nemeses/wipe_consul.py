"""All Consul servers lose everything that they had, and begin anew."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import Length, OneOf


class WipeConsul(OneOf):
    """An accident of one moment; but nodes need more than a ttl to agree again, and nobody wipes it before they can."""

    name = "wipe-consul"
    KINDS: tuple[str, ...] = ("all",)
    # Without a network they would elect nobody.
    touches = frozenset({"consul", "network"})

    def lasts_s(self, ttl_s: float) -> Length:
        return 3 * ttl_s, 6 * ttl_s

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        cluster.consul.wipe()
        return kind
