"""The data directory as a whole: who holds it, which databases are in it, who listens to their changes.

Knows the layout (docs/formats.md, "Data directory"). Does not know roles, mounts or sockets.
"""

import contextlib
import fcntl
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog
import xxhash

from litereplica.errors import Corrupt, Refused
from litereplica.ltx.format import database_name_problem
from litereplica.ltx.position import Position
from litereplica.sqlite.pages import is_database
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.log import SUFFIX
from litereplica.store.meta import META_NAME, Meta, load_meta, save_meta
from litereplica.store.recover import install_path, move_install, recover, settle_foreign, wal_path
from litereplica.store.segment import INDEX_SUFFIX
from litereplica.store.sync import BlockingCalls

log = structlog.get_logger()

FORMAT_VERSION: Final = 1
FORMAT_LINE: Final = "litereplica data directory, format "
# A folder name on Linux has at most 255 bytes; longer database names are cut and made unique by a hash.
FOLDER_LIMIT_BYTES: Final = 200
SIDE_SUFFIXES: Final = ("-wal", "-shm", "-journal")
Listener = Callable[[Database], None]


class Store:
    """All databases of this node. ``Store.open`` takes the directory's lock; ``close`` gives it back."""

    def __init__(self, root: Path, disk: Disk, node: str, compression: str) -> None:
        self.root = root
        self.disk = disk
        self.node = node
        self.compression = compression
        self.epoch = 1
        self.calls = BlockingCalls()
        self.databases: dict[str, Database] = {}
        self.listeners: list[Listener] = []
        self._lock = -1

    # -- start and stop --------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path, disk: Disk, node: str, compression: str = "none") -> "Store":
        """Lock the directory, check its version, recover every database. Blocking; before the mount.

        Raises Refused (in use, newer version), Corrupt (damaged log or file, named), OSError.
        """
        store = cls(root, disk, node, compression)
        try:
            disk.make_directories(root)
        except OSError as error:
            message = f"the data directory {root} cannot be made ({error.strerror}): set data.dir to a folder that this user may write"
            raise Refused(message) from None
        store._take_lock()
        try:
            store._check_format()
            for name in ("files", "db", "incoming", "diverged"):
                disk.make_directories(root / name)
            store._recover_all()
        except BaseException:
            store.close()
            raise
        return store

    def _take_lock(self) -> None:
        path = self.root / "lock"
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            message = f"the data directory {self.root} cannot be used ({error.strerror}): set data.dir to a folder that this user may write"
            raise Refused(message) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "another process"
            os.close(self._lock)
            self._lock = -1
            message = f"the data directory {self.root} is in use by {owner}: stop that node, or give this one its own data.dir"
            raise Refused(message) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()}\n".encode(), 0)

    def _check_format(self) -> None:
        path = self.root / "format"
        if not path.exists():
            if (self.root / "db").exists() or (self.root / "files").exists():
                message = f"{path} is missing, so {self.root} is no data directory of ours or it is damaged: set data.dir to an empty folder, or restore the file"
                raise Corrupt(message)
            self.disk.write_file(path, f"{FORMAT_LINE}{FORMAT_VERSION}\n".encode())
            return
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        number = text.removeprefix(FORMAT_LINE)
        if not text.startswith(FORMAT_LINE) or not number.isdigit():
            message = f"{path} is damaged ({text[:60]!r}): restore it, or set data.dir to an empty folder"
            raise Corrupt(message)
        if int(number) > FORMAT_VERSION:
            message = f"the data directory {self.root} was written by a newer version (format {number}, this one knows {FORMAT_VERSION}): run the newer litereplica"
            raise Refused(message)

    def _recover_all(self) -> None:
        folders = self.root / "db"
        for directory in sorted(folders.iterdir()):
            if not (directory / META_NAME).exists():
                self._leave_unfinished(directory)
                continue
            name = load_meta(directory).database
            database = Database(self, name, directory)
            self.databases[name] = database
            recover(database)
        self._adopt_foreign()

    def _leave_unfinished(self, directory: Path) -> None:
        """A folder whose database never got its first meta file: empty, or something that is not ours."""
        known = {"checksums", META_NAME + ".new"}
        if {entry.name for entry in directory.iterdir()} <= known:
            for entry in directory.iterdir():
                self.disk.unlink(entry)
            self.disk.rmdir(directory)
        else:
            log.warning("unknown_folder_left_alone", path=str(directory))

    def _adopt_foreign(self) -> None:
        """Settle database files without a log (a crash before their first transaction was logged)."""
        for path in sorted((self.root / "files").rglob("*")):
            name = str(path.relative_to(self.root / "files"))
            if not path.is_file() or name.endswith(SIDE_SUFFIXES):
                continue
            database = self.databases.get(name)
            if database is not None and database.exists:
                continue
            with path.open("rb") as file:
                first = file.read(100)
            if not first:
                self.disk.unlink(path)
            elif is_database(first):
                settle_foreign(path)

    def stop(self) -> None:
        """Make everything durable and remember that the stop was clean. Blocking; after the unmount."""
        for database in self.databases.values():
            database.log.sync_blocking()
            self._stop_database(database)

    def _stop_database(self, database: Database) -> None:
        path = database.file_path
        if database.base != database.position or (wal_path(path).exists() and wal_path(path).stat().st_size):
            # The WAL still holds transactions: the next start redoes them from the log.
            database.save_meta()
            return
        if path.exists():
            descriptor = self.disk.open(path)
            try:
                self.disk.fdatasync(descriptor)
            finally:
                self.disk.close(descriptor)
        database.checksums.flush()
        database.saved_base = database.base
        database.save_meta(clean=True)

    def close(self) -> None:
        """Give the directory back."""
        for database in self.databases.values():
            database.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- databases -------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Database | None:
        return self.databases.get(name)

    def file_path(self, name: str) -> Path:
        """The backing file of a name in the mount."""
        return self.root / "files" / name

    @staticmethod
    def name_problem(name: str) -> str | None:
        """Why ``name`` cannot be a database's, or None."""
        if name.endswith(SIDE_SUFFIXES):
            return "the name is that of a side file"
        if Path(name).name.startswith(".fuse_hidden"):
            return "the name is one of the kernel's"
        return database_name_problem(name)

    def create(self, name: str, page_size: int = 0) -> Database:
        """A database at position zero, without a file. Raises Refused for a name that cannot be one, OSError."""
        problem = self.name_problem(name)
        if problem is not None:
            message = f"{name!r} cannot be a database's name: {problem}"
            raise Refused(message)
        assert name not in self.databases
        directory = self.root / "db" / folder_name(name)
        self.disk.make_directories(directory)
        database = Database(self, name, directory)
        if page_size:
            database.set_page_size(page_size)
        save_meta(self.disk, directory, Meta(name, page_size, Position.ZERO, 0, self.epoch))
        self.databases[name] = database
        return database

    async def advance_base(self, database: Database) -> None:
        """Make it durable that the database file holds everything up to ``database.base``."""
        base = database.base
        if base == database.saved_base:
            return
        path = database.file_path
        await database.log.sync()
        if path.exists():
            descriptor = self.disk.open(path)
            try:
                await self.calls.run(lambda: self.disk.fdatasync(descriptor))
            finally:
                self.disk.close(descriptor)
        database.saved_base = base
        database.save_meta()

    async def maintain(self, age_s: float, size_bytes: int) -> None:
        """Retention, once over all databases."""
        for database in list(self.databases.values()):
            if database.log.last_txid > database.saved_base.txid:
                await self.advance_base(database)
            removed = database.log.trim(database.saved_base.txid, age_s, size_bytes)
            if removed:
                log.info("log_trimmed", database=database.name, removed_bytes=removed,
                         first_txid=f"{database.log.first_txid:016x}")

    # -- a whole new content ---------------------------------------------------------------------------------------

    def install(  # noqa: PLR0913  the parts of one snapshot
        self, name: str, pages_file: Path, page_size: int, page_count: int, position: Position,
        checksums: "array[int]", epoch: int, timestamp_ms: int,
    ) -> Database:
        """A finished snapshot becomes the database ``name``; ``pages_file`` has its pages, already durable.

        Where readers may have the old content open, ``pending_install`` says that the applier has to write the new one
        over it; else the file is in place when this returns. After a crash in between, ``recover`` puts it in place.
        """
        assert len(checksums) == page_count
        database = self.databases.get(name)
        if database is None:
            database = self.create(name, page_size)
        target = install_path(database.directory, position)
        self.disk.rename(pages_file, target)
        self.disk.fsync_directory(target.parent)
        in_use = database.exists and page_count > 0 and database.page_size == page_size
        self._take_content(database, page_size, page_count, position, checksums, epoch, timestamp_ms)
        database.pending_install = target
        if not in_use:
            move_install(self.disk, database, target)
            database.applied = position.txid
        self.changed(database)
        return database

    def _take_content(  # noqa: PLR0913
        self, database: Database, page_size: int, page_count: int, position: Position, checksums: "array[int]",
        epoch: int, timestamp_ms: int,
    ) -> None:
        self.set_log_aside(database, position.txid + 1)
        database.set_page_size(page_size)
        database.checksums.reserve(page_count)
        database.checksums.clear_from(1, 1 << 40)
        database.checksums.table[:page_count] = memoryview(checksums)
        database.page_count = page_count
        database.epoch, database.timestamp_ms = epoch, timestamp_ms
        database.position = database.base = database.saved_base = position
        database.checksums.flush()
        database.save_meta()

    def set_log_aside(self, database: Database, next_txid: int) -> None:
        """Begin the log anew; what it held is kept in ``diverged/``."""
        segments = [each.path for each in database.log.segments()]
        if segments:
            target = self._diverged_folder(database)
            for path in segments:
                self.disk.rename(path, target / path.name)
                index = path.with_suffix(INDEX_SUFFIX)
                if index.exists():
                    self.disk.unlink(index)
            self.disk.fsync_directory(target)
            log.warning("log_set_aside", database=database.name, position=str(database.position), path=str(target))
        database.log.restart(next_txid)
        assert not any(entry.name.endswith(SUFFIX) for entry in database.directory.iterdir())

    def _diverged_folder(self, database: Database) -> Path:
        stem = f"{folder_name(database.name)}@{database.position.txid:016x}-{database.position.checksum:016x}"
        for number in range(1, 10_000):
            target = self.root / "diverged" / f"{stem}.{number}"
            if not target.exists():
                self.disk.make_directories(target)
                return target
        message = f"{self.root / 'diverged'} holds 10,000 copies of one position: remove those that nobody needs"
        raise Refused(message)

    def changed(self, database: Database) -> None:
        """Tell every listener."""
        database._changed()  # noqa: SLF001  the same state, one door


def folder_name(name: str) -> str:
    """The folder of a database's log: its name with everything but letters, digits and ``_.-~`` percent-encoded."""
    quoted = quote(name, safe="")
    if len(quoted) <= FOLDER_LIMIT_BYTES:
        return quoted
    return f"{quoted[:FOLDER_LIMIT_BYTES]}%{xxhash.xxh3_64_hexdigest(name)}"


def remove_empty_parents(store: Store, path: Path) -> None:
    """Remove directories of the mount that a drop has left empty."""
    top = store.root / "files"
    with contextlib.suppress(OSError):
        while path != top and path.is_dir() and not any(path.iterdir()):
            store.disk.rmdir(path)
            path = path.parent
