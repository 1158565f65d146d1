from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replication.nodes import Node


@pytest.fixture
def node_class() -> type[Node]:
    """What the nodes of a module are."""
    return Node


@pytest.fixture
def make_node(tmp_path: Path, node_class: type[Node]) -> Iterator[Callable[..., Node]]:
    nodes = []

    def make(name: str, folder: str | None = None, **options: Any) -> Node:
        node = node_class(tmp_path / (folder or name), name, **options)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def primary(make_node: Callable[..., Node]) -> Node:
    return make_node("a")


@pytest.fixture
def replica(make_node: Callable[..., Node]) -> Node:
    return make_node("b")
