"""Database files that no log knows: a crash came before their first transaction was logged, or they were put there.

Knows that SQLite itself can bring such a file into one piece, and where it goes when another node has made a database
of its name. Does not know when it becomes a replicated database (store.adopt does that, when its application goes on).
"""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from litereplica.sqlite.journal import (
    JOURNAL_HEADER_BYTES,
    JOURNAL_MAGIC,
    is_super_journal,
    names_journals,
    parse_journal_header,
)
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, is_database
from litereplica.store.disk import Disk
from litereplica.store.install import new_folder
from litereplica.store.roll_back import journal_of, roll_back
from litereplica.store.sides import sides_of

log = structlog.get_logger()

# SQLite can attach 125 databases at most, and no path of theirs is longer than 512 bytes.
_SUPER_JOURNAL_BYTES: Final = 128 * 1024


def settle_unknown(disk: Disk, files: Path, side_suffixes: tuple[str, ...], is_known: Callable[[str], bool]) -> None:
    """Settle every database file without a log; remove empty files, leave all others alone."""
    for path in sorted(files.rglob("*")):
        name = str(path.relative_to(files))
        if not path.is_file() or name.endswith(side_suffixes) or is_known(name):
            continue
        if is_super_journal(name):
            with path.open("rb") as file:
                content = file.read(_SUPER_JOURNAL_BYTES + 1)
            if len(content) <= _SUPER_JOURNAL_BYTES and names_journals(content):
                disk.unlink(path)  # every journal that it named has been played back
            else:
                log.warning("unknown_file_left_alone", path=str(path))
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
    try:
        # It may refuse the path itself, for its length.
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    except sqlite3.DatabaseError as error:
        log.error(  # noqa: TRY400  a person needs the reason, not the stack
            "unknown_file_unreadable",
            file=str(path),
            reason=str(error),
            advice="it is in no log and not replicated: repair it, or remove it in the mount",
        )


def set_unknown_aside(disk: Disk, path: Path, folder: Path, stem: str) -> None:
    """Move the file ``path``, which no log knows, to a new folder ``stem.N`` in ``folder``, with what lies beside it.

    Not an empty one, nor one that an application is only just making, or was when it was refused: its journal says that
    there was nothing before. Durable, so that what takes its place is so only afterwards. Raises OSError.
    """
    if not path.is_file() or not path.stat().st_size or _is_being_made(path):
        return
    # An application may be changing it: what it has not committed is nobody's, and would go with its journal's name.
    roll_back(disk, path)
    target = new_folder(disk, folder, stem)
    # The file last: what is left of it after a crash is found, and set aside, as it was.
    for source in (*sides_of(path), path):
        with contextlib.suppress(FileNotFoundError):
            disk.rename(source, target / source.name)
    disk.fsync_directory(target)
    disk.fsync_directory(path.parent)
    log.warning(
        "unknown_file_set_aside", file=str(path), path=str(target),
        reason="another node has made a database of its name, and it is in no log",
    )  # fmt: skip


def _is_being_made(path: Path) -> bool:
    """Whether a live journal says that the database had no pages when its transaction began.

    As long as none of them is in the file, but for the room that was made for them, the mount keeps the journal's magic
    from the disk.
    """
    try:
        with journal_of(path).open("rb") as file:
            first = file.read(JOURNAL_HEADER_BYTES)
    except FileNotFoundError:
        return False
    magic_bytes = len(JOURNAL_MAGIC)
    if not any(first[:magic_bytes]):
        with path.open("rb") as file:
            if any(file.read(DATABASE_HEADER_BYTES)):
                return False
        first = JOURNAL_MAGIC + first[magic_bytes:]
    header = parse_journal_header(first)
    return header is not None and not header.page_count
