"""The -wal that a database of a replica must have before anybody can open it.

Knows what SQLite needs to find: a read-only connection cannot make a -wal, and a database in rollback mode is read
through a WAL here only if that is not empty (applier/rollback_mode.py has the rule). Does not know who applies what.
"""

import contextlib
import os
from pathlib import Path

from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, parse_database_header
from litereplica.sqlite.wal import first_wal
from litereplica.store.database import Database
from litereplica.store.disk import Disk


def wal_of(database: Database) -> Path:
    """The backing file of a database's WAL."""
    return database.store.file_path(f"{database.name}-wal")


def ensure_wal(database: Database) -> None:
    """Make what is missing of the -wal of the database's file, if there is one; nobody can open it meanwhile.

    Raises OSError, Corrupt when the file does not begin as a database.
    """
    path = database.file_path
    if not path.exists() or not path.stat().st_size:
        return
    if make_wal(database.store.disk, path, wal_of(database)) and database.settled:
        # A start distrusts what it finds beside a file that was stopped cleanly; this is ours.
        database.unsettle()


def make_wal(disk: Disk, database_file: Path, wal: Path) -> bool:
    """Make ``wal`` for the content of ``database_file`` unless it is there; True when it holds a frame now.

    In rollback mode the frame is page 1 as it is, which changes nothing.
    """
    descriptor = disk.open(database_file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        rollback = parse_database_header(disk.pread(descriptor, DATABASE_HEADER_BYTES, 0)).rollback
        if wal.exists() and (wal.stat().st_size or not rollback):
            return False
        data = b""
        if rollback:
            data = first_wal(lambda offset, count: disk.pread(descriptor, count, offset), size, os.urandom(8))
    finally:
        disk.close(descriptor)
    descriptor = disk.open(wal, os.O_RDWR | os.O_CREAT)
    try:
        if data:
            disk.pwrite(descriptor, data, 0)
    except BaseException:
        # Half of it would be taken for a WAL.
        with contextlib.suppress(OSError):
            disk.truncate(descriptor, 0)
        raise
    finally:
        disk.close(descriptor)
    return bool(data)
