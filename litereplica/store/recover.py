"""The way back after a stop, clean or not, and the way to a clean one.

Knows the rule: the log is ahead of or equal to the files. The WAL file is never trusted; the records after the last
position known to be wholly in the database file are written into it again, then the rolling checksum is compared.
Does not know how the log's own torn tail is dropped (store.reopen), how pages are written (store.redo), or how a file
that somebody else has written to is told (store.offline).

Nothing that is damaged is changed or deleted: Corrupt says what to do.
"""

import contextlib
import os
from array import array
from pathlib import Path

import structlog

from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES
from litereplica.store.database import Database, journal_mode_of
from litereplica.store.dropped import finish_drop, forget_dropped, forget_unlinked
from litereplica.store.install import finish_install, settle_install
from litereplica.store.meta import NOT_CLEAN, Meta, load_meta
from litereplica.store.offline import judge_stopped
from litereplica.store.redo import redo, sum_up
from litereplica.store.reopen import Known, reopen, reopen_clean
from litereplica.store.roll_back import roll_back
from litereplica.store.sides import remove_sides, sides_of

log = structlog.get_logger()

# What a replica was building when it stopped (node.follow); nothing refers to it.
_UNFINISHED = "new"


def open_log(database: Database) -> Meta:
    """Open the log, its torn tail dropped; ``bring_up`` has to follow. Blocking; before the mount.

    Raises Corrupt, Refused, OSError.
    """
    meta = load_meta(database.directory)
    database.set_page_size(meta.page_size)
    database.base = database.saved_base = database.position = meta.base
    database.base_pages = database.saved_base_pages = database.page_count = meta.base_pages
    database.epoch, database.timestamp_ms = meta.epoch, meta.timestamp_ms
    database.log = database.new_log(meta.base)
    if not (meta.clean and _open_clean(database, meta)):
        _open_dirty(database, meta)
    return meta


def bring_up(database: Database, meta: Meta) -> None:
    """Bring position, page checksums and the database file to the end of the log."""
    if not database.settled:
        _bring_up_dirty(database, meta)
    database.applied = database.position.txid
    if database.exists:
        with database.file_path.open("rb") as file:
            database.journal_mode = journal_mode_of(file.read(DATABASE_HEADER_BYTES))


def _open_clean(database: Database, meta: Meta) -> bool:
    """Take the files as a clean stop left them, if they are; the database file is not read."""
    if not _is_untouched(database, meta) or not reopen_clean(database.log, meta.base):
        return False
    checksums = database.checksums
    if checksums.xor_range(1, meta.base_pages) != meta.base.checksum or not checksums.is_clear_from(
        meta.base_pages + 1
    ):
        database.log.close()
        database.log = database.new_log(meta.base)
        return False
    database.settled = True
    return True


def _is_untouched(database: Database, meta: Meta) -> bool:
    path = database.file_path
    if meta.base_pages == 0:
        return not path.exists()
    return file_stamp(path) == (meta.file_bytes, meta.file_changed_ns) and not any(
        _has_bytes(side) for side in sides_of(path)
    )


