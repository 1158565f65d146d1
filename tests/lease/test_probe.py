"""What `doctor` asks of Consul."""

import pytest

from litereplica.cli.checks import _consul
from litereplica.config import ConsulSettings
from litereplica.config.units import HttpUrl, Secret
from tests.support.consul import Agent, Consuls

pytestmark = pytest.mark.timeout(60)
NOBODY = HttpUrl("http://127.0.0.1:1")


def test_an_agent_that_does_what_a_node_needs(shared_agent: Agent) -> None:
    check = _consul(ConsulSettings(urls=(HttpUrl(shared_agent.url),), key="litereplica/probe"))
    assert (check.state, check.advice) == ("ok", "")
    assert shared_agent.ask("GET", "/v1/kv/litereplica/probe?recurse") is None
    assert "litereplica doctor" not in str(shared_agent.ask("GET", "/v1/session/list"))


def test_one_of_two_agents_is_a_warning_and_none_is_in_the_way(shared_agent: Agent) -> None:
    one = _consul(ConsulSettings(urls=(NOBODY, HttpUrl(shared_agent.url))))
    assert one.state == "warning"
    assert one.found.startswith("1 of 2 agents: Consul at http://127.0.0.1:1 cannot be reached")
    none = _consul(ConsulSettings(urls=(NOBODY,)))
    assert none.state == "failed"
    assert none.advice


def test_a_key_of_something_else_is_in_the_way(shared_agent: Agent) -> None:
    assert shared_agent.ask("PUT", "/v1/kv/mine", b"hello") is True
    check = _consul(ConsulSettings(urls=(HttpUrl(shared_agent.url),), key="mine"))
    assert check.state == "failed"
    assert "is used by something else: set lease.consul.key" in check.found


def test_a_token_without_rights_is_in_the_way(consuls: Consuls) -> None:
    agent = consuls.single(acl=True)
    for token in ("", "00000000-0000-0000-0000-00000000abcd"):
        check = _consul(ConsulSettings(urls=(HttpUrl(agent.url),), token=Secret(token)))
        assert check.state == "failed"
        assert "give the token in lease.consul.token the rights" in check.found
    assert _consul(ConsulSettings(urls=(HttpUrl(agent.url),), token=Secret(agent.token))).state == "ok"
