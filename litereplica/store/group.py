"""Transactions over several databases: all of their records, or none after a crash.

Knows the file that lists them, made durable before the first of them is written and removed when all are durable and
counted. A crash in between leaves the file: when one of the records is missing, none of them happened (SQLite's
super-journal is still there then, and so are the journals, which are played back). Does not know what makes databases
belong together (mount.journal_file).

File ``groups/NUMBER``: msgpack [version, {database: TXID}], then its xxh3_64 (8 bytes LE).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import structlog
import xxhash

from litereplica.errors import Corrupt

if TYPE_CHECKING:
    from litereplica.store.store import Store

log = structlog.get_logger()

GROUPS_NAME: Final = "groups"
_VERSION: Final = 1


class GroupFile:
    """One group on the disk."""

    __slots__ = ("_path", "_store", "members")

    def __init__(self, store: "Store", path: Path, members: dict[str, int]) -> None:
        self._store = store
        self._path = path
        self.members = members

    @classmethod
    def write(cls, store: "Store", members: dict[str, int]) -> "GroupFile":
        """Make durable that these TXIDs belong together. Raises OSError."""
        folder = store.root / GROUPS_NAME
        store.disk.make_directories(folder)
        body: bytes = msgpack.packb((_VERSION, members))
        number = 1 + max((int(each.name) for each in folder.iterdir() if each.name.isdigit()), default=0)
        path = folder / f"{number:08d}"
        store.disk.write_file(path, body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"))
        return cls(store, path, members)

    def remove(self) -> None:
        """All of them count, or none, durably. A crash that brings the file back finds it true."""
        with contextlib.suppress(OSError):
            self._store.disk.unlink(self._path)
            # One that came back much later could name TXIDs that another history has not reached.
            self._store.disk.fsync_directory(self._path.parent)


def load_groups(store: "Store") -> Iterator[GroupFile]:
    """The groups that a crash has left. Raises Corrupt."""
    folder = store.root / GROUPS_NAME
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.isdigit():
            yield GroupFile(store, path, _members(path))


def _members(path: Path) -> dict[str, int]:
    data = path.read_bytes()
    body = data[:-8]
    damaged = Corrupt(
        f"{path} is damaged: it says which transactions over several databases belong together; keep a copy, "
        f"then remove it to start with what each log has"
    )
    if xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]:
        raise damaged
    try:
        found: Any = msgpack.unpackb(body)
        version, members = found
    except (ValueError, TypeError, msgpack.UnpackException):
        raise damaged from None
    if version != _VERSION or type(members) is not dict:
        raise damaged
    if not all(type(name) is str and type(txid) is int for name, txid in members.items()):
        raise damaged
    return members


def settle_groups(store: "Store") -> None:
    """After every log was opened, before anything is redone: take back records whose group is not whole.

    What is left of a group is durable then. Raises OSError, Corrupt.
    """
    for group in load_groups(store):
        logs = {name: store.databases[name].log for name in group.members if name in store.databases}
        if len(logs) < len(group.members) or any(logs[name].last_txid < txid for name, txid in group.members.items()):
            for name, txid in group.members.items():
                if name in logs and logs[name].last_txid >= txid:
                    log.warning("group_taken_back", database=name, txid=f"{txid:016x}")
                    logs[name].cut_from(txid)
        # Whole so far: with the file gone, a loss of power must not take one of them.
        for each in logs.values():
            each.sync_blocking()
        group.remove()
