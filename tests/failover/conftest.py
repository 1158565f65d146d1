"""One field for as many tests as possible; a new one after a test that failed, and where other options are wanted."""

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any, Final

import pytest

from tests.failover.field import Field

TTL_S: Final = 3.0
BUSY_S: Final = 5.0
"""On top of a ttl: a takeover is a matter of tenths of a second, and the machine may be busy."""
# Before pytest's own limit for a test: whoever hangs in a mount gets an error, and the test fails in order.
HANG_S: Final = 80.0


class Shared:
    """The field that there is, if any."""

    def __init__(self) -> None:
        self.field: Field | None = None
        self._stack = contextlib.ExitStack()
        self._options: dict[str, Any] = {}
        self._failed = 0

    def get(self, options: dict[str, Any], failed: int) -> Field:
        """The field with these options; ``failed``: how many tests have failed so far."""
        if options != self._options or failed != self._failed:
            self.close(failed)
        if self.field is None:
            self._options, self._failed = options, failed
            self.field = self._stack.enter_context(Field(ttl_s=TTL_S, on_replica="refuse", **options))
        return self.field

    def close(self, failed: int) -> None:
        """Take it down; it is looked at whether it met bugs, unless it is known to be in disorder."""
        field, self.field = self.field, None
        if field is not None and failed != self._failed:
            field.surprising = False
        self._stack.close()


SHARED: Final = Shared()


@pytest.fixture
def field(request: pytest.FixtureRequest) -> Iterator[Field]:
    """Three nodes and Consul, all well, ttl 3 s; a test leaves it well again."""
    found = SHARED.get(getattr(request.module, "OPTIONS", {}), request.session.testsfailed)
    with found.limited(HANG_S):
        yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows the logs as they are then."""
    report = yield
    if report.failed and SHARED.field is not None:
        report.sections.append(("logs", SHARED.field.logs()))
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Tests of other folders get a machine on which no field runs."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        SHARED.close(item.session.testsfailed)


def pause(seconds: float) -> None:
    """Let so much time pass, because what is tested is time."""
    time.sleep(seconds)
