"""What every nemesis is, and what several of them share. Knows nobody of them."""

import random
import threading
from collections.abc import Callable
from typing import ClassVar, Final, Protocol

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import BreakableMachine

Length = tuple[float, float]
MOMENT: Final[Length] = (0.0, 0.0)
NOBODY: Final = "nobody"
"""It found nobody to do it to."""
THREAD_LIMIT_S: Final = 30.0


class Nemesis(Protocol):
    """Breaks something and mends it again, as often as it is told.

    ``kinds``: its forms; each time one of them, by chance. ``needs``: what the cluster must be made with. ``touches``:
    what it breaks; two that touch the same must not be at work at once. ``rests_s``: so long after its end it does
    not come again: the cluster goes back to work, and works.
    """

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> tuple[str, ...]: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def touches(self) -> frozenset[str]: ...

    @property
    def rests_s(self) -> float: ...

    def lasts_s(self, ttl_s: float) -> Length:
        """(least, most); both 0 when it is an accident of one moment, which has no end."""

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        """Break it; what was done to whom."""

    def end(self, cluster: Cluster) -> str:
        """Mend what ``begin`` broke, whatever became of it meanwhile; of whom."""


class OneOf:
    """Of several kinds, one by chance each time: ``kinds`` of those in KINDS, all unless told."""

    name: ClassVar[str]
    KINDS: tuple[str, ...]
    needs: ClassVar[frozenset[str]] = frozenset()
    touches: ClassVar[frozenset[str]] = frozenset()
    rests_s: ClassVar[float] = 0.0

    def __init__(self, *kinds: str) -> None:
        assert set(kinds) <= set(self.KINDS), f"{self.name} has the kinds {self.KINDS}"
        self.kinds = kinds or self.KINDS

    def lasts_s(self, ttl_s: float) -> Length:
        """Long enough for the others to notice, and for a new primary to work for some time."""
        return 0.5 * ttl_s, 3 * ttl_s

    def end(self, cluster: Cluster) -> str:
        """Nothing is left of it."""
        assert cluster.nodes, "there is no cluster"
        return ""


def one_node(cluster: Cluster, numbers: random.Random, whom: str) -> BreakableMachine | None:
    """A node that runs: the ``primary``, a ``replica``, or ``any``; the next best where there is none of those."""
    running = [each for each in cluster.machines if each.is_running]
    if not running:
        return None
    primaries = [each.name for each in cluster.primaries()] if whom != "any" else []
    wanted = [each for each in running if (each.name in primaries) == (whom == "primary")]
    return numbers.choice(wanted if wanted and whom != "any" else running)


class Meanwhile:
    """Does one thing after the other in a thread of its own, until its end; an error comes out there."""

    def __init__(self, step: Callable[[], float]) -> None:
        """``step`` answers how long to wait before it is called again."""
        self._step = step
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._step()):
                pass
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits for it
            self._error = error

    def end(self) -> None:
        """The step at hand is the last."""
        self._over.set()
        self._thread.join(THREAD_LIMIT_S)
        assert not self._thread.is_alive(), "what goes on meanwhile does not end"
        if self._error is not None:
            raise self._error
