"""What the kernel asks about names: look-ups, attributes, directories, renames.

Knows which names exist, what the kernel is told of them and for how long, and which may change. Does not know open
files (mount.operations) nor what writes mean. Each method that pyfuse3 calls translates errors once.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3
import structlog

from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.errors import translate
from litereplica.mount.files import ShmFile
from litereplica.mount.journal_file import JournalFile
from litereplica.mount.tree import ROOT_INODE, Inode, Kind, Tree, kind_of
from litereplica.mount.virtual import content
from litereplica.mount.wal_file import WalFile
from litereplica.store.store import Store

log = structlog.get_logger()


# Names and sizes change through this mount only, so the kernel may keep what it was told (FUSE: entry_timeout,
# attr_timeout); after a write it asks again by itself. Virtual files are asked for every time.
KEEP_S: Final = 3600.0
VIRTUAL: Final = (Kind.PRIMARY, Kind.LAG, Kind.POSITION, Kind.HALT)
BLOCK_BYTES: Final = 512


P = ParamSpec("P")
T = TypeVar("T")


def translated(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn our errors and the disk's into the kernel's; anything else is a bug: logged, and an I/O error."""

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  the edge: everything becomes the kernel's
            raise translate(error, method.__name__) from None

    return call


class NameOperations(pyfuse3.Operations):
    """The part of pyfuse3's handler that is about names."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, store: Store, access: Access) -> None:
        super().__init__()
        self.store = store
        self._access = access
        self.tree = Tree(store, access)
        # Directories in which names of other files than journals have changed since they were made durable.
        self._changed_folders: set[str] = set()

    # -- attributes --------------------------------------------------------------------------------------------------

    @translated
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self._find(self.tree.path(parent_inode, name)))

    def _find(self, path: str) -> Inode:
        """The inode of an existing name; raises ENOENT."""
        kind, stem = kind_of(path)
        if kind in VIRTUAL:
            if content(kind, stem, self.store, self._access) is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self.tree.take(path, directory=False)
        if kind is Kind.SHM:
            if self.tree.shm(path) is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self.tree.take(path, directory=False)
        status = os.lstat(self.store.file_path(path))
        return self.tree.take(path, directory=stat.S_ISDIR(status.st_mode))

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        attributes = self._attributes(inode)
        inode.lookups += 1
        return attributes

    @translated
    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for number, count in inode_list:
            self.tree.forget(number, count)

    @translated
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        found = self.tree.inode(inode)
        if found.is_cut_off:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return self._attributes(found)

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.number
        entry.attr_timeout = KEEP_S
        # On a replica a name may be another file from one instant to the next (a drop, a snapshot), and the kernel
        # learns that late: who opens it then, the applier above all, would get the old one. Only opens pay for it.
        entry.entry_timeout = KEEP_S if self._access.primary else 0
        if inode.kind in VIRTUAL:
            self._virtual_attributes(inode, entry)
            return entry
        file = inode.file
        status = file.status() if file is not None else os.lstat(self.store.file_path(inode.name))
        entry.st_mode = file.mode if isinstance(file, ShmFile) else status.st_mode
        entry.st_nlink = status.st_nlink if not isinstance(file, ShmFile) else 1
        entry.st_uid, entry.st_gid = status.st_uid, status.st_gid
        entry.st_size = file.size() if isinstance(file, WalFile | DatabaseFile) else status.st_size
        entry.st_blksize = status.st_blksize
        entry.st_blocks = (status.st_size + BLOCK_BYTES - 1) // BLOCK_BYTES
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = (
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        if inode.removed and isinstance(file, WalFile) and file.owner.unlinked:
            entry.st_size = 0  # see ``retire``
        if file is not None:
            if file.modified_ns is None:
                file.modified_ns = status.st_mtime_ns
            entry.st_mtime_ns = file.modified_ns
        return entry

    def _virtual_attributes(self, inode: Inode, entry: pyfuse3.EntryAttributes) -> None:
        _, stem = kind_of(inode.name)
        assert inode.kind is not None
        found = content(inode.kind, stem, self.store, self._access)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        data, modified_ns = found
        entry.entry_timeout = entry.attr_timeout = 0
        entry.st_mode = stat.S_IFREG | 0o444
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        if inode.kind is Kind.HALT:
            # Who may write the database may have the right to.
            status = os.lstat(self.store.file_path(stem))
            entry.st_mode, entry.st_uid, entry.st_gid = status.st_mode, status.st_uid, status.st_gid
        entry.st_size = len(data)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = modified_ns

    def _check_writer(self, ctx: pyfuse3.RequestContext, *, of_content: bool = False) -> bool:
        """Whether it is the applier that asks.

        Raises EROFS on a replica for anybody else, so that SQLite opens read-only by itself; but where applications'
        transactions are forwarded they may write what SQLite writes in one (``of_content``).
        """
        access = self._access
        applies = access.is_applier(ctx.pid)
        if not applies and not access.primary and not (of_content and access.elsewhere is not None):
            raise pyfuse3.FUSEError(errno.EROFS)
        return applies

    def _name_changes(self, path: str, kind: Kind | None) -> None:
        if kind in (None, Kind.DATABASE):
            self._changed_folders.add(path.rpartition("/")[0])

    @translated
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self._check_writer(ctx)
        old, new = self.tree.path(parent_inode_old, name_old), self.tree.path(parent_inode_new, name_new)
        source, target = self.store.file_path(old), self.store.file_path(new)
        inode = self._find(old)
        if flags or kind_of(new)[0] is not Kind.DATABASE or kind_of(old)[0] is not Kind.DATABASE:
            raise pyfuse3.FUSEError(errno.EINVAL)
        holds = [
            each.name
            for each in self.store.databases.values()
            if each.exists and (each.name in (old, new) or each.name.startswith(f"{old}/"))
        ]
        if holds or (inode.kind is not None and source.stat().st_size):
            log.warning(
                "rename_refused",
                file=old,
                to=new,
                databases=holds,
                reason="a replicated database keeps its name: copy it with VACUUM INTO or .backup instead",
            )
            raise pyfuse3.FUSEError(errno.EACCES)
        if target.exists() and target.is_file() and target.stat().st_size:
            raise pyfuse3.FUSEError(errno.EEXIST)
        self.store.disk.rename(source, target)
        self._name_changes(old, None)
        self._name_changes(new, None)
        self.tree.rename(old, new)

    # -- directories -----------------------------------------------------------------------------------------------

    @translated
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:  # noqa: FBT001
        folder = self.tree.inode(fh).name
        if folder not in self._changed_folders:
            return  # names of journals need not be durable before their databases' files change
        self._changed_folders.discard(folder)
        path = self.store.file_path(folder)
        try:
            await self.store.calls.run(lambda: self.store.disk.fsync_directory(path))
        except OSError as error:
            self._changed_folders.add(folder)
            # SQLite asks after the end of a journal: that transaction is committed, and its application gets an error.
            log.warning("folder_not_durable", folder=folder or "/", reason=error.strerror)
            raise
        self.tree.journals.directory_synced(path)

    @translated
    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._check_writer(ctx)
        path = self.tree.path(parent_inode, name)
        target = self.store.file_path(path)
        self.store.disk.mkdir(target)
        self._name_changes(path, None)
        target.chmod(mode & 0o7777)
        if os.geteuid() == 0 and (ctx.uid, ctx.gid) != (0, 0):
            os.chown(target, ctx.uid, ctx.gid)
        return self._entry(self.tree.take(path, directory=True))

    @translated
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        self._check_writer(ctx)
        path = self.tree.path(parent_inode, name)
        self.store.disk.rmdir(self.store.file_path(path))
        self._name_changes(path, None)
        self.tree.remove(path)

    @translated
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> int:
        return inode

    @translated
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        folder = self.tree.inode(fh).name
        with os.scandir(self.store.file_path(folder)) as entries:
            names = {entry.name for entry in entries}
        names.update(self.tree.shm_names(folder))
        if not folder and content(Kind.PRIMARY, "", self.store, self._access) is not None:
            names.add(".primary")
        for number, name in enumerate(sorted(names), 1):
            if number <= start_id:
                continue
            try:
                inode = self._find(f"{folder}/{name}" if folder else name)
            except (OSError, pyfuse3.FUSEError):
                continue
            attributes = self._attributes(inode)
            if not pyfuse3.readdir_reply(token, name.encode("utf-8", "surrogateescape"), attributes, number):
                return
            inode.lookups += 1

    @translated
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """A directory's handle is its inode: nothing to give back."""

    @translated
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = os.statvfs(self.store.root)
        answer = pyfuse3.StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, field, getattr(found, field))
        answer.f_namemax = 255
        return answer

    @translated
    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        raise self._no_such_kind(parent_inode, name, "a symbolic link")

    @translated
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        raise self._no_such_kind(new_parent_inode, new_name, "a hard link")

    @translated
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        raise self._no_such_kind(parent_inode, name, "a device or a pipe")

    def _no_such_kind(self, parent: int, name: pyfuse3.FileNameT, what: str) -> pyfuse3.FUSEError:
        log.warning("file_refused", file=self.tree.path(parent, name), reason=f"the mount holds databases, not {what}")
        return pyfuse3.FUSEError(errno.EACCES)

    # -- changes from our side -------------------------------------------------------------------------------------

    def retire(self, path: str) -> None:
        """A new database is made: take away what one of this name, which was deleted, has left beside it.

        SQLite deletes a WAL beside an empty file unless that is empty too (pager.c, pagerOpenWalIfPresent); then it
        goes on with it, and with a wal-index at any rate. The kernel still knows these names until we have answered:
        it is told that the WAL has no bytes any more, so that nobody deletes it, and an open of either is ESTALE.
        A journal that was kept (PERSIST, TRUNCATE) would go on to be that of the old file: what it protects in the new
        one would not be known to be protected.
        """
        journal = self.tree.known(f"{path}-journal")
        if journal is not None and isinstance(journal.file, JournalFile) and journal.file.owner.unlinked:
            with contextlib.suppress(FileNotFoundError):
                self.store.disk.unlink(self.store.file_path(journal.name))
            journal.file.unlinked = True
            self.tree.journals.live.discard(journal.file)
            self.tree.journals.unnamed.discard(journal.file)
            self.removed_names(journal.name)
        wal = self.tree.known(f"{path}-wal")
        if wal is not None and isinstance(wal.file, WalFile) and wal.file.owner.unlinked:
            with contextlib.suppress(FileNotFoundError):
                self.store.disk.unlink(self.store.file_path(wal.name))
            self.removed_names(wal.name)
            forget_attributes(wal.number)
        if self.tree.shm(f"{path}-shm") is not None:
            self.removed_names(f"{path}-shm")

    def forget_names(self) -> None:
        """The kernel asks for every name again: on a replica they are answered for no time, on the primary for long."""
        for inode in self.tree.everything():
            parent = self.tree.known(inode.name.rpartition("/")[0])
            if parent is not None:
                _forget_entry(parent.number, inode.name)

    def removed_here(self, path: str) -> None:
        """A database was dropped by replication: take its names away from the kernel too."""
        self.removed_names(path, f"{path}-wal", f"{path}-shm")

    def removed_names(self, *names: str) -> None:
        """These files are gone, and nobody asked for it through the mount."""
        for name in names:
            folder = name.rpartition("/")[0]
            parent = self.tree.known(folder)
            inode = self.tree.remove(name)
            if parent is not None and inode is not None:
                _forget_entry(parent.number, name)


def forget_content(number: int) -> None:
    """Have the kernel drop what it caches of a file, if it has it. Waits for reads of it, so never on the loop."""
    if number:
        # It may have let go of the file in this very moment, and has nothing of it then.
        with contextlib.suppress(FileNotFoundError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(number))


def forget_attributes(number: int) -> None:
    """Have the kernel ask for a file's attributes again. Never waits, unlike ``forget_content``."""
    with contextlib.suppress(FileNotFoundError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(number), attr_only=True)


def _forget_entry(parent: int, name: str) -> None:
    # Asynchronous: the kernel may hold the directory's lock for a request that waits for us.
    last = name.rpartition("/")[2].encode("utf-8", "surrogateescape")
    pyfuse3.invalidate_entry_async(pyfuse3.InodeT(parent), last, ignore_enoent=True)


assert pyfuse3.ROOT_INODE == ROOT_INODE
