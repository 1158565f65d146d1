"""Everything takes its time between nodes, or gets lost and has to be sent again."""

import random
from collections.abc import Sequence
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.relay import Delay
from jepsen.nemeses.nemesis import OneOf

DELAYS_S: Final = (0.005, 0.03, 0.1, 0.3)
SHARES_PERCENT: Final = (2, 10, 25)
"""Of packets that are lost: from a bad line to one on which TCP hardly gets anywhere."""


class Slow(OneOf):
    """Nothing is parted for good.

    ``delay``: each direction between all nodes is late, by a fixed time and some more by chance. ``late``: as after
    a lost packet, of some pieces only. ``loss``: real packets of one node are lost, to Consul too.
    """

    name = "slow"
    KINDS: tuple[str, ...] = ("delay", "late", "loss")
    needs = frozenset({"proxies"})
    touches = frozenset({"network"})

    def __init__(
        self, *kinds: str, delays_s: Sequence[float] = DELAYS_S, shares_percent: Sequence[int] = SHARES_PERCENT
    ) -> None:
        super().__init__(*kinds)
        self._delays_s, self._shares_percent = delays_s, shares_percent

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        if kind == "loss":
            name, percent = numbers.choice(list(cluster.nodes)), numbers.choice(self._shares_percent)
            cluster.network.lose_share(name, percent)
            return f"loss: {percent} % of the packets of {name}"
        if kind == "delay":
            delay_s = numbers.choice(self._delays_s)
            delay = Delay(delay_s, jitter_s=delay_s * numbers.choice([0, 1]))
        else:
            delay = Delay(lost=numbers.choice(self._shares_percent) / 100)
        for each in cluster.machines:
            each.delay(delay)
        return f"{kind}: {delay}"

    def end(self, cluster: Cluster) -> str:
        cluster.network.heal()
        for each in cluster.machines:
            each.delay(Delay())
        return "all reach all"
