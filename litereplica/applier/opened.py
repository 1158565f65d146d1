"""A database of the mount that the applier has open, and the descriptors that go with it.

Knows how to open one as an ordinary SQLite client, how to make one that is not there yet, and how to close without
side effects. Does not know about records.

The connection stays open so that no application that closes the database is the last one, who would checkpoint and
remove -wal and -shm. Where the applier does not have it open, one is (on a replica the mount keeps the -wal all the
same): nothing that was read of a database before it is opened is still known then.

Closing any descriptor of a file drops every POSIX lock that this process has on it (fcntl(2)), so ours are closed only
after the connection.
"""

import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

from litereplica.applier import holders, locks
from litereplica.applier.rollback_mode import make_first_wal
from litereplica.applier.shared_memory import SharedMemory
from litereplica.applier.turns import Turns, Waits
from litereplica.applier.whole import read_all
from litereplica.errors import Refused, Unavailable
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, DatabaseHeader, parse_database_header
from litereplica.sqlite.shm import WalIndexHeader, lookup, read_header
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES

_BUSY_CODES: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT)


class OpenDatabase:
    """Connection, descriptors and mapping of one database.

    ``gate``: held by whoever wants or has SQLite's WRITE lock (an apply, a TRUNCATE), for as long as that takes.
    ``connection_lock``: held while the connection runs a statement; taken after ``gate`` by who needs both. Neither is
    ever waited for by the apply thread, except in ``close``. Who reads ``memory`` holds ``gate``. ``broken``: SQLite
    met an error on the connection; the next apply opens everything anew. ``page_size`` and ``rollback`` (the database
    is in rollback mode) are those of the newest transaction; they change under ``gate``.
    """

    __slots__ = (
        "_inodes", "broken", "closed", "connection", "connection_lock", "file", "gate", "memory", "page_size", "path",
        "rollback", "sequence", "shm", "wal",
    )  # fmt: skip

    def __init__(self, path: str, connection: sqlite3.Connection, page_size: int, *, rollback: bool) -> None:
        """Take over the connection, which has read once: so -wal and -shm are there, and recovered.

        ``page_size`` and ``rollback`` are the database file's; what the WAL says counts more. Raises OSError, and
        Unavailable while the wal-index is being changed.
        """
        self.path = path
        self.connection = connection
        self.page_size = page_size
        self.rollback = rollback
        self.sequence = 0
        self.broken = False
        self.closed = False
        self.gate = threading.Lock()
        self.connection_lock = threading.Lock()
        self.wal = self.shm = self.file = -1
        try:
            self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self.wal = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
            self.shm = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
            self.memory = SharedMemory(self.shm)
            self._inodes = os.fstat(self.file).st_ino, os.fstat(self.shm).st_ino
        except OSError:
            close_connection(path, connection)
            for descriptor in (self.file, self.wal, self.shm):
                if descriptor >= 0:
                    locks.close(descriptor)
            raise
        try:
            self._read_wal()
        except BaseException:
            self.close()
            raise

    def _read_wal(self) -> None:
        """Learn from the WAL what its newest transaction made of the database."""
        header = read_header(self.memory.blocks[0])
        if header is None:
            raise Unavailable(f"the wal-index of {self.path} is being changed")
        if not header.max_frame:
            return
        self.page_size = header.page_size
        if frame := lookup(self.memory.blocks, 1, header.max_frame):
            offset = WAL_HEADER_BYTES + (frame - 1) * (FRAME_HEADER_BYTES + self.page_size) + FRAME_HEADER_BYTES
            first = read_all(self.wal, DATABASE_HEADER_BYTES, offset)
            if len(first) < DATABASE_HEADER_BYTES:
                # -wal and -shm are of two files of one name: the first was dropped in this instant.
                raise Unavailable(f"{self.path} is being dropped")
            self.rollback = parse_database_header(first).rollback

    @property
    def is_replaced(self) -> bool:
        """Whether the names are other files by now, or none: on a primary nobody tells that a database was dropped.

        Raises OSError when that cannot be told.
        """
        try:
            # In every commit for another node; Path takes twice as long.
            found = os.stat(self.path).st_ino, os.stat(f"{self.path}-shm").st_ino  # noqa: PTH116
        except FileNotFoundError:
            return True
        return self._inodes != found

    def look_at_mode(self) -> None:
        """Learn ``rollback`` anew, once everything is in the database file: applications may have changed it.

        Under ``gate``. Raises OSError, Corrupt.
        """
        if not self.closed:
            self.rollback = parse_database_header(os.pread(self.file, DATABASE_HEADER_BYTES, 0)).rollback

    def show_page_size(self, page_size: int) -> None:
        """The newest transaction has another page size: the connection has to read before it may checkpoint.

        Under ``gate`` and ``connection_lock``. SQLite compares the sizes (wal.c, sqlite3WalCheckpoint) and calls it
        corrupt when they differ. Raises sqlite3.Error.
        """
        self.page_size = page_size
        _read(self.connection)

    def recover(self) -> bool:
        """Let SQLite rebuild the wal-index, as any reader would; False when a lock is in the way or a checkpoint runs.

        Raises sqlite3.Error.
        """
        if not self.connection_lock.acquire(blocking=False):
            return False
        try:
            _read(self.connection)
        except sqlite3.OperationalError as error:
            if is_busy(error):
                return False
            raise
        finally:
            self.connection_lock.release()
        return True

    def close(self) -> None:
        """Close everything and leave the files alone: no checkpoint, -wal and -shm stay."""
        self.connection.interrupt()
        with self.gate, self.connection_lock:
            self._close()

    def retire(self) -> WalIndexHeader | None:
        """What is committed in this instant; no checkpoint of ours comes after it, until ``revive``.

        Nothing is closed: a close of the -wal waits for a write to it that is held (the kernel's fuse_flush takes the
        file's lock), and that write may wait for what is told here. None, and nothing has changed, while the wal-index
        is being changed.
        """
        self.connection.interrupt()
        with self.gate, self.connection_lock:
            header = read_header(self.memory.blocks[0])
            self.closed = self.closed or header is not None
            return header

    def revive(self) -> None:
        """It is used again, under the WRITE lock."""
        self.closed = False

    def _close(self) -> None:
        self.closed = True
        self.memory.close()
        close_connection(self.path, self.connection)
        for descriptor in (self.file, self.wal, self.shm):
            locks.close(descriptor)


