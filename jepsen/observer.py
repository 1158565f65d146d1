"""What an onlooker sees of the nodes: asks each for its status now and then, and says who is primary.

Its notes are for people (the roles and the lag of a report), and to know where a client should try next. No checker
believes them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from jepsen.watching import Watching
from tests.support.nodes import Node

EVERY_S: Final = 0.25
ASK_LIMIT_S: Final = 1.0
NOTED_S: Final = 1.0
"""Changes of a role are noted at once, everything else so often."""
NOTHING: Final = {"role": "none", "epoch": 0, "lag_s": None}


class Observer(Watching):
    """``note`` is given what stands in the history."""

    def __init__(
        self, nodes: Mapping[str, Node], clock_ns: Callable[[], int], note: Callable[[str, object], object]
    ) -> None:
        super().__init__(partial(self._watch, name) for name in nodes)
        self._nodes = nodes
        self._clock_ns = clock_ns
        self._note = note
        self._seen: dict[str, dict[str, Any]] = {name: dict(NOTHING) for name in nodes}

    @property
    def primary(self) -> str:
        """Who said so last, and with the newest epoch; empty when nobody does."""
        found = [(seen["epoch"], name) for name, seen in self._seen.items() if seen["role"] == "primary"]
        return max(found)[1] if found else ""

    def _watch(self, name: str) -> None:
        noted_ns = 0
        while not self.stopped.is_set():
            seen = _seen(self._nodes[name].get("/status", ASK_LIMIT_S)[1])
            now_ns = self._clock_ns()
            if (seen["role"], seen["epoch"]) != (self._seen[name]["role"], self._seen[name]["epoch"]) or (
                now_ns - noted_ns > NOTED_S * 1e9
            ):
                noted_ns = now_ns
                self._note("status", {"node": name, **seen})
            self._seen[name] = seen
            self.stopped.wait(EVERY_S)


def _seen(status: dict[str, Any]) -> dict[str, Any]:
    """Of an answer; nothing known without one."""
    if not status:
        return dict(NOTHING)
    lags = [each["lag_ms"] for each in status["databases"] if each.get("lag_ms") is not None]
    return {"role": status["role"], "epoch": status["epoch"], "lag_s": max(lags, default=0) / 1000}
