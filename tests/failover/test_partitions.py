"""The table of docs/failover.md: who does what when packets are lost, with nobody told (no FIN, no RST)."""

import time

import pytest

from tests.failover.checking import check
from tests.failover.clients import Clients
from tests.failover.conftest import BUSY_S, TTL_S, pause
from tests.failover.field import Field
from tests.failover.machine import Machine

pytestmark = pytest.mark.timeout(90)

LIMIT_S = 20.0


def writers_at_all(field: Field, clients: Clients, old: Machine) -> float:
    """One writer at each node, which stays there; when the primary has some transactions."""
    for node in field.all:
        clients.writer(*field.places(node))
    clients.await_from([old.name], 0, LIMIT_S, 50)
    return time.monotonic()


def finish(field: Field, clients: Clients) -> None:
    clients.end()
    field.heal()
    check(field, clients)


@pytest.mark.parametrize("what", ["it is not heard", "it hears nothing", "it has no Consul"])
def test_a_primary_whose_renewals_fail_is_replaced(field: Field, what: str) -> None:
    old = field.await_settled()
    with field.clients() as clients:
        event = writers_at_all(field, clients, old)
        if what == "it is not heard":
            field.network.mute(old.name)
        elif what == "it hears nothing":
            field.network.deafen(old.name)
        else:
            field.part_from_consul(old)
        # A renewal that arrives, and whose answer does not, is the last for sure.
        limit_s = TTL_S + BUSY_S + (TTL_S if what == "it hears nothing" else 0)
        clients.await_from([each.name for each in field.others(old)], event, limit_s, 20)
        finish(field, clients)


@pytest.mark.parametrize("what", ["all peers", "one peer cut off", "one peer not heard, one hears nothing"])
def test_a_primary_that_reaches_consul_stays_primary_whoever_else_it_reaches(field: Field, what: str) -> None:
    old = field.await_settled()
    peer, other = field.others(old)
    with field.clients() as clients:
        writers_at_all(field, clients, old)
        if what == "all peers":
            field.part_from_peers(old)
        elif what == "one peer cut off":
            field.network.cut(peer.name)
        else:
            field.network.mute(peer.name)
            field.network.deafen(other.name)
        pause(TTL_S + 0.5)
        clients.await_from([old.name], time.monotonic(), LIMIT_S, 20)
        assert {each.node for each in clients.acknowledged()} == {old.name}
        clients.end()
        field.heal()
        assert not check(field, clients).lost
    assert field.primary() is old
