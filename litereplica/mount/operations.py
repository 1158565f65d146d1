"""What the kernel asks, dispatched.

Knows FUSE's requests, handles, attributes and which names may be made, opened or removed by whom. Does not know what a
write means (mount.files). Each method that pyfuse3 calls translates errors once.
"""

import errno
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3
import structlog

from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.errors import translate
from litereplica.mount.files import File, ShmFile
from litereplica.mount.journal_file import JournalFile, SuperJournalFile
from litereplica.mount.tree import ROOT_INODE, Inode, Kind, Tree, kind_of
from litereplica.mount.virtual import content
from litereplica.mount.wal_file import WalFile
from litereplica.sqlite.version import name_problem
from litereplica.store.store import Store

log = structlog.get_logger()

# Names and sizes change through this mount only, so the kernel may keep what it was told (FUSE: entry_timeout,
# attr_timeout); after a write it asks again by itself. Virtual files are asked for every time.
KEEP_S: Final = 3600.0
VIRTUAL: Final = (Kind.PRIMARY, Kind.LAG, Kind.POSITION)
WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
BLOCK_BYTES: Final = 512
PF_EXITING: Final = 4


P = ParamSpec("P")
T = TypeVar("T")


class VirtualHandle:
    """The content of a virtual file as it was when opened."""

    __slots__ = ("_content",)

    def __init__(self, data: bytes) -> None:
        self._content = data

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    async def write_request(self, offset: int, data: bytes) -> int:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def sync(self) -> None:
        """Nothing to make durable."""


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


