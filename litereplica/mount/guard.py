"""Which SQLite writes here, and what is to be said about it.

Knows that page 1 names the library that wrote last (sqlite.version). Does not know captures or commits: it looks at the
backing file now and then, which is enough for what is said once.
"""

import contextlib
import os
from typing import Final

import structlog

from litereplica.sqlite.pages import is_database
from litereplica.sqlite.version import VERSION_OFFSET, WAL_RESET_ADVICE, has_wal_reset_bug, version_text
from litereplica.store.database import Database

log = structlog.get_logger()

_FIRST_BYTES: Final = VERSION_OFFSET + 4


class VersionGuard:
    """Warns about each version with the WAL-reset bug once a database."""

    __slots__ = ("_looked_at", "_warned")

    def __init__(self) -> None:
        self._looked_at: dict[str, int] = {}
        self._warned: set[tuple[str, int]] = set()

    def look(self, database: Database) -> None:
        """Read the first bytes of a database that has changed since the last look. Quick; for a primary."""
        txid = database.position.txid
        if not database.exists or self._looked_at.get(database.name) == txid:
            return
        self._looked_at[database.name] = txid
        disk = database.store.disk
        # A file that is just going, or a disk that is: others say so.
        with contextlib.suppress(OSError):
            descriptor = disk.open(database.file_path, os.O_RDONLY)
            try:
                first = disk.pread(descriptor, _FIRST_BYTES, 0)
            finally:
                disk.close(descriptor)
            if len(first) == _FIRST_BYTES and is_database(first):
                self._judge(database.name, int.from_bytes(first[VERSION_OFFSET:], "big"))

    def _judge(self, name: str, version: int) -> None:
        if has_wal_reset_bug(version) and (name, version) not in self._warned:
            self._warned.add((name, version))
            log.warning(
                "sqlite_with_wal_reset_bug",
                database=name,
                sqlite=version_text(version),
                advice=f"the application's SQLite is {version_text(version)}: {WAL_RESET_ADVICE}",
            )
