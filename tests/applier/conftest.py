"""Fixtures: an applier over an empty folder in the mount's place."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applier.support import Child


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with Child(tmp_path / "mount") as running:
        yield running
