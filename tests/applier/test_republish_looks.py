"""A wal-index is reset only if it does not show what is committed, and nobody meets a lock when it does."""

import time
from pathlib import Path

import pytest

from litereplica.applier.protocol import Republish
from litereplica.applier.republish import republish
from tests.applier.support import shown_end
from tests.support.sql import Session, make_database


def run(database: Path, wanted: Republish) -> bool:
    """Take turns until it is done; whether the wal-index had to be reset."""
    turns = republish(str(database), wanted)
    while True:
        try:
            time.sleep(next(turns))
        except StopIteration as answer:
            return bool(answer.value)


def shown(database: Path) -> Republish:
    """What the wal-index shows."""
    return Republish(database.name, *shown_end(database))


def test_an_index_that_shows_all_frames_is_looked_at_without_the_write_lock(database: Path) -> None:
    wanted = shown(database)
    with Session(database) as writer:
        writer.run("BEGIN IMMEDIATE")
        with pytest.raises(StopIteration) as answer:
            next(republish(str(database), wanted))  # it would ask for another turn if it wanted the lock
        assert not answer.value.value
        writer.run("INSERT INTO t (v) VALUES ('two')")
        writer.run("COMMIT")
    assert not run(database, wanted._replace(frames=wanted.frames - 1))


@pytest.mark.parametrize(("salt", "frames"), [(0, 1), (1, 0)])
def test_an_index_that_does_not_is_built_anew_by_the_next_user(database: Path, salt: int, frames: int) -> None:
    before = shown(database)
    wanted = before._replace(salt1=before.salt1 ^ salt, frames=before.frames + frames)
    assert run(database, wanted)
    assert not run(database, wanted), "an index without a header is rebuilt anyhow"
    with Session(database, busy_s=0) as other:
        assert other.run("SELECT count(*) FROM t") == [(1,)]
    assert shown(database) == before


def test_a_writer_finishes_before_its_index_is_reset(database: Path) -> None:
    wanted = shown(database)
    with Session(database, busy_s=0) as writer:
        writer.run("BEGIN IMMEDIATE")
        writer.run("INSERT INTO t (v) VALUES ('two')")
        writer.send("COMMIT")
        assert not run(database, wanted._replace(frames=wanted.frames + 1))
        writer.receive()


def test_a_database_that_nobody_has_open_needs_nothing(tmp_path: Path) -> None:
    make_database(tmp_path / "app.db")
    assert not run(tmp_path / "app.db", Republish("app.db", 1, 2, 3))
