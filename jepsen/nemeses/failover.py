"""A planned handoff from the primary to another node."""

import random
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import MOMENT, NOBODY, Length, OneOf

LIMIT_S: Final = 20.0


class Failover(OneOf):
    """It is over when it was answered; that it is refused is no fault of anybody."""

    name = "failover"
    KINDS: tuple[str, ...] = ("planned",)

    def lasts_s(self, ttl_s: float) -> Length:
        assert ttl_s
        return MOMENT

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        for primary in cluster.primaries():
            to = numbers.choice(cluster.others(primary)).name
            code, found = primary.ask("POST", "/failover", {"to": to}, limit_s=LIMIT_S)
            why = "" if code == 200 else f": {found.get('detail') or found}"
            return f"{primary.name} to {to} answered {code}{why}"
        return NOBODY
