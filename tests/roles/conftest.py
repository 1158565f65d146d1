"""Nodes that change their role when a test says so."""

from collections.abc import Callable

import pytest

from tests.roles.directed import DirectedNode
from tests.support.nodes import Nodes

Direct = Callable[[str], DirectedNode]


@pytest.fixture
def directed(nodes: Nodes) -> Direct:
    """Makes started nodes without a role; as replicas they are for reading only."""
    return _maker(nodes, "refuse")


@pytest.fixture
def forwarding(nodes: Nodes) -> Direct:
    """The same, and as replicas they forward what is written."""
    return _maker(nodes, "forward")


def _maker(nodes: Nodes, on_replica: str) -> Direct:
    def make(name: str) -> DirectedNode:
        node = nodes.add(DirectedNode(nodes.folder / name, name, on_replica))
        node.start()
        return node

    return make
