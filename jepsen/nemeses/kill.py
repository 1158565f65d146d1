"""Kill -9 of one daemon; it is started again at the end."""

import random

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import BreakableMachine
from jepsen.nemeses.nemesis import NOBODY, Length, OneOf, one_node


class Kill(OneOf):
    """Its children see that it is gone, and end."""

    name = "kill"
    KINDS: tuple[str, ...] = ("primary", "replica")
    touches = frozenset({"processes"})

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self._killed: BreakableMachine | None = None

    def lasts_s(self, ttl_s: float) -> Length:
        """From a restart at once to one long after another has taken over."""
        return 0.1, 2.5 * ttl_s

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        node = one_node(cluster, numbers, kind)
        if node is None:
            return NOBODY
        self._killed = node
        node.strike()
        node.wait_ended()
        return f"{kind} {node.name}"

    def end(self, cluster: Cluster) -> str:
        super().end(cluster)
        if self._killed is None:
            return NOBODY
        self._killed.start_again()
        return self._killed.name
