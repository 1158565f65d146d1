"""Kill -9 of the applier of one node; its daemon starts another."""

import os
import random
import signal

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import MOMENT, NOBODY, Length, OneOf, one_node


class KillApplier(OneOf):
    """An accident of one moment."""

    name = "kill-applier"
    KINDS: tuple[str, ...] = ("primary", "replica")

    def lasts_s(self, ttl_s: float) -> Length:
        assert ttl_s
        return MOMENT

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        node = one_node(cluster, numbers, kind)
        if node is None:
            return NOBODY
        try:
            os.kill(node.applier(), signal.SIGKILL)
        except (AssertionError, ProcessLookupError):
            return f"{NOBODY}: {node.name} has no applier now"
        return f"{kind} {node.name}"
