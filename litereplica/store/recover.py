"""The way back after a stop, clean or not.

Knows the rule: the log is ahead of or equal to the files. The WAL file is never trusted; the records after the last
position known to be wholly in the database file are written into it again (page images: redo is idempotent), then the
rolling checksum is compared. Does not know how the log's own torn tail is dropped (store.log).

Nothing that is damaged is changed or deleted: Corrupt says what to do.
"""

import contextlib
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock, RecordDecoder, RecordHeader
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import lock_page
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.log import Log, Span
from litereplica.store.meta import Meta, load_meta, save_meta

log = structlog.get_logger()

# Bytes handed to the decoder at once, and read at once when a whole file is summed up: bounded memory.
CHUNK_BYTES: Final = 1024 * 1024
_SPAN_BYTES: Final = 8 * CHUNK_BYTES
_SPAN_RECORDS: Final = 4096


def recover(database: Database) -> None:
    """Bring position, page checksums and the database file to the end of the log. Blocking; before the mount."""
    store = database.store
    meta = load_meta(database.directory)
    if meta.database != database.name:
        message = f"{database.directory} belongs to the database {meta.database!r}: move it back to its own folder name"
        raise Corrupt(message)
    database.set_page_size(meta.page_size)
    _finish_install(database, meta)
    database.log = Log.open(store.disk, store.calls, database.directory, meta.base.txid + 1)
    database.base = database.saved_base = meta.base
    database.epoch = meta.epoch
    _take_tail(database, meta)
    if not _is_clean(database, meta):
        _redo(database)
        _check(database)
        _fold(database)
    elif database.checksums.xor_range(1, database.page_count) != database.position.checksum:
        _check(database)
    database.applied = database.position.txid
    if meta.clean is not None:
        # From now on the files change: the next start must not take them for the state of a clean stop.
        save_meta(store.disk, database.directory, replace(meta, clean=None, file_bytes=0, base=database.base,
                                                          base_pages=database.page_count))


def install_path(directory: Path, position: Position) -> Path:
    """Where the pages of a snapshot wait until they are the database file."""
    return directory / f"install-{position.txid:016x}-{position.checksum:016x}"


def move_install(disk: Disk, database: Database, source: Path) -> None:
    """Put a snapshot's pages in the place of the database file; nobody has it open."""
    path = database.file_path
    if database.exists:
        disk.make_directories(path.parent)
        disk.rename(source, path)
    else:
        disk.unlink(source)
        if path.exists():
            disk.unlink(path)
    if wal_path(path).exists():
        disk.unlink(wal_path(path))
    if path.parent.exists():
        disk.fsync_directory(path.parent)
    database.pending_install = None


def _finish_install(database: Database, meta: Meta) -> None:
    """After a crash: a snapshot that the meta file already stands for is put in place, an older one is dropped."""
    for entry in sorted(database.directory.iterdir()):
        if entry.name.startswith("install-"):
            if entry == install_path(database.directory, meta.base):
                database.page_count = meta.base_pages
                move_install(database.store.disk, database, entry)
            else:
                database.store.disk.unlink(entry)


def _take_tail(database: Database, meta: Meta) -> None:
    records = database.log
    if records.last_txid < records.first_txid or records.last_txid < meta.base.txid:
        if records.last_txid >= records.first_txid:
            message = f"the log of {database.name} ends at {records.last_txid:016x}, but {meta.base.txid:016x} was durable: restore the newest segment in {database.directory}, or move the folder aside and let this node take a snapshot"
            raise Corrupt(message)
        database.position = meta.base
        database.page_count = meta.base_pages
        return
    if records.first_txid > meta.base.txid + 1:
        message = f"the log of {database.name} begins at {records.first_txid:016x}, after {meta.base.txid:016x} that the file is known to hold: restore the missing segments in {database.directory}, or move the folder aside and let this node take a snapshot"
        raise Corrupt(message)
    tail = records.summary(records.last_txid)
    database.position = Position(tail.header.max_txid, tail.trailer.post_checksum)
    database.page_count = tail.header.commit
    database.timestamp_ms = tail.header.timestamp_ms
    database.epoch = tail.header.epoch
    if tail.header.page_size != database.page_size:
        database.set_page_size(tail.header.page_size)


def _is_clean(database: Database, meta: Meta) -> bool:
    """The files are as a clean stop left them: the right size, no WAL, no journal."""
    if meta.clean is None or meta.clean != database.position:
        return False
    path = database.file_path
    if not database.exists:
        return not path.exists()
    return path.exists() and path.stat().st_size == meta.file_bytes and not _has_bytes(wal_path(path))


