"""Database files that no log knows: a crash came before their first transaction was logged, or they were put there.

Knows that SQLite itself can bring such a file into one piece. Does not know when it becomes a replicated database
(store.adopt does that, when its application goes on).
"""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from litereplica.errors import Corrupt
from litereplica.sqlite.pages import is_database
from litereplica.store.disk import Disk


def settle_unknown(disk: Disk, files: Path, side_suffixes: tuple[str, ...], is_known: Callable[[str], bool]) -> None:
    """Settle every database file without a log; remove empty files, leave all others alone."""
    for path in sorted(files.rglob("*")):
        name = str(path.relative_to(files))
        if not path.is_file() or name.endswith(side_suffixes) or is_known(name):
            continue
        with path.open("rb") as file:
            first = file.read(100)
        if not first:
            disk.unlink(path)
        elif is_database(first):
            settle(path)


def settle(path: Path) -> None:
    """Let SQLite roll back a hot journal or fold a WAL in.

    Raises Corrupt when SQLite cannot read it; nothing is deleted.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except sqlite3.DatabaseError as error:
            raise Corrupt(
                f"{path} cannot be read by SQLite ({error}): move it out of the data directory, or repair it"
            ) from None
