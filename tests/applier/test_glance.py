"""A look at a wal-index: whether readers see so many frames, and if not, whether anybody is left to show them."""

from pathlib import Path

import pytest

from litereplica.applier.glance import look
from litereplica.applier.protocol import Look
from litereplica.sqlite.shm import BLOCK_BYTES, HEADER_COPY_BYTES
from tests.applier.support import shown_end
from tests.support.sql import Session, make_database

SHOWN = (True, False)
SOMEBODY_WRITES = (False, True)
NOBODY_IS_LEFT = (False, False)


def shown(database: Path) -> Look:
    """What the wal-index shows."""
    return Look(database.name, 1, *shown_end(database))


def test_what_the_index_shows_is_seen_whoever_writes(database: Path) -> None:
    wanted = shown(database)
    assert look(str(database), wanted) == SHOWN
    with Session(database) as writer:
        writer.run("BEGIN IMMEDIATE")
        assert look(str(database), wanted) == SHOWN
        assert look(str(database), wanted._replace(frames=wanted.frames - 1)) == SHOWN


@pytest.mark.parametrize(("salt", "frames"), [(0, 1), (1, 0)])
def test_what_it_does_not_show_is_on_its_way_while_somebody_writes(database: Path, salt: int, frames: int) -> None:
    before = shown(database)
    wanted = before._replace(salt1=before.salt1 ^ salt, frames=before.frames + frames)
    assert look(str(database), wanted) == NOBODY_IS_LEFT
    with Session(database) as writer:
        writer.run("BEGIN IMMEDIATE")
        assert look(str(database), wanted) == SOMEBODY_WRITES
        writer.run("ROLLBACK")
    assert look(str(database), wanted) == NOBODY_IS_LEFT


def test_an_index_without_a_whole_header_shows_nobody_an_old_state(database: Path) -> None:
    wanted = shown(database)._replace(frames=100)
    with database.with_name("app.db-shm").open("r+b") as index:
        index.seek(HEADER_COPY_BYTES)
        index.write(b"\xff")  # the second copy: the writer is between the two
        index.flush()
        assert look(str(database), wanted) == SHOWN


def test_a_database_that_nobody_has_open_is_read_from_its_wal(tmp_path: Path) -> None:
    make_database(tmp_path / "app.db")
    wanted = Look("app.db", 1, 1, 2, 3)
    assert look(str(tmp_path / "app.db"), wanted) == SHOWN
    tmp_path.joinpath("app.db-shm").write_bytes(bytes(BLOCK_BYTES))
    assert look(str(tmp_path / "app.db"), wanted) == SHOWN
