"""One field for the tests of a module, of as many nodes as it says in ``NODES``; a new one after a test that failed.

Or, without Consul, one group of a primary and a replica.
"""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.cluster.group import Group
from tests.failover.field import NAMES, Field

TTL_S: Final = 3.0
# Before pytest's own limit for a test: whoever hangs in a mount gets an error, and the test fails in order.
HANG_S: Final = 100.0


class Shared:
    """The field that there is, if any."""

    def __init__(self) -> None:
        self.field: Field | None = None
        self.failed = 0

    def close(self, failed: int) -> None:
        """Take it down; it is looked at whether it met bugs, unless it is known to be in disorder."""
        field, self.field = self.field, None
        if field is not None:
            field.surprising = failed == self.failed
            field.__exit__(None, None, None)


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """Where the module's field is kept."""
    kept = Shared()
    yield kept
    kept.close(request.session.testsfailed)


@pytest.fixture
def field(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Field]:
    """Nodes and Consul, all well, ttl 3 s; a test leaves it well again."""
    failed = request.session.testsfailed
    if shared.failed != failed:
        shared.close(failed)
        shared.failed = failed
    if shared.field is None:
        shared.field = Field(NAMES[: request.module.NODES], ttl_s=TTL_S).__enter__()
    with shared.field.limited(HANG_S):
        yield shared.field
    if request.session.testsfailed != failed:
        print(shared.field.logs())  # noqa: T201


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """A primary and a replica; every test leaves them well."""
    made = Group(1)
    try:
        made.start()
        yield made
        assert not made.surprises(), made.surprises()
    except BaseException:
        made.print_logs()
        raise
    finally:
        problems = made.tear_down()
    assert not problems, problems
