"""A snapshot becomes the content of a database.

Knows the steps, each of which may be the last one before a crash. Does not know how the snapshot came here.

1. The pages go into the database's folder under a name that states the position.
2. The meta file says: base is that position, ``installing``. From here on the snapshot is what counts.
3. The old history's segments are moved to ``diverged/``.
4. The meta file says: no longer ``installing``. Segments in the folder are the new history's.
5. Nobody has the database open: WAL and journal of the old content go, then the pages become the database file. Else
   they stay until the applier has written them over the old content and that has reached the file; a crash before puts
   them in place, unless the log has dropped the database since.

What the disk refuses before step 3 leaves all as it was. Steps 3 and 4 may also be made up for: until then the new
content counts, and the log takes no record. What the disk refuses of step 5 is made up for by the next start.
"""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from litereplica.ltx.position import Position
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES
from litereplica.store.database import journal_mode_of
from litereplica.store.disk import Disk
from litereplica.store.dropped import DROPPED_NAME, keep_dropped
from litereplica.store.meta import META_NAME, Meta
from litereplica.store.reopen import segment_files
from litereplica.store.segment import INDEX_SUFFIX, first_txid_of
from litereplica.store.sides import remove_sides

if TYPE_CHECKING:
    from litereplica.store.database import Database

log = structlog.get_logger()

_PREFIX = "install-"


def install_path(directory: Path, position: Position) -> Path:
    """Where the pages of a snapshot wait until they are the database file."""
    return directory / f"{_PREFIX}{position.txid:016x}-{position.checksum:016x}"


def has_history(directory: Path) -> bool:
    """Whether a database's folder holds what only comes after its first meta file: segments, a content, a file."""
    names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    return any(first_txid_of(name) is not None or name.startswith(_PREFIX) or name == DROPPED_NAME for name in names)


def begin_install(
    database: "Database",
    pages_file: Path,
    page_size: int,
    page_count: int,
    position: Position,
    epoch: int,
    timestamp_ms: int,
) -> None:
    """Steps 1 and 2. ``epoch``, ``timestamp_ms``: of the record that led to ``position``: no older one may follow it.

    There is room for its page checksums then. Raises OSError; then the database is as it was, and the snapshot is lost.
    """
    disk = database.store.disk
    database.checksums.reserve(page_count)
    journal_mode = _journal_mode_in(disk, pages_file) if page_count else database.journal_mode
    old_meta = (database.directory / META_NAME).read_bytes()
    target = install_path(database.directory, position)
    disk.rename(pages_file, target)
    disk.fsync_directory(target.parent)
    if page_count == 0 and database.exists:
        keep_dropped(disk, database.file_path, database.directory)
    before = (database.saved_base, database.saved_base_pages, database.epoch, database.timestamp_ms, database.page_size)
    database.set_page_size(page_size)
    database.saved_base, database.saved_base_pages = position, page_count
    database.epoch, database.timestamp_ms = epoch, timestamp_ms
    try:
        database.save_meta(installing=True)
    except OSError:
        database.saved_base, database.saved_base_pages, database.epoch, database.timestamp_ms, known_size = before
        database.set_page_size(known_size)
        _put_back_meta(database, old_meta)
        raise
    # From here on the snapshot counts for a start: nothing may be refused before it does in this process too.
    database.settled = False
    database.journal_mode = journal_mode


def _put_back_meta(database: "Database", old: bytes) -> None:
    """Step 2 was refused: the new meta file may be in its place all the same, and a start would give up what follows.

    If the disk refuses this too, the log takes nothing more: what a start would find is unknown.
    """
    path = database.directory / META_NAME
    try:
        if path.read_bytes() != old:
            database.store.disk.write_file(path, old)
    except OSError as error:
        database.log.fail(error)


def _journal_mode_in(disk: Disk, pages_file: Path) -> str:
    descriptor = disk.open(pages_file, os.O_RDONLY)
    try:
        return journal_mode_of(disk.pread(descriptor, DATABASE_HEADER_BYTES, 0))
    finally:
        disk.close(descriptor)


