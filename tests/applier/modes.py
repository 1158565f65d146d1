"""A primary in any journal mode and of any page size, and readers of the replica with either SQLite.

Knows how to turn what a transaction changed in the database file into records. Does not know the store.
"""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litereplica.applier.protocol import Apply
from litereplica.ltx.encode import RecordEncoder, block_capacity
from litereplica.ltx.format import RecordHeader
from litereplica.sqlite.pages import lock_page, parse_database_header
from tests.applier.support import Client


class AnyPrimary:
    """A plain database; ``change`` answers the span of the record that its statements make together."""

    def __init__(self, folder: Path, name: str = "app.db", *, mode: str = "DELETE", page_size: int = 4096) -> None:
        self.name = name
        self.path = folder / "primary" / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.segment = folder / f"{name}.ltx"
        self.txid = 0
        self.page_size = 0
        self._pages: dict[int, bytes] = {}
        self._length = 0
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        for setting in (f"page_size={page_size}", "synchronous=OFF"):
            self.connection.execute(f"PRAGMA {setting}")
        self.set_mode(mode)

    def set_mode(self, mode: str) -> None:
        """Set the journal mode; what that changes is part of the next record."""
        assert self.connection.execute(f"PRAGMA journal_mode={mode}").fetchall() == [(mode.lower(),)]

    def resize(self, page_size: int) -> Apply:
        """VACUUM into another page size."""
        self.connection.execute(f"PRAGMA page_size={page_size}")
        return self.change("VACUUM")

    def change(self, *statements: str) -> Apply:
        """Run them, and log what differs in the file now."""
        for each in statements:
            self.connection.execute(each).fetchall()
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        data = self.path.read_bytes()
        header = parse_database_header(data)
        size = header.page_size
        if size != self.page_size:
            self.page_size, self._pages = size, {}
        skipped = lock_page(size)
        now = {
            pgno: data[(pgno - 1) * size : pgno * size] for pgno in range(1, len(data) // size + 1) if pgno != skipped
        }
        changed = {pgno: page for pgno, page in now.items() if self._pages.get(pgno) != page} or {1: now[1]}
        self._pages = now
        return self._log(changed, len(data) // size)

    def _log(self, pages: dict[int, bytes], commit: int) -> Apply:
        self.txid += 1
        header = RecordHeader(self.name, self.page_size, commit, len(pages), self.txid, self.txid, 1, "a", 0, 0, "none")
        encoder = RecordEncoder(header)
        ordered = sorted(pages.items())
        capacity = block_capacity(self.page_size)
        offset = self._length
        with self.segment.open("ab") as log:
            log.write(encoder.begin())
            for start in range(0, len(ordered), capacity):
                log.write(encoder.block(ordered[start : start + capacity]))
            log.write(encoder.end(0))
            self._length = log.tell()
        return Apply(self.name, str(self.segment), offset, self._length - offset, self.txid, self.txid)

    def rows(self, sql: str) -> list[Any]:
        return self.connection.execute(sql).fetchall()


_READER = """
import sys
LIBRARY = sys.argv[2]
uri = "file:" + sys.argv[1] + "?mode=ro"
if LIBRARY == "apsw":
    import apsw
    Error = apsw.Error
    connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
else:
    import sqlite3
    Error = sqlite3.Error
    connection = sqlite3.connect(uri, isolation_level=None, timeout=0, uri=True)
print("up", flush=True)
for line in sys.stdin:
    try:
        print(repr(connection.execute(line).fetchall()), flush=True)
    except Error as error:
        print(repr(str(error)), flush=True)
"""

LIBRARIES = ("sqlite3", "apsw")
"""The system's SQLite (3.40 and later) and a newer one that brings its own."""


class Reader(Client):
    """An application that reads, as all do on a replica: a process of its own."""

    def __init__(self, path: Path, library: str = "sqlite3") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(path), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "up"


@contextlib.contextmanager
def reader(path: Path, library: str = "sqlite3") -> Iterator[Reader]:
    """A reader that ends with the block."""
    found = Reader(path, library)
    try:
        yield found
    finally:
        found.close()


def header_mode(path: Path) -> str:
    """What the file's own page 1 says."""
    return "rollback" if parse_database_header(path.read_bytes()[:100]).rollback else "wal"
