"""How a database that SQLite made outside the log becomes transaction 1 (or the next one after a drop).

Knows that its file is complete and still at that moment: its writer is held, and holds SQLite's locks.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from litereplica.errors import Corrupt
from litereplica.ltx.format import Origin
from litereplica.ltx.position import format_txid
from litereplica.sqlite.pages import lock_page, parse_database_header, stored_page_count
from litereplica.store.commit import PendingCommit, log_pages
from litereplica.store.database import Database, Pages, journal_mode_of
from litereplica.store.disk import Disk
from litereplica.store.local import LocalTransaction, record_local
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


class _WholeFile:
    """A database file that is complete and still: its pages, as a transaction that makes all of them."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        """Raises Corrupt when the file is no whole database."""
        first = disk.pread(descriptor, HEADER_BYTES, 0)
        header = parse_database_header(first)
        self._disk = disk
        self._descriptor = descriptor
        self.page_size = header.page_size
        self.page_count = stored_page_count(header, os.fstat(descriptor).st_size)
        self.journal_mode = journal_mode_of(first)
        locked = lock_page(self.page_size)
        self.pgnos = [pgno for pgno in range(1, self.page_count + 1) if pgno != locked]

    def read(self, start: int, end: int) -> Pages:
        """(pgno, page) of ``pgnos[start:end]``."""
        size = self.page_size
        first, last = self.pgnos[start], self.pgnos[end - 1]
        data = self._disk.pread(self._descriptor, (last - first + 1) * size, (first - 1) * size)
        return [(pgno, data[(pgno - first) * size : (pgno - first + 1) * size]) for pgno in self.pgnos[start:end]]


async def log_file(store: Store, name: str, origin: Origin | None = None) -> PendingCommit:
    """Write the whole database file, which is complete, into the log as one transaction that does not count yet.

    Raises OSError, Corrupt when the file is no whole database; nothing has changed then.
    """
    descriptor = store.disk.open(store.file_path(name), os.O_RDONLY)
    try:
        file = _WholeFile(store.disk, descriptor)
        database = store.databases.get(name) or store.create(name)
        pending = await log_pages(database, file.pgnos, file.page_count, file.page_size, file.read, origin)
    finally:
        store.disk.close(descriptor)
    database.journal_mode = file.journal_mode
    log.info("database_adopted", database=name, txid=format_txid(pending.txid), pages=file.page_count)
    return pending


async def record_file(store: Store, name: str, origin: Origin) -> LocalTransaction:
    """The same on a node that is not the primary: a record for another one to commit.

    Raises Stale when the database moved on meanwhile, OSError, Corrupt when the file is no whole database; nothing is
    left then but, for a name that is new, a database at position zero.
    """
    descriptor = store.disk.open(store.file_path(name), os.O_RDONLY)
    try:
        file = _WholeFile(store.disk, descriptor)
        database = store.databases.get(name) or store.create(name)
        return await record_local(database, file.pgnos, file.page_count, file.page_size, file.read, origin)
    finally:
        store.disk.close(descriptor)


async def adopt(
    store: Store, name: str, origin: Origin | None = None, *, allow: Callable[[], object] = lambda: None
) -> Database:
    """Make the whole database file a transaction, unless ``allow`` raises once it is in the log, which takes a while.

    Raises OSError when the log refuses, or what ``allow`` raises; nothing has changed then.
    """
    pending = await log_file(store, name, origin)
    try:
        allow()
    except BaseException:
        pending.cut()
        raise
    pending.count()
    pending.database.file_complete()
    return pending.database
