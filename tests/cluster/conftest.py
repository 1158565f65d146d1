"""Groups of nodes for the tests: one for a whole module where tests leave it whole, a new one where they do not."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.group import Group

# Before pytest's own limit for a test (120 s): whoever hangs in a mount gets an error, and the test fails in order.
HANG_S: Final = 110.0

MakeGroup = Callable[..., Group]


def closing(group: Group, request: pytest.FixtureRequest) -> None:
    try:
        group.assert_no_surprise()
    finally:
        if request.session.testsfailed:
            for node in group.nodes:
                print(node.last_words())  # noqa: T201  pytest shows it beside the failure
        group.close()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Group]:
    """A primary and two replicas that the tests of a module share; each test leaves them running and equal."""
    made = Group(tmp_path_factory.mktemp("group"))
    try:
        made.start()
        yield made
    finally:
        closing(made, request)


@pytest.fixture
def make_group(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeGroup]:
    """Groups of the test's own."""
    groups: list[Group] = []

    def make(replicas: int = 1, **options: str) -> Group:
        groups.append(Group(tmp_path / str(len(groups)), replicas, **options))
        return groups[-1]

    timer = threading.Timer(HANG_S, lambda: [each.abort() for each in groups])
    timer.daemon = True
    timer.start()
    yield make
    timer.cancel()
    for each in groups:
        closing(each, request)


@pytest.fixture(autouse=True)
def _never_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    if "group" not in request.fixturenames:
        yield
        return
    group: Group = request.getfixturevalue("group")
    timer = threading.Timer(HANG_S, group.abort)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
