"""SIGSTOP, and SIGCONT at the end: a machine that swaps, a debugger, a hypervisor with other things to do."""

import contextlib
import os
import random
import signal

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import NOBODY, Length, OneOf, one_node


class PauseShort(OneOf):
    """For less than the ttl of the lease: who was primary still is when it goes on.

    ``primary``, ``replica``: the whole node. ``daemon``, ``applier``: only that process of any node.
    """

    name = "pause-short"
    KINDS: tuple[str, ...] = ("primary", "replica", "daemon", "applier")
    touches = frozenset({"processes"})

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self._stopped: list[int] = []
        self._whom = NOBODY

    def lasts_s(self, ttl_s: float) -> Length:
        """Less than half of the ttl, so that the lease is renewed in time whenever it began."""
        return 0.05, 0.5 * ttl_s

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        node = one_node(cluster, numbers, kind if kind in {"primary", "replica"} else "any")
        if node is None:
            return NOBODY
        self._whom = node.name
        if kind == "applier":
            with contextlib.suppress(AssertionError):
                self._stopped = [node.applier()]
        else:
            self._stopped = [node.pid] if kind == "daemon" else node.left_behind()
        _tell(self._stopped, signal.SIGSTOP)
        return f"{kind} {node.name}"

    def end(self, cluster: Cluster) -> str:
        super().end(cluster)
        _tell(self._stopped, signal.SIGCONT)
        self._stopped = []
        return self._whom


class PauseLong(PauseShort):
    """For longer than the ttl: another is primary when it goes on, and it does not know that yet."""

    name = "pause-long"
    KINDS: tuple[str, ...] = ("primary", "replica")

    def lasts_s(self, ttl_s: float) -> Length:
        """Until another has taken over, and some time after that."""
        return 1.5 * ttl_s, 3 * ttl_s


def _tell(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
