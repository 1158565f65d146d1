"""A correct database in one process, and many clients of it: what it answers is right by construction.

Every call takes effect at one instant between its invocation and its answer, which nobody hears of in some cases.
"""

import random
from collections.abc import Callable
from typing import Any

from tests.jepsen.making import Making

Effect = Callable[[], Any]


class Simulation:
    """``clients`` processes; of their calls a share is not answered (``unanswered``), and a share fails."""

    def __init__(self, seed: int, clients: int = 4, unanswered: float = 0.1, failing: float = 0.1) -> None:
        self.numbers = random.Random(seed)
        self.making = Making()
        self._clients = clients
        self._unanswered = unanswered
        self._failing = failing

    def run(self, steps: int, ask: Callable[[], tuple[str, Any]], happen: Callable[[str, Any], Any]) -> Making:
        """``ask`` invents a call; ``happen`` lets it take effect and says what it answers."""
        idle = list(range(self._clients))
        newest = self._clients
        open_: dict[int, tuple[str, Any]] = {}
        done: dict[int, Any] = {}
        ghosts: list[tuple[str, Any]] = []
        for _ in range(steps):
            act = self.numbers.random()
            if ghosts and act < 0.05:
                happen(*ghosts.pop(self.numbers.randrange(len(ghosts))))
            elif idle and act < 0.4:
                process = idle.pop(self.numbers.randrange(len(idle)))
                open_[process] = ask()
                self.making.begin(process, *open_[process])
            elif open_ and (undecided := sorted(open_.keys() - done.keys())) and act < 0.7:
                process = self.numbers.choice(undecided)
                done[process] = happen(*open_[process])
            elif open_:
                process = self.numbers.choice(sorted(open_))
                call = open_.pop(process)
                if process in done and self.numbers.random() >= self._unanswered:
                    self.making.end(process, "ok", done.pop(process))
                elif process not in done and self.numbers.random() < self._failing:
                    self.making.end(process, "fail")
                else:
                    if done.pop(process, ...) is ...:
                        ghosts.append(call)
                    self.making.end(process, "info")
                    process, newest = newest, newest + 1
                idle.append(process)
        return self.making
