"""All Consul servers lose everything that they had, and begin anew."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import MOMENT, Length, OneOf


class WipeConsul(OneOf):
    """An accident of one moment; it is over when they have a leader again."""

    name = "wipe-consul"
    KINDS: tuple[str, ...] = ("all",)
    # Without a network they would elect nobody.
    touches = frozenset({"consul", "network"})

    def lasts_s(self, ttl_s: float) -> Length:
        assert ttl_s
        return MOMENT

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        cluster.consul.wipe()
        return kind
