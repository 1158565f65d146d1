"""Leases to test: in memory, and in a real Consul."""

from collections.abc import Iterator

import pytest

from tests.support.consul import Agent, Consuls


@pytest.fixture
def consuls() -> Iterator[Consuls]:
    """Makes agents that nobody else uses."""
    made = Consuls()
    yield made
    made.tear_down()


@pytest.fixture(scope="session")
def shared_agent() -> Iterator[Agent]:
    """One agent for every test that does it no harm; each test takes a key of its own."""
    made = Consuls()
    yield made.single()
    made.tear_down()
