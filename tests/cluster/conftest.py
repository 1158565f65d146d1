"""Groups of nodes: one for a whole module where its tests leave it whole, new ones where they do not."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.cluster.group import Group

# Before pytest's own limit for a test (120 s): whoever hangs in a mount gets an error, and the test fails in order.
HANG_S: Final = 110.0 + float(os.environ.get("LITEREPLICA_CLUSTER_SECONDS", "0"))

MakeGroup = Callable[..., Group]


def take_down(group: Group, request: pytest.FixtureRequest) -> list[str]:
    """What should not have been there, if anything."""
    found = group.surprises()
    if found or request.session.testsfailed:
        group.print_logs()
    return found + group.tear_down()


class Shared:
    """The group that the tests of a module share; a new one after a test that failed."""

    def __init__(self) -> None:
        self.group: Group | None = None
        self.failed = 0


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """Where the module's group is kept."""
    kept = Shared()
    yield kept
    problems = take_down(kept.group, request) if kept.group is not None else []
    assert not problems, problems


@pytest.fixture
def group(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Group]:
    """A primary and two replicas, started; each test leaves them running and equal."""
    if shared.group is not None and shared.failed != request.session.testsfailed:
        take_down(shared.group, request)
        shared.group = None
    shared.failed = request.session.testsfailed
    if shared.group is None:
        shared.group = Group()
        shared.group.start()
    with limited([shared.group]):
        yield shared.group


@contextlib.contextmanager
def limited(groups: list[Group]) -> Iterator[None]:
    """After HANG_S all mounts answer with errors."""

    def abort() -> None:
        for each in groups:
            each.abort()

    timer = threading.Timer(HANG_S, abort)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture
def make_group(request: pytest.FixtureRequest) -> Iterator[MakeGroup]:
    """Groups of the test's own; not started."""
    groups: list[Group] = []

    def make(replicas: int = 1, **retention: str) -> Group:
        groups.append(Group(replicas, **retention))
        return groups[-1]

    with limited(groups):
        yield make
    problems = [problem for each in groups for problem in take_down(each, request)]
    assert not problems, problems
