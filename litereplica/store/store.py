"""The data directory as a whole: who holds it, which databases are in it, who listens to their changes.

Knows the layout (docs/formats.md, "Data directory"). Does not know roles, mounts or sockets.
"""

import fcntl
import os
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog
import xxhash

from litereplica.descriptors import raise_descriptor_limit
from litereplica.errors import Corrupt, LitereplicaError, Refused
from litereplica.ltx.format import database_name_problem
from litereplica.ltx.position import Position
from litereplica.sqlite.journal import is_super_journal
from litereplica.store.base import advance_base
from litereplica.store.cluster_state import STATE_NAME, ClusterState, load_state, save_state
from litereplica.store.database import CHECKSUMS_NAME, Database
from litereplica.store.disk import Disk
from litereplica.store.dropped import forget_dropped, forget_unlinked
from litereplica.store.foreign import set_unknown_aside, settle_unknown
from litereplica.store.group import settle_groups
from litereplica.store.install import (
    begin_install,
    end_install,
    forget_older_install,
    has_history,
    install_path,
    place_install,
)
from litereplica.store.log import SEGMENT_BYTES
from litereplica.store.meta import META_NAME, Meta, load_meta, meta_missing
from litereplica.store.recover import bring_up, open_log, stop
from litereplica.store.spool import empty_folder, spool_name
from litereplica.store.sync import BlockingCalls

log = structlog.get_logger()

FORMAT_VERSION: Final = 1
FORMAT_LINE: Final = "litereplica data directory, format "
UNKNOWN_FOLDER: Final = "unknown"
# A folder name on Linux has at most 255 bytes; longer database names are cut and made unique by a hash. The rest is
# for what is kept in diverged/: a position and a number behind the name.
FOLDER_LIMIT_BYTES: Final = 180
SIDE_SUFFIXES: Final = ("-wal", "-shm", "-journal")
Listener = Callable[[Database], None]


