"""Consul answers nobody, hangs, or has lost everything; ``outage: stop``, which is the default."""

import time

import pytest

from tests.failover.checking import check
from tests.failover.clients import Clients
from tests.failover.conftest import TTL_S, pause
from tests.failover.field import Field
from tests.failover.machine import Machine

pytestmark = pytest.mark.timeout(90)

LIMIT_S = 20.0


def writers_at_all(field: Field, clients: Clients, old: Machine) -> float:
    for node in field.all:
        clients.writer(*field.places(node))
    clients.await_from([old.name], 0, LIMIT_S, 50)
    return time.monotonic()


@pytest.mark.parametrize("what", ["unreachable", "hanging"])
def test_without_consul_nobody_accepts_commits_once_the_lease_is_over(field: Field, what: str) -> None:
    old = field.await_settled()
    with field.clients() as clients:
        event = writers_at_all(field, clients, old)
        if what == "unreachable":
            field.part_from_consul(*field.all)
        else:
            field.consul.hang()
        # The lease is not over yet.
        clients.await_from([old.name], event + TTL_S / 2, LIMIT_S)
        pause(max(0.0, event + TTL_S - time.monotonic()))
        since = time.monotonic()
        pause(1.5)
        late = [each for each in clients.acknowledged() if each.began_s > since]
        assert not late, late[:5]
        healed = time.monotonic()
        field.consul.go_on()
        field.heal()
        clients.await_from([each.name for each in field.all], healed, LIMIT_S, 20)
        clients.end()
        assert not check(field, clients).lost


def test_a_short_absence_of_consul_is_noticed_by_nobody(field: Field) -> None:
    old = field.await_settled()
    with field.clients() as clients:
        writer = clients.writer(*field.places(old))
        clients.await_from([old.name], 0, LIMIT_S, 20)
        field.part_from_consul(*field.all)
        pause(TTL_S / 3)
        field.network.heal()
        pause(TTL_S)
        clients.await_from([old.name], time.monotonic(), LIMIT_S, 20)
        clients.end()
        assert not writer.failed, writer.failed[:5]
        assert not check(field, clients).lost
    assert field.primary() is old


def test_a_consul_that_lost_everything_is_filled_again_and_epochs_still_rise(field: Field) -> None:
    old = field.await_settled()
    epoch = old.status()["epoch"]
    with field.clients() as clients:
        writers_at_all(field, clients, old)
        field.consul.wipe()
        clients.await_from([each.name for each in field.all], time.monotonic(), LIMIT_S, 20)
        primary = field.primary()
        clients.await_from([primary.name], time.monotonic(), LIMIT_S, 20)
        clients.end()
        assert not check(field, clients).lost
    assert primary.status()["epoch"] >= epoch
    with field.clients() as clients:
        clients.writer(*field.places())
        clients.await_from([primary.name], 0, LIMIT_S)
        primary.strike()
        clients.await_from([each.name for each in field.others(primary)], time.monotonic(), LIMIT_S, 20)
        clients.end()
        field.heal()
        check(field, clients)
    assert field.primary().status()["epoch"] > epoch
