"""A rollback journal that a crash has left is played back.

Knows that every live journal is: whether its transaction was committed is said by the log, which is redone afterwards,
and never by the absence of a super-journal (whose path is one of the mount). Does not know the log.
"""

import os
from array import array
from pathlib import Path
from typing import Final

import structlog

from litereplica.sqlite.journal import original_pages, parse_journal_header
from litereplica.store.disk import Disk

log = structlog.get_logger()

JOURNAL_SUFFIX: Final = "-journal"
_HEADER_BYTES: Final = 28


def journal_of(path: Path) -> Path:
    """The rollback journal of a database file."""
    return path.with_name(path.name + JOURNAL_SUFFIX)


def roll_back(disk: Disk, path: Path) -> "array[int]":
    """Undo in the database file what its live journal protects; the journal stays. Durable. Raises OSError.

    The answer: numbers of the pages that were put back.
    """
    journal = journal_of(path)
    played = array("I")
    if not path.exists() or not journal.exists():
        return played
    source = disk.open(journal, os.O_RDONLY)
    try:
        header = parse_journal_header(disk.pread(source, _HEADER_BYTES, 0))
        if header is None:
            return played
        target = disk.open(path)
        try:
            size = os.fstat(source).st_size
            for pgno, page in original_pages(header, lambda offset, length: disk.pread(source, length, offset), size):
                disk.pwrite(target, page, (pgno - 1) * header.page_size)
                played.append(pgno)
            if played or os.fstat(target).st_size > header.page_count * header.page_size:
                disk.truncate(target, header.page_count * header.page_size)
            disk.fdatasync(target)
        finally:
            disk.close(target)
    finally:
        disk.close(source)
    log.info("journal_rolled_back", file=str(path), pages=len(played))
    return played
