"""Kill -9 of every daemon at once; all are started again at the end."""

import contextlib
import os
import random
import signal
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import Length, OneOf

AGAIN_LIMIT_S: Final = 15.0


class KillAll(OneOf):
    """``daemons`` alone, or ``everything``: their children too, as when the power fails and the disks' caches stay."""

    name = "kill-all"
    KINDS: tuple[str, ...] = ("daemons", "everything")
    touches = frozenset({"processes"})
    rests_s = 15.0

    def lasts_s(self, ttl_s: float) -> Length:
        """Nobody accepts anything meanwhile; longer says nothing more."""
        return 0.1, 1.5 * ttl_s

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        running = [each for each in cluster.machines if each.is_running]
        victims = [pid for each in running for pid in (each.left_behind() if kind == "everything" else [each.pid])]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for each in running:
            each.wait_ended()
        return f"{kind} of {','.join(each.name for each in running)}"

    def end(self, cluster: Cluster) -> str:
        gone = [each for each in cluster.machines if not each.is_running]
        for each in gone:
            each.start_again()
        # Who kills all again before anybody works finds out nothing more.
        with contextlib.suppress(AssertionError):
            cluster.primary(AGAIN_LIMIT_S)
        return ",".join(each.name for each in gone)
