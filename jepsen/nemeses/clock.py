"""The clocks of one node are wrong, and change from one moment to the next."""

import random
from collections.abc import Sequence
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import BreakableMachine
from jepsen.nemeses.nemesis import NOBODY, Length, Meanwhile, OneOf, one_node

STEPS_S: Final = (0.5, 10, 3700)
"""Somewhat; more than every timeout; more than the age that the log is kept for."""
SECOND_NS: Final = 10**9


class Clock(OneOf):
    """Only what the daemon is told of the time is wrong (cluster/daemon.py says how).

    ``ahead``, ``behind``: the wall clock steps. ``jumping``: it does so time and again, both ways. ``slept``:
    CLOCK_BOOTTIME is ahead, as on a machine that was asleep; that one never goes back.
    """

    name = "clock"
    KINDS: tuple[str, ...] = ("ahead", "behind", "jumping", "slept")
    needs = frozenset({"faults"})
    touches = frozenset({"clocks"})

    def __init__(self, *kinds: str, steps_s: Sequence[float] = STEPS_S) -> None:
        super().__init__(*kinds)
        self._steps_s = steps_s
        self._node: BreakableMachine | None = None
        self._meanwhile: Meanwhile | None = None

    def lasts_s(self, ttl_s: float) -> Length:
        """Some heartbeats and renewals."""
        return 0.5 * ttl_s, 4 * ttl_s

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind, step_s = numbers.choice(self.kinds), numbers.choice(self._steps_s)
        self._node = node = one_node(cluster, numbers, numbers.choice(["primary", "any"]))
        if node is None:
            return NOBODY
        switches = node.switches
        assert switches is not None, "the clocks of the cluster cannot be set"
        step_ns = round(step_s * SECOND_NS)
        own = random.Random(numbers.random())  # noqa: S311 - chance, no secret

        def jump() -> float:
            switches.wall_ns = own.choice([-step_ns, 0, step_ns])
            return own.uniform(0.05, 1.0)

        if kind == "jumping":
            self._meanwhile = Meanwhile(jump)
        elif kind == "slept":
            switches.boot_ns += step_ns
        else:
            switches.wall_ns = step_ns if kind == "ahead" else -step_ns
        return f"{kind} {node.name} by {step_s:g} s"

    def end(self, cluster: Cluster) -> str:
        super().end(cluster)
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile.end()
        if self._node is None:
            return NOBODY
        assert self._node.switches is not None
        self._node.switches.wall_ns = 0
        return self._node.name
