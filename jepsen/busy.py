"""Whether the machine that everything runs on kept up: an onlooker who is late himself, or whom Consul answers late.

Nodes say so too, in their logs, and go by it: whoever hears nothing of Consul for a ttl is no primary any more. That is
right, and nobody's doing. So it is noted when that can be. Where a nemesis cuts nodes off, Consul answers him all the
same: he asks each server on its own machine.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from jepsen.periods import BUSY
from jepsen.watching import Watching

EVERY_S: Final = 0.25
LATE_S: Final = 0.4
"""Less than a node waits for an answer with the shortest ttl that is used here; ten times what it takes mostly."""


def is_late(slept_s: float, waited_s: float, *, answered: bool) -> bool:
    """Of who wanted to sleep for EVERY_S, and then waited for an answer."""
    return slept_s - EVERY_S > LATE_S or waited_s > LATE_S or not answered


class Busy(Watching):
    """``ask``: what each of the servers is asked; ``note`` is given what stands in the history."""

    def __init__(self, ask: Sequence[Callable[[], object]], note: Callable[[str, object], object]) -> None:
        super().__init__(partial(self._watch, each) for each in ask)
        self._note = note

    def _watch(self, ask: Callable[[], object]) -> None:
        began = time.monotonic()
        while not self.stopped.wait(EVERY_S):
            woken = time.monotonic()
            answered = ask() is not None
            ended = time.monotonic()
            if is_late(woken - began, ended - woken, answered=answered):
                self._note(BUSY, {"since_s": round(ended - began, 3), "answered": answered})
            began = ended
