"""Consul answers nobody; ``outage: continue``: the primary goes on while every member promises to wait."""

import time

import pytest

from tests.failover.checking import check
from tests.failover.conftest import TTL_S, pause
from tests.failover.field import Field
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(90)

LIMIT_S = 20.0
OPTIONS = {"outage": "continue"}


def test_commits_go_on_while_all_members_promise_and_end_when_one_is_silent(field: Field) -> None:
    old = field.await_settled()
    silent = field.others(old)[0]
    # A primary counts on those whom its lease names, from the second renewal on.
    wait_until(lambda: len(field.lease()["counts_on"]) > 1, "the lease names the others", LIMIT_S)
    with field.clients() as clients:
        for node in field.all:
            clients.writer(*field.places(node))
        clients.await_from([old.name], 0, LIMIT_S, 50)
        field.part_from_consul(*field.all)
        pause(2 * TTL_S)
        clients.await_from([old.name], time.monotonic(), LIMIT_S, 20)
        assert {each.node for each in clients.acknowledged()} == {old.name}
        field.network.cut(silent.name)
        pause(TTL_S)
        since = time.monotonic()
        pause(1.0)
        late = [each for each in clients.acknowledged() if each.began_s > since]
        assert not late, late[:5]
        field.heal()
        clients.await_from([each.name for each in field.all], time.monotonic(), LIMIT_S, 20)
        clients.end()
        assert not check(field, clients).lost