def file_stamp(path: Path) -> tuple[int, int]:
    """Size of the database file and when it was changed (ns); (NOT_CLEAN, 0) when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return NOT_CLEAN, 0
    return status.st_size, status.st_mtime_ns


def _open_dirty(database: Database, meta: Meta) -> None:
    checksums = database.checksums
    finish_install(database, meta)
    durable = checksums.durable_txid or 0
    if meta.clean:
        durable = max(durable, meta.base.txid)
    reopen(database.store.disk, database.log, Known(database.name, meta.base, durable, checksums.same_boot))


def _bring_up_dirty(database: Database, meta: Meta) -> None:
    disk, directory, checksums = database.store.disk, database.directory, database.checksums
    _take_tail(database)
    # Redo must not put anything into the file that is not yet durable in the log.
    database.log.sync_blocking()
    checksums.reserve(1)
    checksums.begin_boot(database.log.durable_txid)
    settle_install(database)
    # Before anything of the file is changed: whoever had it since may have written to it.
    is_summed = meta.clean and database.exists and _has_nothing_to_redo(database) and judge_stopped(database)
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(directory / _UNFINISHED)
    if database.position.txid:
        finish_drop(disk, database.file_path, directory, dropped=not database.exists)
    played = roll_back(disk, database.file_path)
    if database.exists:
        redo(database)
        # What a journal gave back or cut off is what the log says, or the journal was not this file's.
        _check_pages(database, played)
        # After a clean stop there was nothing to redo: somebody else had the file, or the checksums are damaged.
        _check(database, read_file=meta.clean and not is_summed)
    else:
        checksums.clear_from(1)
    fold(database)


def _has_nothing_to_redo(database: Database) -> bool:
    return database.log.last_txid == database.base.txid


def _take_tail(database: Database) -> None:
    records = database.log
    if _has_nothing_to_redo(database):
        return
    tail = records.summary(records.last_txid)
    database.position = Position(tail.header.max_txid, tail.trailer.post_checksum)
    database.page_count = tail.header.commit
    database.timestamp_ms = tail.header.timestamp_ms
    database.epoch = tail.header.epoch
    database.set_page_size(tail.header.page_size)


def _check_pages(database: Database, pgnos: "array[int]") -> None:
    disk, size, table = database.store.disk, database.page_size, database.checksums.table
    if not pgnos or database.checksums.xor_range(1, database.page_count) != database.position.checksum:
        return  # the page checksums were lost: the whole file is summed up
    descriptor = disk.open(database.file_path, os.O_RDONLY)
    try:
        for pgno in pgnos:
            if pgno <= database.page_count and pgno != database.lock_page:
                page = disk.pread(descriptor, size, (pgno - 1) * size)
                # One that was never written by anybody (0) may hold anything.
                if table[pgno - 1] and page_checksum(pgno, page) != table[pgno - 1]:
                    raise Corrupt(
                        f"page {pgno} of {database.file_path} is not what its log says, after its rollback journal was "
                        f"played back: keep a copy, then move it and {database.directory} aside and let this node take "
                        f"a snapshot, or restore a backup"
                    )
    finally:
        disk.close(descriptor)


def _check(database: Database, *, read_file: bool) -> None:
    """Compare the rolling checksum; when the array was lost, sum the file up."""
    checksums = database.checksums
    if not read_file and checksums.xor_range(1, database.page_count) == database.position.checksum:
        return
    log.warning("page_checksums_rebuilt", database=database.name)
    sum_up(database)
    found = checksums.xor_range(1, database.page_count)
    if found != database.position.checksum:
        raise Corrupt(
            f"{database.file_path} does not hold what its log says ({found:016x} instead of {database.position}): "
            f"keep a copy, then move it and {database.directory} aside and let this node take a "
            f"snapshot, or restore a backup"
        )


def fold(database: Database, *, clean: bool = False) -> None:
    """Let go of WAL and journal, then remember that all of the log is in the file (it is, durably).

    In this order: a journal that the next start finds again would be played back, and nothing redone after it.
    """
    disk, path = database.store.disk, database.file_path
    if database.exists:
        remove_sides(disk, path)
    database.base = database.saved_base = database.position
    database.base_pages = database.saved_base_pages = database.page_count
    database.checksums.sync()
    stamp = (NOT_CLEAN, 0)
    if clean:
        stamp = file_stamp(path) if database.exists else (0, 0)
    database.save_meta(stamp)
    if database.exists:
        forget_dropped(disk, database.directory)
    else:
        forget_unlinked(disk, path, database.directory)


def stop(database: Database) -> None:
    """Leave the files so that the next start has nothing to do. Blocking; nobody has the file open any more.

    Raises OSError; then the next start redoes what was not done.
    """
    if database.settled:
        return
    records = database.log
    records.cut_uncounted()
    records.sync_blocking()
    if database.file_failure is not None:
        # The kernel reports a lost write only once (fsync(2)): what went into the file since is written again.
        database.base, database.base_pages = database.saved_base, database.saved_base_pages
    if database.position.txid:
        settle_install(database)
        roll_back(database.store.disk, database.file_path)
        if database.exists:
            redo(database)
        elif database.applied < database.position.txid:
            # A replica that has not come to unlink the file of a dropped database.
            finish_drop(database.store.disk, database.file_path, database.directory, dropped=True)
    records.save_end()
    may_trust = not database.exists and database.file_path.exists()
    fold(database, clean=not may_trust)


def _has_bytes(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
