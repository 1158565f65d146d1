"""Kill -9 of an application, wherever in a transaction it is."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import MOMENT, NOBODY, Length, OneOf


class KillClient(OneOf):
    """An accident of one moment. Whoever has the clients kills one and starts another (Cluster.kill_client)."""

    name = "kill-client"
    KINDS: tuple[str, ...] = ("any",)

    def lasts_s(self, ttl_s: float) -> Length:
        assert ttl_s
        return MOMENT

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        return cluster.kill_client(numbers) if cluster.kill_client is not None else NOBODY
