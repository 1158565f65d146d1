"""Warnings about the SQLite that writes: once a version and database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from litereplica.mount.guard import VersionGuard
from litereplica.store.store import Store
from tests.store.application import Application, open_store

Seen = list[tuple[object, object]]


@pytest.fixture
def captured() -> Iterator[LogCapture]:
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[capture])
    yield capture
    structlog.configure(**before)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(tmp_path)
    yield made
    made.close()


def warned(captured: LogCapture) -> Seen:
    return [
        (entry["database"], entry["sqlite"])
        for entry in captured.entries
        if entry["event"] == "sqlite_with_wal_reset_bug"
    ]


def written_by(app: Application, version: int) -> None:
    """A transaction of that SQLite, checkpointed."""
    page = b"SQLite format 3\x00" + bytes(80) + version.to_bytes(4, "big") + app.random.randbytes(412)
    if app.store.get(app.name) is None:
        app.start()
    app.commit({1: page})
    path = app.database.file_path
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(page)


def test_each_version_is_named_once_for_each_database(store: Store, captured: LogCapture) -> None:
    guard = VersionGuard()
    one, other = Application(store, name="one.db"), Application(store, name="other.db")
    for app, version in ((one, 3040001), (one, 3040001), (other, 3040001), (one, 3050007), (one, 3045000), (one, 0)):
        written_by(app, version)
        guard.look(app.database)
    assert warned(captured) == [("one.db", "3.40.1"), ("other.db", "3.40.1"), ("one.db", "3.45.0")]


def test_a_file_that_is_gone_or_is_none_says_nothing(store: Store, captured: LogCapture) -> None:
    guard = VersionGuard()
    app = Application(store, name="one.db")
    written_by(app, 3040001)
    app.database.file_path.write_bytes(b"x" * 512)
    guard.look(app.database)
    app.commit()
    app.database.file_path.unlink()
    guard.look(app.database)
    assert warned(captured) == []
