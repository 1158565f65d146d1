"""A rollback journal that a crash has left is played back.

Knows that every live journal is: whether its transaction was committed is said by the log, which is redone afterwards,
and never by the absence of a super-journal (whose path is one of the mount). Does not know the log.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from litereplica.sqlite.journal import JournalHeader, original_pages, parse_journal_header
from litereplica.store.disk import Disk

log = structlog.get_logger()

JOURNAL_SUFFIX: Final = "-journal"
_HEADER_BYTES: Final = 28


class NotDurable(OSError):
    """Whether the database file is on the disk is not known, and no later fsync of it says so (fsync(2))."""


def journal_of(path: Path) -> Path:
    """The rollback journal of a database file."""
    return path.with_name(path.name + JOURNAL_SUFFIX)


def roll_back(disk: Disk, path: Path) -> "array[int]":
    """Undo in the database file what its live journal protects; the journal stays. Durable.

    Raises OSError; NotDurable when it is undone, but what was written to that file before may be lost.

    The answer: numbers of the pages that were put back, and of those that were cut off.
    """
    journal = journal_of(path)
    changed = array("I")
    if not path.exists() or not journal.exists():
        return changed
    source = disk.open(journal, os.O_RDONLY)
    try:
        header = live_header(disk, source)
        if header is None:
            return changed
        target = disk.open(path)
        try:
            changed.extend(put_back(disk, source, header, target))
            try:
                disk.fdatasync(target)
            except OSError as error:
                raise NotDurable(error.errno, error.strerror) from error
        finally:
            disk.close(target)
    finally:
        disk.close(source)
    log.info("journal_rolled_back", file=str(path), pages=len(changed))
    return changed


def live_header(disk: Disk, journal: int) -> JournalHeader | None:
    """The header of an open journal; None when it protects nothing."""
    return parse_journal_header(disk.pread(journal, _HEADER_BYTES, 0))


def put_back(disk: Disk, journal: int, header: JournalHeader, target: int) -> Iterator[int]:
    """Write what an open journal protects into ``target``, and cut that to the pages it had before. Raises OSError.

    Yields the number of each page that was put back, then of those that were cut off.
    """
    page_size, kept = header.page_size, header.page_count
    size = os.fstat(journal).st_size
    is_played = False
    for pgno, page in original_pages(header, lambda offset, length: disk.pread(journal, length, offset), size):
        disk.pwrite(target, page, (pgno - 1) * page_size)
        is_played = True
        yield pgno
    before = os.fstat(target).st_size
    if is_played or before > kept * page_size:
        disk.truncate(target, kept * page_size)
        yield from range(kept + 1, -(-before // page_size) + 1)
