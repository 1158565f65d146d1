"""The file system of one node's data directory has no room."""

import random
from collections.abc import Sequence
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import BreakableMachine
from jepsen.nemeses.nemesis import NOBODY, OneOf, one_node

LEFT_BYTES: Final = (0, 16 * 1024, 512 * 1024)
"""Room for nothing; for a part of a transaction; for some more of them."""


class DiskFull(OneOf):
    """At the end there is room again; a node that has ended for it is started again."""

    name = "disk-full"
    KINDS: tuple[str, ...] = ("primary", "replica")
    needs = frozenset({"small_disk"})
    touches = frozenset({"processes"})

    def __init__(self, *kinds: str, left_bytes: Sequence[int] = LEFT_BYTES) -> None:
        super().__init__(*kinds)
        self._left_bytes = left_bytes
        self._node: BreakableMachine | None = None

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        node = one_node(cluster, numbers, kind)
        left_bytes = numbers.choice(self._left_bytes)
        if node is None:
            return NOBODY
        assert node.small_disk is not None, "the cluster has no small disks"
        self._node = node
        node.small_disk.fill(left_bytes)
        return f"{kind} {node.name}, {left_bytes} bytes left"

    def end(self, cluster: Cluster) -> str:
        super().end(cluster)
        if self._node is None:
            return NOBODY
        assert self._node.small_disk is not None
        self._node.small_disk.free()
        ended = not self._node.is_running
        self._node.start_again()
        return f"{self._node.name}{' had ended' if ended else ''}"
