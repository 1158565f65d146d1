"""What happens to a field while programs write: one thing after the other, by chance, and noted for the judge.

Knows nodes, their processes and their network. Does not know what programs wrote.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tests.failover.field import Field
from tests.failover.machine import Machine
from tests.forward.programs import Program, Programs

HANDOFF_LIMIT_S: Final = 20.0
FAULTS: Final = ("kill", "cut", "failover", "pause")
LAST_BYTES: Final = 6000
"""Of what still reaches a node before its wire goes dead: some answers, and a part of the next."""

Interval = tuple[float, float]


class Nemesis:
    """``meet`` does something by chance; what it did stands in ``killed``, ``paused``, ``unplanned`` and ``counts``.

    ``restart``: starts a program anew on the node of one that was killed.
    """

    def __init__(
        self,
        field: Field,
        programs: Programs,
        numbers: random.Random,
        wanted: Sequence[str],
        restart: Callable[[Program], object],
        say: Callable[[str], object],
    ) -> None:
        self._field = field
        self._programs = programs
        self._random = numbers
        self._restart = restart
        self._say = say
        self._stopped: dict[str, float] = {}
        kinds: dict[str, Mapping[str, Callable[[Machine], object]]] = {
            "kill": {"kill": self.kill, "kill applier": self.kill_applier, "kill writer": self.kill_writer},
            "cut": {"cut": self._cut, "cut in an answer": self.cut_in_answer, "cut from a peer": self._cut_peer},
            "failover": {"failover": self.fail_over},
            "pause": {"pause": self._pause},
        }
        self._choices = [kinds[each] for each in wanted]
        self.killed: dict[str, list[Interval]] = defaultdict(list)
        self.paused: dict[str, list[Interval]] = defaultdict(list)
        self.unplanned = False
        self.counts: Counter[str] = Counter()

    def meet(self) -> None:
        """Something happens to a node that runs, to the primary more often than to others."""
        running = [each for each in self._field.all if each.is_running and each.name not in self._stopped]
        if not running:
            return
        chosen = (self._field.primaries() if self._random.random() < 0.5 else []) or running
        node = self._random.choice(chosen)
        kinds = self._random.choice(self._choices)
        what = self._random.choice(list(kinds))
        self.counts[what] += 1
        self._say(f"{time.monotonic():.3f} {what}: {node.name}{' (primary)' if chosen is not running else ''}")
        kinds[what](node)

    def pause_s(self) -> float:
        """Until the next."""
        return self._random.choice([0.05, 0.5, 1.0, self._field.ttl_s]) * self._random.uniform(0.5, 1.0)

    def heal(self) -> None:
        """Everything is well again."""
        self._go_on()
        self._field.heal()

    # -- each fault ------------------------------------------------------------------------------------------------

    def kill(self, node: Machine) -> None:
        """Kill -9 of the daemon."""
        self.unplanned = True
        since = time.monotonic()
        node.strike()
        node.reap()
        self.killed[node.name].append((since, time.monotonic()))

    def kill_applier(self, node: Machine) -> None:
        """Kill -9 of the applier; the daemon starts another."""
        with contextlib.suppress(AssertionError, ProcessLookupError):
            os.kill(node.applier(), signal.SIGKILL)

    def kill_writer(self, node: Machine) -> None:
        """Kill -9 of a program on a node, wherever it is; another begins."""
        found = [each for each in self._programs.running() if each.node == node.name]
        if found:
            chosen = self._random.choice(found)
            chosen.strike()
            self._restart(chosen)

    def _cut(self, node: Machine) -> None:
        self.unplanned = True
        self._field.network.cut(node.name)

    def cut_in_answer(self, node: Machine) -> None:
        """The wire goes dead behind a part of what is being sent to a node; nobody is told."""
        self.unplanned = True
        self._field.network.deafen_after(node.name, self._random.randint(1, LAST_BYTES))

    def _cut_peer(self, node: Machine) -> None:
        """A node and another do not reach each other; Consul is reached by both."""
        self.unplanned = True
        self._field.network.part([node.name], [self._random.choice(self._field.others(node)).name])

    def fail_over(self, node: Machine) -> None:
        """A planned handoff to a node, or from it to another; that it is refused is no fault of anyone."""
        for primary in self._field.primaries():
            to = node if node is not primary else self._random.choice(self._field.others(primary))
            code, found = primary.ask("POST", "/failover", {"to": to.name}, limit_s=HANDOFF_LIMIT_S)
            self.counts[f"failover answered {code}"] += 1
            if code != 200:
                self._say(f"  {code} {found}")

    def _pause(self, node: Machine) -> None:
        """The whole node stands still, its applier too, until the next healing or for a moment."""
        self.stop(node)
        if self._random.random() < 0.5:
            time.sleep(self._random.uniform(0.01, 1.0))
            self._go_on()

    def stop(self, node: Machine) -> None:
        """SIGSTOP to the daemon and its applier."""
        self.unplanned = True
        self._stopped[node.name] = time.monotonic()
        for pid in (node.pid, *node.children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def _go_on(self) -> None:
        for name, since in self._stopped.items():
            node = self._field.nodes[name]
            for pid in node.children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if node.is_running:
                node.signal(signal.SIGCONT)
            self.paused[name].append((since, time.monotonic()))
        self._stopped.clear()
