"""Names and inodes.

Knows which path an inode number stands for, what kind of file a name is, and how long the kernel holds on to an
inode. Does not know what reads and writes mean (mount.files).

Inode numbers are never used again, so neither the kernel nor an application can mistake a new file for an old one.
"""

import os
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import PurePosixPath
from typing import Final

from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.files import File, ShmFile
from litereplica.mount.journal_file import JournalFile, Journals, SuperJournalFile
from litereplica.mount.wal_file import WalFile
from litereplica.sqlite.journal import is_super_journal
from litereplica.store.store import Store

ROOT_INODE: Final = 1
PRIMARY_NAME: Final = ".primary"
LAG_NAME: Final = ".lag"
POSITION_SUFFIX: Final = "-pos"
HALT_SUFFIX: Final = "-halt"


class Kind(Enum):
    """What a name says that its file is."""

    DATABASE = auto()
    WAL = auto()
    SHM = auto()
    JOURNAL = auto()
    SUPER_JOURNAL = auto()
    POSITION = auto()
    HALT = auto()
    PRIMARY = auto()
    LAG = auto()


_SUFFIXES: Final = (
    ("-wal", Kind.WAL),
    ("-shm", Kind.SHM),
    ("-journal", Kind.JOURNAL),
    (POSITION_SUFFIX, Kind.POSITION),
    (HALT_SUFFIX, Kind.HALT),
)


def kind_of(name: str) -> tuple[Kind, str]:
    """The kind of file that a path in the mount names, and the database's path that it belongs to ("" for none)."""
    if name == PRIMARY_NAME:
        return Kind.PRIMARY, ""
    if name == LAG_NAME:
        return Kind.LAG, ""
    if is_super_journal(name):
        return Kind.SUPER_JOURNAL, name.rpartition("-")[0]
    for suffix, kind in _SUFFIXES:
        stem = name.removesuffix(suffix)
        if stem != name and stem and not stem.endswith("/"):
            return kind, stem
    return Kind.DATABASE, name


class Inode:
    """One name that the kernel knows: a directory, a file of the disk, or a virtual file.

    ``is_cut_off``: it has no attributes any more, so that SQLite opens nothing beside it (mount.cut_off).
    """

    __slots__ = ("file", "is_cut_off", "kind", "lookups", "name", "number", "removed")

    def __init__(self, number: int, name: str, kind: Kind | None, file: File | None) -> None:
        self.number = number
        self.name = name
        self.kind = kind  # None: a directory
        self.file = file
        self.lookups = 0
        self.removed = False
        self.is_cut_off = False