class Store:
    """All databases of this node. ``Store.open`` takes the directory's lock; ``close`` gives it back."""

    def __init__(self, root: Path, disk: Disk, node: str, compression: str, segment_bytes: int) -> None:
        self.root = root
        self.disk = disk
        self.node = node
        self.compression = compression
        self.segment_bytes = segment_bytes
        # Of the records that this node makes; of its cluster, what it remembers.
        self.epoch = 1
        self.state = ClusterState()
        self._remembering = threading.Lock()
        self.calls = BlockingCalls()
        self.databases: dict[str, Database] = {}
        self.listeners: list[Listener] = []
        self._spools = 0
        self._lock = -1

    @property
    def incoming(self) -> Path:
        """Where snapshots arrive."""
        return self.root / "incoming"

    @property
    def diverged(self) -> Path:
        """Where histories are kept that a snapshot has replaced."""
        return self.root / "diverged"

    @property
    def forwarded(self) -> Path:
        """Where long transactions are gathered that travel from node to node."""
        return self.root / "forwarded"

    def spool_path(self) -> Path:
        """A name in ``forwarded`` that nothing has yet."""
        while True:
            self._spools += 1
            path = self.forwarded / spool_name(self._spools)
            if not os.path.lexists(path):
                return path

    # -- start and stop --------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, root: Path, disk: Disk, node: str, compression: str = "none", segment_bytes: int = SEGMENT_BYTES
    ) -> "Store":
        """Lock the directory, check its version, recover every database. Blocking; before the mount.

        Raises Refused (in use, newer version), Corrupt (damaged log or file, named), OSError.
        """
        store = cls(root, disk, node, compression, segment_bytes)
        try:
            disk.make_directories(root)
        except OSError as error:
            raise Refused(
                f"the data directory {root} cannot be made ({error.strerror}): set data.dir to a folder that "
                f"this user may write"
            ) from None
        store._take_lock()
        raise_descriptor_limit()
        try:
            store._check_format()
            for name in ("files", "db", "incoming", "diverged", "forwarded"):
                disk.make_directories(root / name)
            empty_folder(disk, store.forwarded)
            store.state = load_state(root)
            store._recover_all()
            store.epoch = max(1, store.seen_epoch)
        except BaseException:
            store.close()
            raise
        return store

    def _take_lock(self) -> None:
        path = self.root / "lock"
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Refused(
                f"the data directory {self.root} cannot be used ({error.strerror}): set data.dir to a folder "
                f"that this user may write"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "another process"
            os.close(self._lock)
            self._lock = -1
            raise Refused(
                f"the data directory {self.root} is in use by {owner}: stop that node, or give this one its "
                f"own data.dir"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()}\n".encode(), 0)

    def _check_format(self) -> None:
        path = self.root / "format"
        if not path.exists():
            if (self.root / "db").exists() or (self.root / "files").exists():
                raise Corrupt(
                    f"{path} is missing, so {self.root} is no data directory of ours or it is damaged: set "
                    f"data.dir to an empty folder, or restore the file"
                )
            self.disk.write_file(path, f"{FORMAT_LINE}{FORMAT_VERSION}\n".encode())
            return
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        number = text.removeprefix(FORMAT_LINE)
        if not text.startswith(FORMAT_LINE) or not number.isdigit():
            raise Corrupt(f"{path} is damaged ({text[:60]!r}): restore it, or set data.dir to an empty folder")
        if int(number) > FORMAT_VERSION:
            raise Refused(
                f"the data directory {self.root} was written by a newer version (format {number}, this one "
                f"knows {FORMAT_VERSION}): run the newer litereplica"
            )

    def _recover_all(self) -> None:
        found: list[tuple[Database, Meta]] = []
        for directory in sorted((self.root / "db").iterdir()):
            if not directory.is_dir():
                log.warning("unknown_file_left_alone", path=str(directory))
                continue
            if not (directory / META_NAME).exists():
                self._leave_unfinished(directory)
                continue
            name = load_meta(directory).database
            if directory.name != folder_name(name):
                raise Corrupt(
                    f"{directory} belongs to the database {name!r}, whose folder is {folder_name(name)}: give "
                    f"it that "
                    f"name, or move it out of {directory.parent} if it is a copy"
                )
            database = Database(self, name, directory)
            self.databases[name] = database
            found.append((database, open_log(database)))
        settle_groups(self)
        for database, meta in found:
            bring_up(database, meta)
        settle_unknown(self.disk, self.root / "files", SIDE_SUFFIXES, self._has_log)

    def _has_log(self, name: str) -> bool:
        database = self.databases.get(name)
        return database is not None and database.exists

    def _leave_unfinished(self, directory: Path) -> None:
        """Clear a folder whose database never got its first meta file; one that is not ours stays.

        Raises Corrupt when that file is what is lost: it was there, durably, before anything else of a history.
        """
        if has_history(directory):
            raise meta_missing(directory)
        known = {CHECKSUMS_NAME, META_NAME + ".new"}
        if {entry.name for entry in directory.iterdir()} <= known:
            for entry in directory.iterdir():
                self.disk.unlink(entry)
            self.disk.rmdir(directory)
        else:
            log.warning("unknown_folder_left_alone", path=str(directory))

    def stop(self) -> None:
        """Make everything durable and leave the next start nothing to do. Blocking; after the unmount.

        Raises the first OSError or Corrupt after all databases had their turn; the next start then redoes the rest.
        """
        failure: OSError | LitereplicaError | None = None
        for database in self.databases.values():
            try:
                stop(database)
            except (OSError, LitereplicaError) as error:
                # What is wrong is known; where it was found is not what whoever reads this needs.
                log.error("stop_not_clean", database=database.name, reason=str(error))  # noqa: TRY400
                failure = failure or error
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Give the directory back."""
        for database in self.databases.values():
            database.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def seen_epoch(self) -> int:
        """The highest epoch that this node knows of."""
        return max(self.state.epoch, *(each.epoch for each in self.databases.values()), 0)

    def remember(self, change: Callable[[ClusterState], ClusterState]) -> None:
        """Make what is known of the cluster durable, with a change to it. Blocking, of any thread. Raises OSError.

        One at a time, and each changes what the one before has left: an epoch that was noted is never taken back.
        """
        with self._remembering:
            state = change(self.state)
            if state != self.state or not (self.root / STATE_NAME).exists():
                save_state(self.disk, self.root, state)
                self.state = state

    # -- databases -------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Database | None:
        """Return a database by its path below the mount; also one that was dropped."""
        return self.databases.get(name)

    def next_txid(self, name: str) -> int:
        """The TXID that the next transaction of a database gets, which need not be there yet."""
        database = self.databases.get(name)
        return database.position.txid + 1 if database is not None else 1

    def file_path(self, name: str) -> Path:
        """The backing file of a name in the mount."""
        return self.root / "files" / name

    @staticmethod
    def name_problem(name: str) -> str | None:
        """Why ``name`` cannot be a database's, or None."""
        if name.endswith(SIDE_SUFFIXES) or is_super_journal(name):
            return "the name is that of a side file"
        if Path(name).name.startswith(".fuse_hidden"):
            return "the name is one of the kernel's"
        return database_name_problem(name)

    def create(self, name: str, page_size: int = 0) -> Database:
        """A database at position zero, without a file.

        Raises Refused for a name that cannot be one, Corrupt when its folder holds a history already, OSError.
        """
        problem = self.name_problem(name)
        if problem is not None:
            raise Refused(f"{name!r} cannot be a database's name: {problem}")
        assert name not in self.databases
        directory = self.root / "db" / folder_name(name)
        if has_history(directory):
            raise meta_missing(directory)
        self.disk.make_directories(directory)
        database = Database(self, name, directory)
        try:
            if page_size:
                database.set_page_size(page_size)
            database.checksums.begin_boot(0)
            database.epoch = self.epoch
            database.save_meta()
        except BaseException:
            database.close()
            raise
        self.databases[name] = database
        return database

    def make_way(self, name: str) -> None:
        """Another node has made a database of this name: keep the file of that name that no log knows, if there is one.

        Raises OSError; then it is in its place, and nothing may take that.
        """
        if (database := self.databases.get(name)) is not None:
            # What a crash, or the disk, has left of a drop that did not come to be logged is not of this file.
            forget_unlinked(self.disk, self.file_path(name), database.directory)
            forget_dropped(self.disk, database.directory)
        set_unknown_aside(self.disk, self.file_path(name), self.root / UNKNOWN_FOLDER, folder_name(name))

    async def advance_base(self, database: Database) -> None:
        """Make it durable that the database file holds everything up to ``database.base``. Raises OSError."""
        await advance_base(database)

    async def maintain(self, age_s: float, size_bytes: int) -> None:
        """Retention, once over all databases. What the disk refuses is logged and tried again the next time.

        But for a database of which nobody knows any more what the disk has: its log is kept whole until a restart.
        """
        for database in list(self.databases.values()):
            try:
                if database.install_failure is not None:
                    end_install(database)
                await advance_base(database)
                forget_unlinked(self.disk, database.file_path, database.directory)
                removed = database.log.trim(database.saved_base.txid, age_s, size_bytes)
            except OSError as error:
                _say_failed(database, error)
                continue
            if removed:
                log.info(
                    "log_trimmed",
                    database=database.name,
                    removed_bytes=removed,
                    first_txid=f"{database.log.first_txid:016x}",
                )

    # -- a whole new content ---------------------------------------------------------------------------------------

    def install(
        self,
        name: str,
        pages_file: Path,
        page_size: int,
        page_count: int,
        position: Position,
        checksums: "array[int] | memoryview",
        epoch: int,
        timestamp_ms: int,
        *,
        apart: bool = False,
    ) -> Database:
        """Make a finished snapshot the database ``name``; ``pages_file`` has its pages, already durable.

        ``checksums``: page checksums, unsigned 64-bit, index pgno - 1. When this returns, the position is the
        snapshot's and the next record can be appended, but for ``install_failure``: the disk did not make room for it.
        Then that is tried again, here and by who brings the record.

        Where readers may have the old content open, ``pending_install`` says that the applier has to write the new one
        over it (or ``dropped_txid``, that the file has to go); else the file is in place. After a crash in between,
        ``recover`` puts it in place. ``apart``: nobody can use the old one any more, whoever has it open; it is in
        place at once. The old log is kept in ``diverged/``, a file of this name that no log knows in ``unknown/``.
        Raises OSError, Corrupt as ``create`` does.
        """
        assert len(checksums) == page_count
        database = self.databases.get(name)
        if database is None:
            database = self.create(name, page_size)
        had_file = database.exists
        if database.is_nameless:
            self.make_way(name)
        begin_install(database, pages_file, page_size, page_count, position, epoch, timestamp_ms)
        database.log.restart(position)
        database.checksums.replace(memoryview(checksums).cast("B") if page_count else b"")
        try:
            end_install(database)
        except OSError as error:
            # The snapshot counts, for whoever starts from this disk and so for this process too.
            log.warning("install_incomplete", database=name, reason=error.strerror, then="trying again")
        forget_older_install(database)
        database.base, database.base_pages = position, page_count
        if had_file and database.applied >= position.txid:
            # What readers see is of another history, whatever its number.
            database.applied = 0
        database.dropped_txid = 0
        database.page_count, database.position = page_count, position
        if had_file and not page_count:
            database.dropped_txid = position.txid
        if had_file and page_count and not apart:
            database.pending_install = database.kept_install = install_path(database.directory, position)
            # An earlier one may be in the file by now, and its pages not yet removed; these are not.
            database.install_folded = False
            database.awaits_install = True
        else:
            database.awaits_install = False
            try:
                place_install(database)
            except OSError as error:
                # Position and log are the snapshot's, and the file is not: a start puts it in place. Until then no
                # record may come, nor may this node be the primary.
                database.log.fail(error)
                raise
            if page_count or not had_file:
                database.applied = position.txid
        # Whatever a commit of an application has said of the WAL is of a content that nobody needs any more: the
        # applier may write the new one over its frames.
        database.claim = None
        database.telltale = None
        # Whether it is part of this content cannot be told from its number.
        database.own_txid = 0
        database.unlaid.replaced()
        if database.awaited is not None:
            database.awaited.replaced(database)
        self.changed(database)
        return database

    def changed(self, database: Database) -> None:
        """Tell every listener."""
        database.changed()


def _say_failed(database: Database, error: OSError) -> None:
    """Say what the disk refused to retention; what only a restart mends is said once."""
    lasting = database.file_failure or database.log.failure
    if lasting is None:
        log.error("maintenance_failed", database=database.name, reason=error.strerror)
    elif error is lasting:
        advice = "its log is kept until then: check the disk, then restart this node"
        log.error("maintenance_failed", database=database.name, reason=error.strerror, advice=advice)


def folder_name(name: str) -> str:
    """The folder of a database's log: its name with everything but letters, digits and ``_.-~`` percent-encoded."""
    quoted = quote(name, safe="")
    if len(quoted) <= FOLDER_LIMIT_BYTES:
        return quoted
    return f"{quoted[:FOLDER_LIMIT_BYTES]}%{xxhash.xxh3_64_hexdigest(name.encode())}"
