"""Database files that no log knows: a crash came before their first transaction was logged, or they were put there.

Knows that SQLite itself can bring such a file into one piece. Does not know when it becomes a replicated database
(store.adopt does that, when its application goes on).
"""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import structlog

from litereplica.sqlite.journal import is_super_journal
from litereplica.sqlite.pages import is_database
from litereplica.store.disk import Disk
from litereplica.store.roll_back import journal_of, roll_back

log = structlog.get_logger()


def settle_unknown(disk: Disk, files: Path, side_suffixes: tuple[str, ...], is_known: Callable[[str], bool]) -> None:
    """Settle every database file without a log; remove empty files, leave all others alone."""
    for path in sorted(files.rglob("*")):
        name = str(path.relative_to(files))
        if not path.is_file() or name.endswith(side_suffixes) or is_known(name):
            continue
        if is_super_journal(name):
            disk.unlink(path)  # every journal that it named has been played back
            continue
        roll_back(disk, path)
        with path.open("rb") as file:
            first = file.read(100)
        if first and not is_database(first):
            continue
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(journal_of(path))
        if first:
            settle(path)
        else:
            disk.unlink(path)


def settle(path: Path) -> None:
    """Let SQLite fold a WAL in. What it cannot read (half of a copy, perhaps) is left as it is, with a log line."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except sqlite3.DatabaseError as error:
            log.error(  # noqa: TRY400  a person needs the reason, not the stack
                "unknown_file_unreadable",
                file=str(path),
                reason=str(error),
                advice="it is in no log and not replicated: repair it, or remove it in the mount",
            )
