"""How long nobody could write: one accident after another on one field, everything checked after each.

Knows the accidents that are measured, and what of a run is counted. Does not know how figures are shown.
"""

import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.failover.checking import assert_none_failed_in_flight, check
from tests.failover.clients import Clients, longest_gap_s
from tests.failover.field import Field
from tests.failover.machine import Machine

LIMIT_S: Final = 30.0
BEFORE: Final = 50
"""Transactions before the accident."""
AFTER: Final = 50
END_LIMIT_S: Final = 60.0
"""A node that ends tries to hand off, and to leave a lease that it may not reach."""
RETRY_S: Final = 0.003
"""Between two rounds of a client that looks for a node that takes its transaction."""
WRITERS: Final = 4


@dataclass(frozen=True, slots=True)
class Run:
    """``away_s``: how long nobody could write. ``lost``: acknowledged, not in the cluster, kept in diverged/."""

    away_s: float
    acknowledged: int
    lost: int


def _unplanned(field: Field, numbers: random.Random, accident: Callable[[Machine], float]) -> Run:
    """From the accident to the first commit that another node acknowledged."""
    old = field.await_settled()
    others = field.others(old)
    with field.clients() as clients:
        clients.writer(*field.places(old))
        clients.writer(*field.places(*others), retry_s=RETRY_S)
        _begin(field, clients, old, numbers)
        event = accident(old)
        first = clients.await_from([each.name for each in others], event, LIMIT_S)
        clients.await_from([each.name for each in others], event, LIMIT_S, AFTER)
        clients.end()
        field.heal()
        verdict = check(field, clients)
    return Run(first.done_s - event, verdict.acknowledged, len(verdict.lost))


def _begin(field: Field, clients: Clients, old: Machine, numbers: random.Random) -> None:
    """Some transactions, and then anywhere between two renewals."""
    clients.await_from([old.name], 0, LIMIT_S, BEFORE)
    time.sleep(numbers.uniform(0, field.ttl_s / 3))


def kill(field: Field, numbers: random.Random) -> Run:
    """Kill -9 of the primary's process."""
    return _unplanned(field, numbers, Machine.strike)


def perish(field: Field, numbers: random.Random) -> Run:
    """The primary's machine is gone, with everything on it."""
    return _unplanned(field, numbers, Machine.perish)


def cut(field: Field, numbers: random.Random) -> Run:
    """Everything from the primary's machine and to it is lost."""

    def accident(old: Machine) -> float:
        # Before the rules are in force: what they take counts.
        event = time.monotonic()
        field.network.cut(old.name)
        return event

    return _unplanned(field, numbers, accident)


def handoff(field: Field, numbers: random.Random) -> Run:
    """A planned handoff to a node by chance; four writers, each of which goes where it is let."""
    old = field.await_settled()
    new = numbers.choice(field.others(old))
    with field.clients() as clients:
        for _ in range(WRITERS):
            clients.writer(*field.places(), retry_s=RETRY_S)
        _begin(field, clients, old, numbers)
        event = time.monotonic()
        code, found = old.ask("POST", "/failover", {"to": new.name}, limit_s=LIMIT_S)
        assert code == 200, (code, found)
        until = clients.await_from([new.name], event, LIMIT_S, AFTER).done_s
        clients.end()
        verdict = check(field, clients)
    acknowledged = clients.acknowledged()
    assert not verdict.lost, verdict.lost[:5]
    assert_none_failed_in_flight(field, clients.failed())
    return Run(longest_gap_s(acknowledged, event, until), verdict.acknowledged, 0)


def chaos(field: Field, numbers: random.Random) -> Run:
    """One thing after the other to any node, some of them at once; writers everywhere. The longest time without any."""
    began = time.monotonic()
    with field.clients() as clients:
        for node in field.all:
            clients.writer(*field.places(node))
            clients.reader(node.name, field.path(node))
        for _ in range(numbers.randint(4, 8)):
            _meet(field, numbers)
            time.sleep(numbers.choice([0.05, 0.5, field.ttl_s, field.ttl_s * 1.5]) * numbers.uniform(0.5, 1))
            if numbers.random() < 0.4:
                field.heal()
        field.heal()
        clients.await_from([each.name for each in field.all], time.monotonic(), LIMIT_S, AFTER)
        clients.end()
        verdict = check(field, clients)
    acknowledged = clients.acknowledged()
    return Run(longest_gap_s(acknowledged, began, acknowledged[-1].done_s), len(acknowledged), len(verdict.lost))


def _meet(field: Field, numbers: random.Random) -> None:
    """Something happens to a node that runs, to the primary more often than to others."""
    running = [each for each in field.all if each.is_running]
    if not running:
        return
    chosen = (field.primaries() if numbers.random() < 0.5 else []) or running
    node, network = numbers.choice(chosen), field.network
    events: dict[str, Callable[[], object]] = {
        "kill": node.strike,
        "perish": node.perish,
        "stop": lambda: node.signal(signal.SIGSTOP),
        "go on": field.let_go_on,
        "end": lambda: _end(node),
        "cut": lambda: network.cut(node.name),
        "mute": lambda: network.mute(node.name),
        "deafen": lambda: network.deafen(node.name),
        "no consul": lambda: field.part_from_consul(node),
        "no consul at all": lambda: field.part_from_consul(*field.all),
        "no peers": lambda: field.part_from_peers(node),
        "handoff": lambda: node.ask("POST", "/failover", {}, limit_s=1.0),
        "consul dies": field.consul.kill,
    }
    what = numbers.choice(list(events))
    sys.stdout.write(f"  {what}: {node.name}\n")
    events[what]()


def _end(node: Machine) -> None:
    node.signal(signal.SIGCONT)
    node.terminate(END_LIMIT_S)


ACCIDENTS: Final[dict[str, Callable[[Field, random.Random], Run]]] = {
    "kill": kill,
    "perish": perish,
    "cut": cut,
    "handoff": handoff,
    "chaos": chaos,
}
