"""How long does a commit take on a replica: the round trip to the primary, and how much more.

One writer on the replica, one row a transaction, the primary idle or written to by its own applications, the wire
between them loopback or a relay of 5 or 50 ms there and back. A transaction that is refused as stale is tried again at
once, and its time is that of all its tries. Under the lock of DB-halt nobody else writes. Beside it the same writer on
the primary. What the wire itself takes is measured with echoes and shown; what is taken off is the nominal round trip.
"""

import contextlib
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.node import new_node
from benchmarks.harness.processes import Client, client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.relay import relay, trips_ms
from benchmarks.harness.systems import PAIR, Lab, Present, System

WIRES: Mapping[str, float] = {"loopback": 0.0, "wire of 5 ms": 5.0, "wire of 50 ms": 50.0}
LEVELS = ("NORMAL", "FULL")
BEYOND_LIMIT_MS = 2.0
LOADS: Mapping[str, float] = {"10 tx/s": 10.0, "100 tx/s": 100.0, "flat out": 0.0}
"""What the primary's own writer does meanwhile: transactions a second, 0 for as many as it can.

That only on loopback: the relay carries less than that, and a replica that falls behind for good is refused.
"""
ECHOES = 100
READY_LIMIT_S = 60.0
SLACK_S = 120.0


class Figures:
    """Of every figure one row a wire; made in the order of the report."""

    def __init__(self) -> None:
        self.all: dict[str, Figure] = {}

    def add(self, name: str, unit: str, wire: str, value: float, *, limit: float | None = None) -> None:
        goals = tuple(Goal(each, limit) for each in WIRES) if limit is not None else ()
        figure = self.all.setdefault(name, Figure(name, unit, "lower", goals))
        figure.add(wire, value)

    def times(self, name: str, wire: str, found: Mapping[str, list[int]], *, limit: float | None = None) -> float:
        """Median and 99th percentile of one client's commits beyond the round trip; the median itself."""
        taken_ms = [each / 1e6 for each in found["taken_ns"]]
        middle, late = statistics.median(taken_ms), statistics.quantiles(taken_ms, n=100, method="inclusive")[98]
        self.add(f"{name}, beyond the round trip, p50", "ms", wire, middle - WIRES[wire], limit=limit)
        self.add(f"{name}, beyond the round trip, p99", "ms", wire, late - WIRES[wire], limit=limit)
        return middle


@contextlib.contextmanager
def wired(home: Path, wire: str) -> Iterator[System]:
    """A static primary and its replica with a wire between them, both ready."""
    with contextlib.ExitStack() as stack:
        first = new_node(home, "primary", alone=False)
        port = None
        if WIRES[wire]:
            # The relay accepts before the primary listens: a replica tries again until it does.
            port = stack.enter_context(relay(first.replication_port, WIRES[wire], home / "relay.log"))
        second = new_node(home, "replica", alone=False, primary=first, primary_port=port)
        stack.enter_context(first.running())
        stack.enter_context(second.running())
        yield System(wire, first.mount, second.mount)


def ask(lab: Lab, effort: Effort) -> Answer:
    if PAIR not in lab.wanted:
        return Answer([])
    figures = Figures()
    seconds = effort.choose(1.0, 4.0)
    with contextlib.ExitStack() as stack:
        present = Present([], {})
        home = stack.enter_context(lab.home(QUESTION.name, PAIR))
        for wire, round_trip_ms in WIRES.items():
            try:
                folder = home / wire.replace(" ", "-")
                folder.mkdir()
                present.systems.append(stack.enter_context(wired(folder, wire)))
                if round_trip_ms:
                    found = trips_ms(round_trip_ms, ECHOES, folder / "echo.log")
                    figures.add("an echo over the wire, p50", "ms", wire, statistics.median(found))
            except BenchmarkError as error:
                present.failures[wire] = str(error)
        take_turns(present, effort.rounds, lambda system, turn: measure(figures, system, turn, seconds))
    return Answer(list(figures.all.values()), present.failures)


def measure(figures: Figures, system: System, turn: int, seconds: float) -> None:
    """Everything once over one wire, in a database of its own."""
    assert system.replica
    database = f"benchmark-forwarding-{turn}.db"
    here, there = system.directory / database, system.replica / database
    made = client("small", path=here, synchronous="NORMAL", seconds=0.1)
    system.settle(database, "small", made["last"])
    for level in LEVELS:
        local = client("timed", path=here, synchronous=level, seconds=seconds)
        system.settle(database, "small", local["last"])
        local_ms = statistics.median(local["taken_ns"]) / 1e6
        figures.add(f"on the primary itself, {level}, p50", "ms", system.name, local_ms)
        idle = client("timed", path=there, synchronous=level, seconds=seconds)
        middle = figures.times(f"forwarded, primary idle, {level}", system.name, idle, limit=BEYOND_LIMIT_MS)
        figures.add(f"forwarded, primary idle, {level}, against the primary itself", "times", system.name,
                    middle / local_ms)  # fmt: skip
        halted = client("timed", path=there, synchronous=level, seconds=seconds, halt=True)
        figures.times(f"under the lock, {level}", system.name, halted, limit=BEYOND_LIMIT_MS)
    for load, rate_per_s in LOADS.items():
        if not rate_per_s and WIRES[system.name]:
            continue
        with Client("load", {"path": here, "rate_per_s": rate_per_s}) as loading:
            loading.line(READY_LIMIT_S)
            found = client("timed", SLACK_S, path=there, synchronous="NORMAL", seconds=seconds)
            loading.go()
            loaded = loading.line(SLACK_S)
        name = f"forwarded, primary {load}, NORMAL"
        figures.times(name, system.name, found)
        figures.add(f"{name}, tries a transaction", "times", system.name, found["tries"] / len(found["taken_ns"]))
        figures.add(f"the primary's own writer meanwhile ({load}), slowest commit", "ms", system.name,
                    loaded["slowest_ns"] / 1e6)  # fmt: skip
    discard(system, [database])


QUESTION = Question("forwarding", "A commit on a replica", ask)
