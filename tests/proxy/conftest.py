"""Applications behind proxies."""

from collections.abc import Iterator

import pytest

from tests.proxy.site import Site, Stage
from tests.support.nodes import Nodes


@pytest.fixture
def site(nodes: Nodes) -> Iterator[Site]:
    """Makes nodes with applications behind proxies; nothing of them is left."""
    made = Site(nodes)
    try:
        yield made
    finally:
        made.print_logs()
        made.tear_down()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A node alone with a proxy of short patience, for all tests of a module: none of them changes it."""
    nodes = Nodes()
    site = Site(nodes)
    try:
        yield site.standalone(
            timeouts={"connect": "1s", "response": "2s", "idle": "1s"},
            rules={"passthrough": ["*.css"], "always_forward": ["/break/write*"], "read_only": ["/echo/search*"]},
        )
    finally:
        site.tear_down()
        problems = nodes.tear_down()
    assert not problems, problems