def wal_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _has_bytes(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _redo(database: Database) -> None:
    disk = database.store.disk
    path = database.file_path
    if not database.exists:
        if path.exists():
            disk.unlink(path)
        return
    disk.make_directories(path.parent)
    if not path.exists() and database.base.txid and database.log.last_txid > database.base.txid:
        message = f"{path} is missing and the log does not go back to its beginning: restore the file, or move {database.directory} aside and let this node take a snapshot"
        raise Corrupt(message)
    descriptor = disk.open(path, os.O_RDWR | os.O_CREAT)
    try:
        after = database.base.txid
        while (span := database.log.spans(after, _SPAN_BYTES, _SPAN_RECORDS)) is not None:
            _redo_span(database, descriptor, span)
            after = span.last_txid
        disk.truncate(descriptor, database.page_count * database.page_size)
        disk.fdatasync(descriptor)
    finally:
        disk.close(descriptor)
    database.checksums.reserve(database.page_count)
    database.checksums.clear_from(database.page_count + 1, 1 << 40)


def _redo_span(database: Database, descriptor: int, span: Span) -> None:
    disk = database.store.disk
    source = disk.open(span.path, os.O_RDONLY)
    try:
        apply_records(database, descriptor, source, span)
    except Corrupt as error:
        message = f"the log of {database.name} is damaged in {span.path} between {span.first_txid:016x} and {span.last_txid:016x}: {error.message}"
        raise Corrupt(message) from None
    finally:
        disk.close(source)


def apply_records(database: Database, descriptor: int, source: int, span: Span) -> None:
    """Write a span's pages into the database file ``descriptor`` and their checksums into the array."""
    disk = database.store.disk
    decoder = RecordDecoder()
    page_size = 0
    for offset in range(0, span.length, CHUNK_BYTES):
        data = disk.pread(source, min(CHUNK_BYTES, span.length - offset), span.offset + offset)
        for event in decoder.feed(data):
            if isinstance(event, RecordHeader):
                page_size = event.page_size
            elif isinstance(event, PageBlock):
                checksums = database.checksums
                checksums.reserve(event.pages[-1][0])
                for pgno, page in event.pages:
                    disk.pwrite(descriptor, page, (pgno - 1) * page_size)
                    checksums.table[pgno - 1] = page_checksum(pgno, page)


def _check(database: Database) -> None:
    """Compare the rolling checksum; when the array was lost, sum the file up."""
    if database.checksums.xor_range(1, database.page_count) == database.position.checksum:
        return
    log.warning("page_checksums_rebuilt", database=database.name)
    sum_up(database)
    found = database.checksums.xor_range(1, database.page_count)
    if found != database.position.checksum:
        message = f"{database.file_path} does not hold what its log says ({found:016x} instead of {database.position.checksum:016x} at {database.position.txid:016x}): keep a copy, then move it and {database.directory} aside and let this node take a snapshot, or restore a backup"
        raise Corrupt(message)


def sum_up(database: Database) -> None:
    """Compute every page's checksum from the database file. Raises Corrupt when the file is too short."""
    disk = database.store.disk
    page_size, page_count = database.page_size, database.page_count
    checksums = database.checksums
    checksums.reserve(page_count)
    checksums.clear_from(1, 1 << 40)
    if not page_count:
        return
    descriptor = disk.open(database.file_path, os.O_RDONLY)
    try:
        pages = max(1, CHUNK_BYTES // page_size)
        for first in range(0, page_count, pages):
            data = disk.pread(descriptor, min(pages, page_count - first) * page_size, first * page_size)
            set_entries(checksums.table, first + 1, data, page_size)
    finally:
        disk.close(descriptor)


def set_entries(table: memoryview, first_pgno: int, data: bytes, page_size: int) -> None:
    """Store the checksums of consecutive whole pages."""
    locked = lock_page(page_size)
    view = memoryview(data)
    for number in range(len(data) // page_size):
        pgno = first_pgno + number
        if pgno != locked:
            table[pgno - 1] = page_checksum(pgno, view[number * page_size : (number + 1) * page_size])


def _fold(database: Database) -> None:
    """All of the log is in the file: remember that, then let go of the WAL."""
    database.base = database.saved_base = database.position
    store = database.store
    database.log.sync_blocking()
    database.checksums.flush()
    database.save_meta()
    path = wal_path(database.file_path)
    if path.exists():
        store.disk.unlink(path)
        store.disk.fsync_directory(path.parent)


def settle_foreign(path: Path) -> None:
    """A database file that no log knows: let SQLite itself roll back its journal or fold its WAL in.

    Raises Corrupt when SQLite cannot read it; nothing is deleted.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except sqlite3.DatabaseError as error:
            message = f"{path} cannot be read by SQLite ({error}): move it out of the data directory, or repair it"
            raise Corrupt(message) from None
