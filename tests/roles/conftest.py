"""Nodes that change their role when a test says so."""

from collections.abc import Callable

import pytest

from tests.roles.directed import DirectedNode
from tests.support.nodes import Nodes

Direct = Callable[[str], DirectedNode]


@pytest.fixture
def directed(nodes: Nodes) -> Direct:
    """Makes started nodes without a role."""

    def make(name: str) -> DirectedNode:
        node = nodes.add(DirectedNode(nodes.folder / name, name))
        node.start()
        return node

    return make
