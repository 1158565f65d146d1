"""How a database that SQLite made outside the log becomes transaction 1 (or the next one after a drop).

Knows that its file is complete and still at that moment: its writer is held, and holds SQLite's locks.
"""

import os
from pathlib import Path
from typing import Final

import structlog

from litereplica.errors import Corrupt
from litereplica.sqlite.pages import lock_page, parse_database_header
from litereplica.store.database import Database, Pages
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


async def adopt(store: Store, name: str) -> Database:
    """Log the whole database file as one transaction. Raises OSError when the log refuses; nothing has changed then."""
    disk = store.disk
    descriptor = disk.open(store.file_path(name), os.O_RDONLY)
    try:
        page_size = parse_database_header(disk.pread(descriptor, HEADER_BYTES, 0)).page_size
        page_count = os.fstat(descriptor).st_size // page_size
        locked = lock_page(page_size)
        pgnos = [pgno for pgno in range(1, page_count + 1) if pgno != locked]

        def read(start: int, end: int) -> Pages:
            first, last = pgnos[start], pgnos[end - 1]
            data = disk.pread(descriptor, (last - first + 1) * page_size, (first - 1) * page_size)
            return [
                (pgno, data[(pgno - first) * page_size : (pgno - first + 1) * page_size]) for pgno in pgnos[start:end]
            ]

        database = store.databases.get(name) or store.create(name)
        database.set_page_size(page_size)
        await database.commit_stream(pgnos, page_count, read, lambda: None)
        database.wal_restarted()
    finally:
        disk.close(descriptor)
    log.info("database_adopted", database=name, position=str(database.position), pages=page_count)
    return database
