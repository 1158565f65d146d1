"""Waiting, with a limit."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

# Long enough for a busy machine with one core to itself; a test that is right never waits so long.
LIMIT_S: Final = 30.0
STEP_S: Final = 0.02

Found = TypeVar("Found")


def wait_until(condition: Callable[[], Found], what: str, limit_s: float = LIMIT_S) -> Found:
    """Poll until ``condition`` answers something true, and return it. AssertionError naming ``what`` at the limit."""
    end = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(STEP_S)