class Operations(pyfuse3.Operations):
    """pyfuse3's handler; one per mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, store: Store, access: Access) -> None:
        super().__init__()
        self.store = store
        self._access = access
        self.tree = Tree(store, access)
        self._handles: dict[int, File | VirtualHandle] = {}
        # Who opened a WAL, by handle: when it is closed, it matters whether that process still lives.
        self._openers: dict[int, int] = {}
        # Directories in which names of other files than journals have changed since they were made durable.
        self._changed_folders: set[str] = set()
        # Handles that can only write a database file: copies into the mount.
        self._importing: set[int] = set()
        self._next_handle = 1

    # -- the hot path: no wrapper, no lookup beyond the handle -----------------------------------------------------

    def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> Coroutine[Any, Any, int]:
        return self._handles[fh].write_request(off, buf)

    @translated
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return await self._handles[fh].read(off, size)

    @translated
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        if fh in self._importing:
            file = self._handles[fh]
            assert isinstance(file, DatabaseFile)
            await file.copied()

    @translated
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:  # noqa: FBT001
        await self._handles[fh].sync()

    @translated
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:  # noqa: FBT001
        folder = self.tree.inode(fh).name
        if folder not in self._changed_folders:
            return  # names of journals need not be durable before their databases' files change
        self._changed_folders.discard(folder)
        path = self.store.file_path(folder)
        try:
            await self.store.calls.run(lambda: self.store.disk.fsync_directory(path))
        except OSError:
            self._changed_folders.add(folder)
            raise
        self.tree.journals.directory_synced(path)

    # -- names -----------------------------------------------------------------------------------------------------

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
        return self._attributes(self.tree.inode(inode))

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
        entry.st_size = len(data)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = modified_ns

    # -- files -----------------------------------------------------------------------------------------------------

    def _handle(self, file: File | VirtualHandle) -> pyfuse3.FileHandleT:
        handle = pyfuse3.FileHandleT(self._next_handle)
        self._next_handle += 1
        self._handles[handle] = file
        return handle

    @translated
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        found = self.tree.inode(inode)
        if found.kind in VIRTUAL:
            assert found.kind is not None
            data = content(found.kind, kind_of(found.name)[1], self.store, self._access)
            if data is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            if flags & WRITE_FLAGS:
                raise pyfuse3.FUSEError(errno.EROFS)
            return pyfuse3.FileInfo(fh=self._handle(VirtualHandle(data[0])), direct_io=True, keep_cache=False)
        file = found.file
        assert file is not None
        if flags & WRITE_FLAGS and not isinstance(file, ShmFile):
            self._check_writer(ctx)
        file.ensure_open()
        if flags & os.O_TRUNC:
            await file.truncate(0)
        handle = self._handle(file)
        if isinstance(file, WalFile):
            self._openers[handle] = ctx.pid
        elif isinstance(file, DatabaseFile) and flags & os.O_ACCMODE == os.O_WRONLY:
            self._importing.add(handle)
            file.importers += 1
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    def _check_writer(self, ctx: pyfuse3.RequestContext) -> None:
        """On a replica only the applier writes; SQLite then opens the database read-only by itself."""
        if not self._access.primary and not self._access.is_applier(ctx.pid):
            raise pyfuse3.FUSEError(errno.EROFS)

    @translated
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        path = self.tree.path(parent_inode, name)
        kind, stem = kind_of(path)
        if kind in VIRTUAL:
            raise pyfuse3.FUSEError(errno.EACCES)
        if kind is Kind.SHM:
            self._check_owner(path, stem)
            if self.tree.shm(path) is None:
                self.tree.make_shm(path, stat.S_IFREG | (mode & 0o7777))
        elif not self.store.file_path(path).exists():
            self._check_writer(ctx)
            self._create_file(path, kind, stem, mode, ctx)
        elif flags & os.O_EXCL:
            raise pyfuse3.FUSEError(errno.EEXIST)
        inode = self.tree.take(path, directory=False)
        attributes = self._entry(inode)
        return await self.open(inode.number, flags & ~(os.O_CREAT | os.O_EXCL), ctx), attributes

    def _name_changes(self, path: str, kind: Kind | None) -> None:
        if kind in (None, Kind.DATABASE):
            self._changed_folders.add(path.rpartition("/")[0])

    def _check_owner(self, path: str, stem: str) -> None:
        if not self.store.file_path(stem).is_file():
            log.warning("file_refused", file=path, reason="there is no database of that name beside it")
            raise pyfuse3.FUSEError(errno.EACCES)

    def _create_file(self, path: str, kind: Kind, stem: str, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext) -> None:
        if kind is Kind.DATABASE:
            problem = name_problem(path) or self.store.name_problem(path)
            if problem is not None:
                log.warning("file_refused", file=path, reason=problem)
                raise pyfuse3.FUSEError(errno.EACCES)
        else:
            self._check_owner(path, stem)
        self._name_changes(path, kind)
        target = self.store.file_path(path)
        descriptor = self.store.disk.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode & 0o7777)
        if os.geteuid() == 0 and (ctx.uid, ctx.gid) != (0, 0):
            os.fchown(descriptor, ctx.uid, ctx.gid)
        inode = self.tree.take(path, directory=False)
        assert inode.file is not None
        inode.file.close()
        inode.file.descriptor = descriptor

    @translated
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        file = self._handles.pop(fh, None)
        if isinstance(file, WalFile):
            await file.released(opener_is_gone=has_ended(self._openers.pop(fh, 0)))
        elif isinstance(file, DatabaseFile):
            if fh in self._importing:
                self._importing.discard(fh)
                file.importers -= 1
                file.left()
            if file.rejected:
                self._remove_rejected(file)

    def _remove_rejected(self, file: DatabaseFile) -> None:
        """Take away the empty file that somebody wanted to fill with something else, once nobody has it open."""
        if not file.unlinked and not file.size() and file not in self._handles.values():
            self.store.disk.unlink(file.path)
            self.removed_here(file.name)

    @translated
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        found = self.tree.inode(inode)
        if found.kind in VIRTUAL:
            raise pyfuse3.FUSEError(errno.EROFS)
        file = found.file
        if not isinstance(file, ShmFile):
            self._check_writer(ctx)
        if fields.update_size:
            if file is None:
                raise pyfuse3.FUSEError(errno.EISDIR)
            await file.truncate(attr.st_size)
        if not isinstance(file, ShmFile):
            self._set_attributes(self.store.file_path(found.name), found, attr, fields)
        return self._attributes(found)

    def _set_attributes(
        self, path: Path, inode: Inode, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields
    ) -> None:
        if inode.removed:
            return
        if fields.update_mode:
            path.chmod(stat.S_IMODE(attr.st_mode))
        if fields.update_uid or fields.update_gid:
            os.chown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            status = path.stat()
            if fields.update_mtime and inode.file is not None:
                inode.file.modified_ns = attr.st_mtime_ns
            os.utime(
                path,
                ns=(
                    attr.st_atime_ns if fields.update_atime else status.st_atime_ns,
                    attr.st_mtime_ns if fields.update_mtime else status.st_mtime_ns,
                ),
            )

    @translated
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        path = self.tree.path(parent_inode, name)
        kind, _ = kind_of(path)
        if kind in VIRTUAL:
            raise pyfuse3.FUSEError(errno.EACCES)
        inode = self._find(path)
        if not isinstance(inode.file, ShmFile):
            self._check_writer(ctx)
        file = inode.file
        if isinstance(file, DatabaseFile):
            if file.database is not None and self._access.primary:
                file.database.drop()
                log.info("database_dropped", database=path, position=str(self.store.databases[path].position))
        elif isinstance(file, WalFile):
            if not self._access.primary:
                # The applier's connection was the last one: an empty WAL lets read-only connections go on.
                raise pyfuse3.FUSEError(errno.EROFS)
            file.may_unlink()
        target = self.store.file_path(path)
        if isinstance(file, JournalFile | SuperJournalFile):
            await file.unlink(lambda: self.store.disk.unlink(target))
        elif not isinstance(file, ShmFile):
            self.store.disk.unlink(target)
        self._name_changes(path, kind)
        self.tree.remove(path)

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

    def removed_here(self, path: str) -> None:
        """A database was dropped by replication: take its names away from the kernel too."""
        for name in (path, f"{path}-wal", f"{path}-shm"):
            folder, _, last = name.rpartition("/")
            parent = self.tree.known(folder)
            inode = self.tree.remove(name)
            if parent is not None and inode is not None:
                # Asynchronous: the kernel may hold the directory's lock for a request that waits for us.
                pyfuse3.invalidate_entry_async(
                    pyfuse3.InodeT(parent.number), last.encode("utf-8", "surrogateescape"), ignore_enoent=True
                )


def has_ended(task_id: int) -> bool:
    """Whether the thread that the kernel named is gone, or about to go (proc(5), stat: flags; PF_EXITING is 4)."""
    try:
        fields = Path(f"/proc/{task_id}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True
    return bool(int(fields[6]) & PF_EXITING)


assert pyfuse3.ROOT_INODE == ROOT_INODE
