"""One node for all tests of a module that do not stop it: a start takes a second."""

import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.mount.twin_node import Shared, TwinNode
from tests.support.nodes import Node, Nodes

_names: Final = iter(f"app{number}.db" for number in range(10_000))


@pytest.fixture(scope="module")
def shared_node() -> Iterator[Node]:
    made = Nodes()
    try:
        yield made.standalone()
    finally:
        problems = made.tear_down()
    assert not problems, problems


@pytest.fixture(scope="module")
def shared_twin(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """Where the module's replica of a twin is kept."""
    kept = Shared(request.session.testsfailed)
    yield kept
    kept.close(request.session.testsfailed)


@pytest.fixture
def changes_role() -> None:
    """The test makes its node a primary: it has one of its own."""


@pytest.fixture
def twin_node(shared_twin: Shared, request: pytest.FixtureRequest) -> Iterator[TwinNode]:
    """A replica whose primary is a twin that commits, and in a failed test's output what it logged during the test."""
    failed = request.session.testsfailed
    kept = Shared(failed) if "changes_role" in request.fixturenames else shared_twin
    node = kept.get(failed)
    node.begin(next(_names))
    yield node
    sys.stdout.write(node.log)
    if kept is not shared_twin:
        kept.close(request.session.testsfailed)
    elif request.session.testsfailed == failed:
        node.rest()


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """A standalone node, and in a failed test's output what it logged during the test."""
    before = len(shared_node.log)
    yield shared_node
    sys.stdout.write(shared_node.log[before:])