def is_busy(error: Exception) -> bool:
    """Whether a lock was in the way, or we interrupted it ourselves, and asking again may succeed."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _BUSY_CODES


def prepare(path: str, waits: Waits) -> Turns[None]:
    """See to it that the database at ``path`` can be opened in WAL mode, whatever its header says.

    Raises OSError, sqlite3.Error, Corrupt, Refused for a file of a format that is not known, Unavailable when
    applications use it in rollback mode for longer than ``waits`` allows.
    """
    header = _read_header(path)
    if header is None or header.wal:
        return
    if not header.rollback:
        versions = f"{header.write_version} and {header.read_version}"
        raise Refused(f"{path} has the format versions {versions}, known are 1 (rollback mode) and 2 (WAL mode)")
    if not has_bytes(f"{path}-wal"):
        yield from make_first_wal(path, waits)


def open_database(path: str, page_size: int, first_page: bytes | None) -> OpenDatabase:
    """Open the database at ``path``, once ``prepare`` is done.

    Where no file is, or an empty one, an empty database in WAL mode is made first, with pages of ``page_size`` bytes
    and the text encoding that ``first_page``, the page 1 to come, has. Raises OSError, sqlite3.Error, Corrupt, and
    Unavailable when a lock is in the way.
    """
    return _connect(path, _read_header(path), page_size, first_page)


def uses_wal(path: str) -> bool:
    """Whether SQLite would open the database at ``path`` in WAL mode; to be asked while there is no connection to it.

    Raises OSError, Corrupt.
    """
    if has_bytes(f"{path}-wal") and has_bytes(path):
        return True
    header = _read_header(path)
    return header is not None and header.wal


def open_as_it_is(path: str) -> OpenDatabase | None:
    """Open the database at ``path`` if it is in WAL mode, and change nothing; raises as ``open_database``."""
    header = _read_header(path) if uses_wal(path) else None
    if header is None:
        return None
    try:
        return _connect(path, header, header.page_size, None)
    except FileNotFoundError:
        return None  # page 1 was a dead writer's who was about to change the mode, and SQLite has rolled it back


def open_wal(path: str) -> OpenDatabase | None:
    """Open the database at ``path`` if its -wal holds anything, and make nothing; raises as ``open_database``."""
    if not has_bytes(f"{path}-wal") or not has_bytes(path):
        return None
    header = _read_header(path)
    try:
        return None if header is None else _connect(path, header, header.page_size, None)
    except FileNotFoundError:
        return None  # applications of what is the primary by now have folded and removed it


def _connect(path: str, header: DatabaseHeader | None, page_size: int, first_page: bytes | None) -> OpenDatabase:
    # A file that was there and is gone again is not made anew.
    uri = f"{Path(path).as_uri()}?mode={'rwc' if header is None else 'rw'}"
    try:
        connection = sqlite3.connect(
            uri, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=4, uri=True
        )
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN and not has_bytes(path):
            raise Unavailable(f"{path} is being dropped") from error
        raise
    try:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        if header is None:
            _create(connection, page_size, first_page)
        # A checkpoint would sync -wal and file: the daemon makes the log durable before it takes a page, and the file
        # when its base advances. And an fsync of the -wal waits for a commit that is held there (fuse_fsync takes the
        # kernel's lock on the file), which may wait for a promotion, which waits for us.
        connection.execute("PRAGMA synchronous=OFF")
        # It reads the schema and nothing else. Two pages is the most for which SQLite allocates none ahead (pcache1.c);
        # it did for the default size, and gives that back only when asked.
        connection.execute("PRAGMA cache_size=2")
        connection.execute("PRAGMA shrink_memory")
        _read(connection)
        if header is None:
            return OpenDatabase(path, connection, page_size, rollback=False)
        return OpenDatabase(path, connection, header.page_size, rollback=header.rollback)
    except sqlite3.OperationalError as error:
        close_connection(path, connection)
        if is_busy(error):
            reason = f"{path} is locked while it is being opened ({error}) by {holders.writer(path)}"
            raise Unavailable(reason) from error
        raise
    except BaseException:
        close_connection(path, connection)
        raise


def close_connection(path: str, connection: sqlite3.Connection) -> None:
    """Close a connection of this process, its last to the database, and leave the files alone.

    The last closer checkpoints, then removes -wal and -shm by name, which may be another database's by now. A reader's
    lock on the database file keeps SQLite from believing that it is the last.
    """
    reader = -1
    with contextlib.suppress(OSError):
        reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        locks.try_shared(reader, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)
    with contextlib.suppress(sqlite3.Error):
        connection.close()
    if reader >= 0:
        locks.close(reader)


def _read_header(path: str) -> DatabaseHeader | None:
    """None without a file or with an empty one. Before there is a connection: the close here would drop its locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return None
    try:
        data = os.pread(descriptor, DATABASE_HEADER_BYTES, 0)
    finally:
        locks.close(descriptor)
    return parse_database_header(data) if data else None


def has_bytes(path: str) -> bool:
    """Whether there is such a file with anything in it; SQLite, too, takes an empty -wal for none."""
    try:
        return Path(path).stat().st_size > 0
    except FileNotFoundError:
        return False


def _create(connection: sqlite3.Connection, page_size: int, first_page: bytes | None) -> None:
    """Make page 1 of an empty database in WAL mode.

    Nothing has to survive a crash here (the log has everything), so neither a journal nor an fsync is spent on it.
    """
    encoding = (parse_database_header(first_page).text_encoding if first_page else "") or "UTF-8"
    for setting in (
        "synchronous=OFF",
        "journal_mode=MEMORY",
        f"page_size={page_size}",
        f"encoding='{encoding}'",
        "journal_mode=WAL",
    ):
        connection.execute(f"PRAGMA {setting}").fetchall()


def _read(connection: sqlite3.Connection) -> None:
    """The smallest read transaction; it needs page 1, not the schema, whose size is the application's choice."""
    connection.execute("PRAGMA schema_version").fetchall()
