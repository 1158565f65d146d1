"""How a database that SQLite made outside the log becomes transaction 1 (or the next one after a drop).

Knows that its file is complete and still at that moment: its writer is held, and holds SQLite's locks.
"""

import os
from pathlib import Path
from typing import Final

import structlog

from litereplica.errors import Corrupt
from litereplica.ltx.position import format_txid
from litereplica.sqlite.pages import lock_page, parse_database_header, stored_page_count
from litereplica.store.commit import PendingCommit, log_pages
from litereplica.store.database import Database, Pages, journal_mode_of
from litereplica.store.store import Store

log = structlog.get_logger()

HEADER_BYTES: Final = 100


def is_wal_database(path: Path) -> bool:
    """The file's header says WAL (file format, 1.3.3: both version numbers are 2)."""
    try:
        with path.open("rb") as file:
            first = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return False
    if len(first) < HEADER_BYTES:
        return False
    try:
        return parse_database_header(first).wal
    except Corrupt:
        return False


def whole_pages(path: Path) -> int:
    """Pages of the SQLite database that the file is; 0 when it is none, or not all of one."""
    try:
        with path.open("rb") as file:
            first = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
        return stored_page_count(parse_database_header(first), size)
    except (FileNotFoundError, Corrupt):
        return 0


async def log_file(store: Store, name: str) -> PendingCommit:
    """Write the whole database file, which is complete, into the log as one transaction that does not count yet.

    Raises OSError, Corrupt when the file is no whole database; nothing has changed then.
    """
    disk = store.disk
    descriptor = disk.open(store.file_path(name), os.O_RDONLY)
    try:
        first = disk.pread(descriptor, HEADER_BYTES, 0)
        header = parse_database_header(first)
        page_size = header.page_size
        page_count = stored_page_count(header, os.fstat(descriptor).st_size)
        locked = lock_page(page_size)
        pgnos = [pgno for pgno in range(1, page_count + 1) if pgno != locked]

        def read(start: int, end: int) -> Pages:
            first, last = pgnos[start], pgnos[end - 1]
            data = disk.pread(descriptor, (last - first + 1) * page_size, (first - 1) * page_size)
            return [
                (pgno, data[(pgno - first) * page_size : (pgno - first + 1) * page_size]) for pgno in pgnos[start:end]
            ]

        database = store.databases.get(name) or store.create(name)
        pending = await log_pages(database, pgnos, page_count, page_size, read)
    finally:
        disk.close(descriptor)
    database.journal_mode = journal_mode_of(first)
    log.info("database_adopted", database=name, txid=format_txid(pending.txid), pages=page_count)
    return pending


async def adopt(store: Store, name: str) -> Database:
    """Make the whole database file a transaction. Raises OSError when the log refuses; nothing has changed then."""
    pending = await log_file(store, name)
    pending.count()
    pending.database.file_complete()
    return pending.database
