"""A primary that ends by an error of its own, in order but without having stopped: its lease does not outlive it."""

import time
import uuid

import pytest

from tests.lease.support import leased_node
from tests.support.consul import Agent
from tests.support.nodes import Nodes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)

TTL_S = 20.0


def test_a_primary_that_cannot_go_on_leaves_the_lease_at_once(nodes: Nodes, shared_agent: Agent) -> None:
    key = f"errors/{uuid.uuid4().hex[:8]}"
    # The application is started when the node is ready, which without others is when it leads.
    failing = leased_node(nodes, "a", shared_agent.url, key, ttl_s=TTL_S)
    failing.start("/no/such/program", wait=False)
    assert failing.wait_ended() != 0
    ended = time.monotonic()
    assert "role=primary" in failing.log
    assert "/no/such/program" in failing.log
    wait_until(lambda: shared_agent.ask("GET", f"/v1/kv/{key}") is None, "nobody has the lease", TTL_S)
    assert time.monotonic() - ended < 1.5
    other = leased_node(nodes, "b", shared_agent.url, key, ttl_s=TTL_S).start()
    wait_until(lambda: other.status()["role"] == "primary", "another one leads", TTL_S)
    assert time.monotonic() - ended < TTL_S / 2
    record = shared_agent.ask("GET", f"/v1/kv/{key}/members/a")
    assert record is None, "its session is gone too"
    failing.assert_gone()