def end_install(database: "Database") -> None:
    """Steps 3 and 4; again, where the disk has refused one of them.

    Raises OSError: the log refuses records until this was called with success, or the next start has done it.
    """
    earlier, database.install_failure = database.install_failure, None
    try:
        set_log_aside(database, database.store.diverged)
        if earlier is not None:
            # It may have been the sync of these that failed: another one alone would report success.
            database.checksums.write_again()
        _begin_history(database)
    except OSError as error:
        database.install_failure = earlier or error
        if database.log.failure is None:
            database.log.fail(error)
        raise
    if earlier is not None:
        database.log.mended(earlier)
        log.info("install_completed", database=database.name, position=str(database.saved_base))


def _begin_history(database: "Database") -> None:
    """The mark in the page checksums is the old history's until here; no meta file may trust that one."""
    database.checksums.begin_boot(database.saved_base.txid)
    database.checksums.sync()
    database.save_meta()


def set_log_aside(database: "Database", folder: Path) -> None:
    """Move all segments to a new folder in ``folder`` (``diverged/``); they are the old history."""
    disk = database.store.disk
    segments = segment_files(database.directory)
    if segments:
        target = new_folder(disk, folder, f"{database.directory.name}@{database.position.txid:016x}")
        # Newest first: what is left after a crash is a shorter log without gaps.
        for _, path in reversed(segments):
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(path.with_suffix(INDEX_SUFFIX))
            disk.rename(path, target / path.name)
        disk.fsync_directory(target)
        disk.fsync_directory(database.directory)
        log.warning("log_set_aside", database=database.name, position=str(database.position), path=str(target))


def new_folder(disk: Disk, folder: Path, stem: str) -> Path:
    """Make the first folder ``stem.1``, ``stem.2`` … that is not there yet. Raises OSError."""
    number = 1
    while (target := folder / f"{stem}.{number}").exists():
        number += 1
    disk.make_directories(target)
    return target


def forget_older_install(database: "Database") -> None:
    """After step 2: remove the pages of a content that was on its way into the file, and has been replaced itself.

    Before it they are what a start puts in place; from then on a start after a crash removes them, so the disk may
    refuse here.
    """
    older, disk = database.kept_install, database.store.disk
    if older is not None and older != install_path(database.directory, database.saved_base):
        with contextlib.suppress(OSError):
            disk.unlink(older)


def place_install(database: "Database") -> None:
    """Step 5, if there is something to put in place; nobody has the file open."""
    path = install_path(database.directory, database.saved_base)
    disk = database.store.disk
    if path.exists():
        target = database.file_path
        if database.saved_base_pages:
            disk.make_directories(target.parent)
            # Before it: a start that finds the new content in place cannot tell that a journal is the old one's, and
            # would play it back. After a crash in between, ``path`` still says what has to be done.
            remove_sides(disk, target)
            disk.rename(path, target)
            disk.fsync_directory(target.parent)
        else:
            disk.unlink(path)
        # What a checkpoint has put into the file that was replaced is not in this one.
        database.base, database.base_pages = database.saved_base, database.saved_base_pages
    database.pending_install = database.kept_install = None
    database.install_folded = False


def settle_install(database: "Database") -> None:
    """Step 5 when nobody has the file open, and the log is durable: unless the log says that the content was dropped.

    Then the file of the name is a later one, or one that no log knows, or there is none.
    """
    path = install_path(database.directory, database.saved_base)
    if path.exists() and _was_dropped(database):
        database.store.disk.unlink(path)
    place_install(database)


def _was_dropped(database: "Database") -> bool:
    """Whether a record after ``saved_base`` left no pages."""
    records = database.log
    after = range(database.saved_base.txid + 1, records.last_txid + 1)
    return any(not records.header(txid).commit for txid in after)


def finish_install(database: "Database", meta: Meta) -> None:
    """After a crash: go on after step 2 or 3; 5 is ``settle_install``. Before 2, forget the snapshot."""
    disk = database.store.disk
    for entry in sorted(database.directory.iterdir()):
        if entry.name.startswith(_PREFIX) and entry != install_path(database.directory, meta.base):
            disk.unlink(entry)
    if meta.installing:
        set_log_aside(database, database.store.diverged)
        database.checksums.reserve(1)
        # Their sync may have failed in the process before.
        database.checksums.write_again()
        _begin_history(database)
