"""The log's pages into the database file, and page checksums out of it.

Knows page images and sizes: redo is idempotent, and the file ends as the last record left it. Does not know which
records are due, or what is done about a mismatch: recovery does.
"""

import os
from typing import Final

from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import PageBlock
from litereplica.ltx.format import RecordHeader
from litereplica.sqlite.pages import lock_page
from litereplica.store.apply import span_bytes
from litereplica.store.database import Database
from litereplica.store.folded import decode_all
from litereplica.store.log import Span

# Bytes handed to the decoder at once, and read at once when a whole file is summed up: bounded memory.
CHUNK_BYTES: Final = 1024 * 1024
_SPAN_BYTES: Final = 8 * CHUNK_BYTES
_SPAN_RECORDS: Final = 4096


def redo(database: Database) -> None:
    """Write the records after ``base`` into the file and its checksums, and make the file durable.

    The log is durable already and every record after ``base`` was verified. Raises Corrupt when the file is missing
    although it should hold ``base``; nothing is changed then.
    """
    assert database.exists
    disk, path, records = database.store.disk, database.file_path, database.log
    after, empty = database.base.txid, database.base_pages == 0
    if not path.exists() and not empty:
        after, empty = _last_drop(database), True
    disk.make_directories(path.parent)
    descriptor = disk.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if empty:
            disk.truncate(descriptor, 0)
            database.checksums.clear_from(1)
        page_size = 0
        while (span := records.spans(after, _SPAN_BYTES, _SPAN_RECORDS)) is not None:
            page_size = _redo_span(database, descriptor, span, page_size)
            after = span.last_txid
        disk.truncate(descriptor, database.page_count * database.page_size)
        disk.fdatasync(descriptor)
    finally:
        disk.close(descriptor)
    disk.fsync_directory(path.parent)
    database.checksums.clear_from(database.page_count + 1)


def _last_drop(database: Database) -> int:
    """TXID after which the records alone make the whole file."""
    records = database.log
    for txid in range(records.last_txid, database.base.txid, -1):
        if records.summary(txid).header.commit == 0:
            return txid
    raise Corrupt(
        f"{database.file_path} is missing and the log does not go back to its beginning: restore the file, or move "
        f"{database.directory} aside and let this node take a snapshot"
    )


def _redo_span(database: Database, descriptor: int, span: Span, page_size: int) -> int:
    """Redo the records of ``span``, the first ones if ``page_size`` is 0, else that of those before; the newest one."""
    disk, checksums = database.store.disk, database.checksums
    pages = 0
    try:
        for event in decode_all(span_bytes(disk, span)):
            if isinstance(event, RecordHeader):
                if event.page_size != page_size and event.holds_every_page:
                    # Another page size (the first record may bring it): the file and the numbers of its pages begin
                    # anew.
                    disk.truncate(descriptor, 0)
                    checksums.clear_from(1)
                elif event.commit < pages or event.commit == 0:
                    disk.truncate(descriptor, event.commit * event.page_size)
                    checksums.clear_from(event.commit + 1)
                page_size, pages = event.page_size, event.commit
                checksums.reserve(pages)
            elif isinstance(event, PageBlock):
                table = checksums.table
                for pgno, page in event.pages:
                    disk.pwrite(descriptor, page, (pgno - 1) * page_size)
                    table[pgno - 1] = page_checksum(pgno, page)
    except Corrupt as error:
        raise Corrupt(
            f"the log of {database.name} is damaged in {span.path} between {span.first_txid:016x} and "
            f"{span.last_txid:016x}: {error.message}"
        ) from None
    return page_size


def sum_up(database: Database) -> None:
    """Compute every page's checksum from the database file."""
    disk, checksums = database.store.disk, database.checksums
    page_size, page_count = database.page_size, database.page_count
    checksums.reserve(page_count)
    checksums.clear_from(1)
    if not page_count:
        return
    descriptor = disk.open(database.file_path, os.O_RDONLY)
    try:
        pages = max(1, CHUNK_BYTES // page_size)
        for first in range(0, page_count, pages):
            data = disk.pread(descriptor, min(pages, page_count - first) * page_size, first * page_size)
            _set_entries(checksums.table, first + 1, data, page_size)
    finally:
        disk.close(descriptor)


def _set_entries(table: memoryview, first_pgno: int, data: bytes, page_size: int) -> None:
    locked = lock_page(page_size)
    view = memoryview(data)
    for number in range(len(data) // page_size):
        pgno = first_pgno + number
        if pgno != locked:
            table[pgno - 1] = page_checksum(pgno, view[number * page_size : (number + 1) * page_size])
