"""Transactions over several databases: all of their records, or none after a crash.

Knows the file that lists them, made durable before the first of them is written and removed when all are durable and
before any of them counts. A crash in between leaves the file: when one of the records is missing, none of them happened
(SQLite's super-journal is still there then, and so are the journals, which are played back). Does not know what makes
databases belong together (mount.journal_file).

So as long as the file is there, a record of it is the last one of its log, not counted, and not known to be durable;
nothing else is ever taken back. Where the file cannot be removed, the logs of its databases fail: nothing follows it.

File ``groups/NUMBER``: msgpack [version, epoch, node, {database: [TXID, checksum before it]}], then its xxh3_64 (8
bytes LE). Version 1, of older nodes: [1, {database: TXID}].
"""

from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgpack
import structlog
import xxhash

from litereplica.errors import Corrupt
from litereplica.ltx.position import Position

if TYPE_CHECKING:
    from litereplica.store.log import Log
    from litereplica.store.store import Store

log = structlog.get_logger()

GROUPS_NAME: Final = "groups"
_VERSION: Final = 2
_OLDER_VERSION: Final = 1
_LEFT_SUFFIX: Final = ".left"


class GroupStays(OSError):
    """The file of a group could not be removed; the logs of its databases take nothing more."""


class Expected(NamedTuple):
    """A record that a group has; None of an older file, which does not say it."""

    txid: int
    pre_checksum: int | None


class _Found(Enum):
    MISSING = "missing"
    # As a crash leaves it: it may be taken back.
    LAST = "last"
    # Another one, or it counts.
    OTHER = "other"


class GroupFile:
    """One group on the disk. ``author``: (epoch, node) of its records; None of an older file."""

    __slots__ = ("_path", "_store", "author", "members")

    def __init__(
        self, store: "Store", path: Path, members: dict[str, Expected], author: tuple[int, str] | None
    ) -> None:
        self._store = store
        self._path = path
        self.members = members
        self.author = author

    @classmethod
    def write(cls, store: "Store", names: Iterable[str]) -> Self:
        """Make durable that the next records of these databases belong together.

        Raises OSError: there is no such file; GroupStays: there may be one.
        """
        members = {name: _next_of(store, name) for name in names}
        folder = store.root / GROUPS_NAME
        store.disk.make_directories(folder)
        number = 1 + max((int(each.name) for each in folder.iterdir() if each.name.isdigit()), default=0)
        group = cls(store, folder / f"{number:08d}", members, (store.epoch, store.node))
        body: bytes = msgpack.packb((_VERSION, store.epoch, store.node, members))
        try:
            store.disk.write_file(group._path, body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"))
        except OSError:
            group.remove()
            raise
        return group

    def remove(self) -> None:
        """All of them count, or none, durably. Raises GroupStays."""
        try:
            self._store.disk.unlink(self._path)
            # One that came back much later could name TXIDs that another history has not reached.
            self._store.disk.fsync_directory(self._path.parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self.leave(error) from error

    def leave(self, error: OSError) -> GroupStays:
        """The file has to stay, or may: a start must find the logs of its databases as they are now."""
        for name in self.members:
            database = self._store.databases.get(name)
            if database is not None and database.log.failure is None:
                database.log.fail(error)
        log.error(
            "group_stays",
            file=str(self._path),
            databases=list(self.members),
            reason=error.strerror,
            advice="these databases take no transaction until then: check the disk, then restart this node",
        )
        return GroupStays(error.errno, error.strerror)

    def set_aside(self) -> None:
        """Nothing goes by it any more. Raises OSError."""
        self._store.disk.rename(self._path, self._path.with_name(self._path.name + _LEFT_SUFFIX))
        self._store.disk.fsync_directory(self._path.parent)

    def settle(self) -> None:
        """At start: take its records back if they are not whole. Raises OSError, Corrupt."""
        logs = {name: self._store.databases[name].log for name in self.members if name in self._store.databases}
        found = {name: self._find(name) for name in self.members}
        states = set(found.values())
        if _Found.MISSING in states and _Found.OTHER in states:
            # No crash leaves this: the file stayed behind while the databases went on.
            log.warning(
                "group_left_alone",
                file=str(self._path) + _LEFT_SUFFIX,
                databases={name: f"{each.txid:016x} {found[name].value}" for name, each in self.members.items()},
                reason="it is older than what is in the logs, so nothing is taken back",
            )
            self.set_aside()
            return
        if _Found.MISSING in states:
            for name, each in self.members.items():
                if found[name] is _Found.LAST:
                    log.warning("group_taken_back", database=name, txid=f"{each.txid:016x}")
                    logs[name].cut_from(each.txid)
        # Whole so far: with the file gone, a loss of power must not take one of them.
        self._sync(logs.values())
        self.remove()

    def _find(self, name: str) -> _Found:
        database = self._store.databases.get(name)
        txid, pre_checksum = self.members[name]
        if database is None or database.log.last_txid < txid:
            return _Found.MISSING
        records = database.log
        if records.last_txid > txid or database.settled or txid <= max(database.base.txid, records.durable_txid):
            return _Found.OTHER
        header = records.header(txid)
        if pre_checksum is not None and header.pre_checksum != pre_checksum:
            return _Found.OTHER
        if self.author is not None and (header.epoch, header.node) != self.author:
            return _Found.OTHER
        return _Found.LAST

    def _sync(self, logs: Iterable["Log"]) -> None:
        """All of them, before one of them says that it is durable: who says so cannot be taken back any more."""
        disk = self._store.disk
        for each in logs:
            for segment in each.segments():
                if segment.descriptor >= 0:
                    disk.fdatasync(segment.descriptor)
            disk.fsync_directory(each.directory)
        for each in logs:
            each.sync_blocking()


def _next_of(store: "Store", name: str) -> Expected:
    database = store.databases.get(name)
    position = database.position if database is not None else Position.ZERO
    return Expected(position.txid + 1, position.checksum)


def group_paths(root: Path) -> list[Path]:
    """The files of the groups that a crash has left, in the data directory ``root``; what was set aside is none."""
    folder = root / GROUPS_NAME
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def load_groups(store: "Store") -> Iterator[GroupFile]:
    """The groups that a crash has left. Raises Corrupt."""
    for path in group_paths(store.root):
        yield _load(store, path)


def _load(store: "Store", path: Path) -> GroupFile:
    data = path.read_bytes()
    body = data[:-8]
    damaged = Corrupt(
        f"{path} is damaged: it says which transactions over several databases belong together; keep a copy, "
        f"then remove it to start with what each log has"
    )
    if xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]:
        raise damaged
    author: tuple[int, str] | None = None
    try:
        found: Any = msgpack.unpackb(body)
        if found[0] == _OLDER_VERSION:
            _, older = found
            members = {name: Expected(txid, None) for name, txid in older.items()}
        else:
            version, epoch, node, newer = found
            author = epoch, node
            members = {name: Expected(*each) for name, each in newer.items()}
            numbers = [epoch, *(each.pre_checksum for each in members.values())]
            if version != _VERSION or type(node) is not str or not all(type(each) is int for each in numbers):
                raise damaged
    except (ValueError, TypeError, AttributeError, LookupError, msgpack.UnpackException):
        raise damaged from None
    if not all(type(name) is str and type(each.txid) is int for name, each in members.items()):
        raise damaged
    return GroupFile(store, path, members, author)


def settle_groups(store: "Store") -> None:
    """After every log was opened, before anything is redone: take back records whose group is not whole.

    What is left of a group is durable then. Raises OSError, Corrupt.
    """
    for group in load_groups(store):
        group.settle()
