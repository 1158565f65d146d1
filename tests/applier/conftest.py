"""Fixtures: an applier over an empty folder in the mount's place, and a database with a wal-index."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applier.support import Child
from tests.support.sql import Session, make_database


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with Child(tmp_path / "mount") as running:
        yield running


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """With a connection that keeps the wal-index there."""
    path = tmp_path / "app.db"
    make_database(path)
    with Session(path) as session:
        session.run("INSERT INTO t (v) VALUES ('one')")
        yield path
