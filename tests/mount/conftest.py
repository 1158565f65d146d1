"""One node for all tests of a module that do not stop it: a start takes a second."""

import sys
from collections.abc import Iterator

import pytest

from tests.support.nodes import Node, Nodes


@pytest.fixture(scope="module")
def shared_node() -> Iterator[Node]:
    made = Nodes()
    try:
        yield made.standalone()
    finally:
        problems = made.tear_down()
    assert not problems, problems


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """A standalone node, and in a failed test's output what it logged during the test."""
    before = len(shared_node.log)
    yield shared_node
    sys.stdout.write(shared_node.log[before:])
