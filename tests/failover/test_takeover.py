"""The primary dies, loses its network, or stands still: another takes over in time, and nothing goes silently."""

import signal
import time

import pytest

from tests.failover.checking import check, kept, kept_rows
from tests.failover.clients import Clients
from tests.failover.conftest import BUSY_S, TTL_S, pause
from tests.failover.field import Field
from tests.failover.machine import Machine
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(90)

LIMIT_S = 20.0
BEFORE_S = 0.5
"""Transactions before the event."""


def write_everywhere(field: Field, clients: Clients, old: Machine) -> float:
    """One writer that stays at the primary, one that takes any other; when the primary has some transactions."""
    clients.writer(*field.places(old))
    clients.writer(*field.places(*field.others(old)), retry_s=0.004)
    clients.await_from([old.name], 0, LIMIT_S, 50)
    pause(BEFORE_S)
    return time.monotonic()


def takeover_s(field: Field, clients: Clients, old: Machine, event_s: float) -> float:
    """From the event to the first commit that another node has acknowledged."""
    names = [each.name for each in field.others(old)]
    return clients.await_from(names, event_s, LIMIT_S).done_s - event_s


def test_another_is_writable_soon_after_kill_9_of_the_primary_process(field: Field) -> None:
    old = field.await_settled()
    with field.clients() as clients:
        write_everywhere(field, clients, old)
        took = takeover_s(field, clients, old, old.strike())
        field.heal()
        clients.await_from([field.primary().name], time.monotonic(), LIMIT_S, 50)
        clients.end()
        verdict = check(field, clients)
    assert took < TTL_S, (took, verdict)


def test_another_is_writable_a_ttl_after_the_primary_machine_perished(field: Field) -> None:
    old = field.await_settled()
    with field.clients() as clients:
        write_everywhere(field, clients, old)
        took = takeover_s(field, clients, old, old.perish())
        clients.end()
        field.heal()
        verdict = check(field, clients)
    assert took < TTL_S + BUSY_S, (took, verdict)


@pytest.mark.parametrize("how", ["lost packets", "unplugged"])
def test_a_primary_that_is_cut_off_stops_before_another_begins(field: Field, how: str) -> None:
    old = field.await_settled()
    with field.clients() as clients:
        event = write_everywhere(field, clients, old)
        (field.network.cut if how == "lost packets" else field.network.unplug)(old.name)
        took = takeover_s(field, clients, old, event)
        pause(0.5)
        clients.end()
        # It said yes to nothing in the time that others have for sure.
        last = max(each.done_s for each in clients.acknowledged() if each.node == old.name)
        assert last - event < TTL_S, last - event
        field.heal()
        verdict = check(field, clients)
    assert took < TTL_S + BUSY_S, (took, verdict)
    # Its writer went on until the fence: what nobody else had is kept.
    assert verdict.lost
    assert {each.node for each in verdict.lost} == {old.name}


def test_what_only_an_old_primary_had_is_listed_and_can_be_exported_and_dropped(field: Field) -> None:
    old = field.await_settled()
    before = {each["id"] for each in kept(old)}
    with field.clients() as clients:
        write_everywhere(field, clients, old)
        # Its peers miss its last transactions; then it dies with them.
        field.part_from_peers(old)
        clients.await_from([old.name], time.monotonic(), LIMIT_S, 30)
        takeover_s(field, clients, old, old.strike())
        clients.end()
        field.heal()
        verdict = check(field, clients)
    assert len(verdict.lost) >= 30
    entry, *more = [each for each in kept(old) if each["id"] not in before]
    assert not more
    assert entry["database"] == "app.db"
    assert {(each.writer, each.number) for each in verdict.lost} <= kept_rows(old)
    old.command("diverged", "drop", "--yes", entry["id"])
    assert entry["id"] not in {each["id"] for each in kept(old)}


def test_a_primary_that_stood_still_beyond_its_lease_commits_nothing_when_it_goes_on(field: Field) -> None:
    old = field.await_settled()
    with field.clients() as clients:
        write_everywhere(field, clients, old)
        event = time.monotonic()
        old.signal(signal.SIGSTOP)
        took = takeover_s(field, clients, old, event)
        clients.await_from([each.name for each in field.others(old)], event, LIMIT_S, 50)
        on = time.monotonic()
        old.signal(signal.SIGCONT)
        wait_until(lambda: old.role == "replica", f"{old.name} knows that it is a replica", LIMIT_S)
        pause(0.3)
        clients.end()
        verdict = check(field, clients)
    after = [each for each in clients.acknowledged() if each.node == old.name and each.done_s > on]
    assert all(each in verdict.lost or each.began_s < on for each in after), after
    assert took < TTL_S + BUSY_S, took
