"""Which nemesis begins and ends when: planned before a run from a seed, and then done.

A plan is pure. Two nemeses that touch the same are never at work at once; others may be, when a run has several. The
last stretch of a run belongs to nobody: everything is healed then. Does not know what a nemesis does.
"""

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.nemesis import Nemesis

QUIET_S: Final = 0.5
"""Before the first, so that a run begins with answers."""
PAUSE_S: Final = (0.3, 4.0)
"""Between the end of one and the beginning of the next that touches the same."""
STEP_S: Final = (0.2, 3.0)
"""Between two beginnings, where they touch different things."""
LATE_S: Final = 0.5
"""After the planned end of all turns; a machine that is busy is as late as that."""
CALM_S: Final = 5.0
CALM_SHARE: Final = 0.3
"""A short run is not calm for longer than this share of it."""

Say = Callable[[str, str, object], object]
"""(type, f, value) of an operation of the history, of the process "nemesis"."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One nemesis at work. ``ends_s`` is ``begins_s`` for an accident of one moment."""

    name: str
    begins_s: float
    ends_s: float

    @property
    def lasting(self) -> bool:
        return self.ends_s > self.begins_s


def plan(
    nemeses: Mapping[str, Nemesis],
    seconds: float,
    seed: int,
    ttl_s: float,
    *,
    calm_s: float = CALM_S,
    hurry: bool = False,
) -> tuple[Turn, ...]:
    """Turns of a run of so many seconds, by their beginnings; each nemesis has one at least, when there is room.

    One after the other gets its turn, all of them before any gets its next. ``hurry``: every turn and every pause as
    short as it may be, so that many fit.
    """
    numbers = random.Random(f"{seed}:{','.join(nemeses)}")  # noqa: S311 - chance, no secret

    def between(least: float, most: float) -> float:
        return least if hurry else numbers.uniform(least, most)

    end = seconds - min(calm_s, seconds * CALM_SHARE)
    free_from: dict[str, float] = {}
    turns: list[Turn] = []
    now = QUIET_S
    waiting: list[str] = []
    left = set(nemeses)
    had_one: set[str] = set()
    while left:
        waiting = waiting or numbers.sample(sorted(left), len(left))
        name = waiting.pop()
        touched = [*nemeses[name].touches, f"itself: {name}"]
        begins = max([now, *(free_from.get(each, 0.0) for each in touched)])
        least, most = nemeses[name].lasts_s(ttl_s)
        if begins >= end or (name in had_one and begins + least > end):
            # Instants only grow: it will not have another.
            left.remove(name)
            continue
        ends = min(begins + between(least, most), end)
        turns.append(Turn(name, begins, ends))
        had_one.add(name)
        for each in touched:
            free_from[each] = ends + between(*PAUSE_S)
        itself = touched[-1]
        free_from[itself] = max(free_from[itself], ends + nemeses[name].rests_s)
        if begins == now:
            now += between(*STEP_S)
    return tuple(sorted(turns, key=lambda each: (each.begins_s, each.name)))


class Schedule:
    """Carries a plan out. ``problems``: what a nemesis could not do: a finding of the run, or of the machine.

    Each nemesis has a thread of its own: one that takes long (a handoff that nobody answers) makes no pause of another
    longer. Who is late still waits for those that touch the same, and leaves out what would begin after all is over.
    """

    def __init__(self, cluster: Cluster, nemeses: Mapping[str, Nemesis], turns: Sequence[Turn], seed: int) -> None:
        self._cluster = cluster
        self._nemeses = nemeses
        self._turns = turns
        self._seed = seed
        self._locks = {each: threading.Lock() for one in nemeses.values() for each in one.touches}
        self._saying = threading.Lock()
        self._error: BaseException | None = None
        self.problems: list[str] = []

    def run(self, say: Say, stopped: threading.Event | None = None) -> None:
        """All turns, then everything is healed; returns when the calm stretch begins. For a thread of its own.

        ``say`` is called by one thread at a time. ``stopped``: end at once what is at work, and heal. AssertionError
        when the cluster cannot be healed.
        """
        stopped = stopped or threading.Event()
        began = time.monotonic()
        threads = [
            threading.Thread(target=self._work, args=(name, began, say, stopped), daemon=True) for name in self._nemeses
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self._cluster.heal()
        if self._error is not None:
            raise self._error

    def _work(self, name: str, began: float, say: Say, stopped: threading.Event) -> None:
        """All turns of one nemesis."""
        numbers = random.Random(f"{self._seed}: what {name} does")  # noqa: S311 - chance, no secret
        over = began + max((each.ends_s for each in self._turns), default=0.0)
        try:
            own = [each for each in self._turns if each.name == name]
            for turn, following in zip(own, [*own, None][1:], strict=True):
                if following is not None and time.monotonic() >= began + following.begins_s:
                    # So late that its next turn is due: one of them is enough.
                    continue
                if stopped.wait(max(0.0, began + turn.begins_s - time.monotonic())):
                    return
                self._take(turn, numbers, over, say, stopped)
        except BaseException as error:  # noqa: BLE001 - it is raised by run
            self._error = self._error or error

    def _take(self, turn: Turn, numbers: random.Random, over: float, say: Say, stopped: threading.Event) -> None:
        one = self._nemeses[turn.name]
        with contextlib.ExitStack() as stack:
            # Always in the same order, so that no two wait for each other.
            for each in sorted(one.touches):
                stack.enter_context(self._locks[each])
            late = time.monotonic() > over + LATE_S
            if stopped.is_set() or late:
                return
            self._do(
                f"start-{turn.name}" if turn.lasting else turn.name, say, lambda: one.begin(self._cluster, numbers)
            )
            if turn.lasting:
                stopped.wait(max(0.0, min(turn.ends_s - turn.begins_s, over - time.monotonic())))
                self._do(f"stop-{turn.name}", say, lambda: one.end(self._cluster))

    def _do(self, what: str, say: Say, do: Callable[[], str]) -> None:
        """Say that it begins, and what it was, or why it could not be done."""
        with self._saying:
            say("info", what, None)
        try:
            value = do()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            value = f"failed: {error}"
            self.problems.append(f"{what}: {type(error).__name__}: {error}")
        with self._saying:
            say("info", what, value)