class Tree:
    """All inodes that the kernel holds, by number and by path."""

    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access
        # From a random number on: a process that still holds files of an earlier mount, which may have had the same
        # device number, must not take them for files of this one (SQLite finds its locks by device and inode).
        self._next = int.from_bytes(os.urandom(5)) << 20
        root = Inode(ROOT_INODE, "", None, None)
        self._inodes: dict[int, Inode] = {ROOT_INODE: root}
        self._names: dict[str, Inode] = {"": root}
        self.journals = Journals()
        # Files that live as long as the daemon does not see them unlinked: a wal-index has no place on the disk.
        self._shm: dict[str, ShmFile] = {}

    def inode(self, number: int) -> Inode:
        return self._inodes[number]

    def known(self, name: str) -> Inode | None:
        return self._names.get(name)

    def everything(self) -> list[Inode]:
        """All inodes but the root's whose names still stand."""
        return [each for each in self._names.values() if each.number != ROOT_INODE]

    def path(self, parent: int, name: bytes) -> str:
        """The path below the mount of ``name`` in directory ``parent``."""
        folder = self._inodes[parent].name
        text = name.decode("utf-8", "surrogateescape")
        return f"{folder}/{text}" if folder else text

    def take(self, name: str, *, directory: bool) -> Inode:
        """The inode of an existing name, made when the kernel does not know it yet. Raises OSError."""
        inode = self._names.get(name)
        if inode is None:
            kind, _ = kind_of(name)
            # First of all what a disk may refuse: an inode without its file could never be opened.
            file = None if directory else self._file(name, kind)
            inode = Inode(self._next, name, None if directory else kind, file)
            self._next += 1
            self._inodes[inode.number] = inode
            self._names[name] = inode
        return inode

    def _file(self, name: str, kind: Kind) -> File | None:
        store, access = self._store, self._access
        if kind is Kind.DATABASE:
            return DatabaseFile(store, access, name)
        if kind is Kind.SHM:
            return self._shm[name]
        if kind in (Kind.WAL, Kind.JOURNAL):
            owner = self.database_file(kind_of(name)[1])
            if kind is Kind.WAL:
                owner.wal = WalFile(store, access, owner, name)
                return owner.wal
            owner.journal = JournalFile(store, access, owner, name, self.journals)
            return owner.journal
        if kind is Kind.SUPER_JOURNAL:
            return SuperJournalFile(store, access, name, self.journals)
        return None

    def database_file(self, name: str) -> DatabaseFile:
        """The database that a side file belongs to."""
        file = self.take(name, directory=False).file
        assert isinstance(file, DatabaseFile)
        return file

    def shm(self, name: str) -> ShmFile | None:
        return self._shm.get(name)

    def make_shm(self, name: str, mode: int) -> None:
        self._shm[name] = ShmFile(self._store, self._access, name, mode)

    def shm_names(self, folder: str) -> Iterator[str]:
        """Last components of the wal-indexes in a directory."""
        parent = PurePosixPath(folder)
        for name in self._shm:
            path = PurePosixPath(name)
            if path.parent == parent or (not folder and len(path.parts) == 1):
                yield path.name

    def remove(self, name: str) -> Inode | None:
        """The name is gone; who has it open goes on with the file. Answers its inode, if the kernel knew it."""
        self._shm.pop(name, None)
        inode = self._names.pop(name, None)
        if inode is None:
            return None
        inode.removed = True
        file = inode.file
        if file is not None:
            file.unlinked = True
        kind, stem = kind_of(name)
        owner = self._names.get(stem)
        if owner is not None and isinstance(owner.file, DatabaseFile):
            if kind is Kind.WAL:
                owner.file.wal = None
            elif kind is Kind.JOURNAL:
                owner.file.journal = None
        if inode.lookups <= 0:
            self._drop(inode)
        return inode

    def rename(self, old: str, new: str) -> None:
        """A directory, or an empty file, has a new name; so has everything below it that the kernel knows."""
        self.remove(new)
        for name in [each for each in self._names if each == old or each.startswith(f"{old}/")]:
            inode = self._names.pop(name)
            inode.name = new + name[len(old) :]
            if inode.file is not None:
                inode.file.name = inode.name
            self._names[inode.name] = inode

    def forget(self, number: int, count: int) -> None:
        """The kernel lets go of ``count`` lookups."""
        inode = self._inodes.get(number)
        if inode is None or number == ROOT_INODE:
            return
        inode.lookups -= count
        if inode.lookups > 0:
            return
        if inode.removed:
            self._drop(inode)
        elif inode.kind is None or inode.file is None or self._is_idle(inode):
            self._names.pop(inode.name, None)
            self._drop(inode)

    def _is_idle(self, inode: Inode) -> bool:
        """A database stays while its side files are known (they point to it); a WAL stays while it has frames."""
        file = inode.file
        if isinstance(file, DatabaseFile):
            return file.wal is None and file.journal is None
        return not (isinstance(file, WalFile) or (isinstance(file, JournalFile) and file.is_live))

    def _drop(self, inode: Inode) -> None:
        self._inodes.pop(inode.number, None)
        file = inode.file
        # A wal-index outlives the kernel's interest in its name: its bytes are nowhere else.
        if file is not None and (inode.removed or not isinstance(file, ShmFile)):
            file.close()

    def close(self) -> None:
        """Close every backing file; after the unmount."""
        for inode in self._inodes.values():
            if inode.file is not None:
                inode.file.close()
        for shm in self._shm.values():
            shm.close()
