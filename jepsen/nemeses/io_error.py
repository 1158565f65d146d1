"""The disk of one node fails: reads, writes, or making durable; some writes arrive by half."""

import random
from collections.abc import Sequence
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import BreakableMachine
from jepsen.cluster.switches import DISK_FAULTS
from jepsen.nemeses.nemesis import NOBODY, OneOf, one_node

EVERY: Final = (1, 3, 20)
"""One call in so many fails."""
ADVICE: Final = b"restart this node"


class IoError(OneOf):
    """Through the door that the store has to the disk. A node that has ended for it is started again at the end."""

    name = "io-error"
    KINDS: tuple[str, ...] = tuple(each for each in DISK_FAULTS if each)
    needs = frozenset({"faults"})
    touches = frozenset({"processes"})

    def __init__(self, *kinds: str, every: Sequence[int] = EVERY) -> None:
        super().__init__(*kinds)
        self._every = every
        self._node: BreakableMachine | None = None
        self._before = 0
        self._log_bytes = 0

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind, every = numbers.choice(self.kinds), numbers.choice(self._every)
        node = one_node(cluster, numbers, numbers.choice(["primary", "primary", "replica"]))
        if node is None:
            return NOBODY
        assert node.switches is not None, "the disks of the cluster do not fail"
        self._node, self._before = node, node.switches.met
        self._log_bytes = node.log_file.stat().st_size
        node.switches.break_disk(kind, every)
        return f"{kind} {node.name}, one in {every}"

    def end(self, cluster: Cluster) -> str:
        super().end(cluster)
        if self._node is None:
            return NOBODY
        assert self._node.switches is not None
        self._node.switches.mend_disk()
        met, ended = self._node.switches.met - self._before, not self._node.is_running
        demanded = not ended and self._restart_is_demanded(self._node)
        if demanded:
            self._node.terminate()
        self._node.start_again()
        became = ", and it had ended" if ended else ", and it was restarted, as it asked for" if demanded else ""
        return f"{self._node.name}, {met} times{became}"

    def _restart_is_demanded(self, node: BreakableMachine) -> bool:
        """After a failed fsync nobody knows what the disk has: the node says so, and accepts nothing any more."""
        with node.log_file.open("rb") as log:
            log.seek(self._log_bytes)
            return ADVICE in log.read()
