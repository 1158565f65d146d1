"""What the kernel asks about open files, dispatched.

Knows FUSE's requests, handles, and which files may be made, opened or removed by whom. Does not know names and their
attributes (mount.name_operations), nor what a write means (the files). Each method that pyfuse3 calls translates errors
once.
"""

import errno
import os
import stat
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyfuse3
import structlog
import trio

from litereplica.errors import LitereplicaError
from litereplica.ltx.position import Position
from litereplica.mount.access import Access
from litereplica.mount.cut_off import CutOffHandle, OldIndexHandle, spoil
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.files import AppliedHandle, File, ShmFile
from litereplica.mount.halt_file import HaltHandle, open_halt
from litereplica.mount.journal_file import JournalFile, SuperJournalFile
from litereplica.mount.name_operations import VIRTUAL, NameOperations, forget_attributes, forget_content, translated
from litereplica.mount.opener import has_ended, process_of
from litereplica.mount.rollback import ON_THE_PRIMARY, roll_back_abandoned
from litereplica.mount.tree import Inode, Kind, kind_of
from litereplica.mount.virtual import VirtualHandle, content
from litereplica.mount.wal_file import WalFile
from litereplica.sqlite.version import name_problem
from litereplica.store.database import ROLLBACK_MODE
from litereplica.store.store import Store

if TYPE_CHECKING:
    from litereplica.ltx.format import Origin

log = structlog.get_logger()

WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
CUT_PASSES: Final = 20


Handle = File | AppliedHandle | VirtualHandle | HaltHandle | CutOffHandle | OldIndexHandle


class Operations(NameOperations):
    """pyfuse3's handler; one per mount."""

    def __init__(self, store: Store, access: Access) -> None:
        super().__init__(store, access)
        self._handles: dict[int, Handle] = {}
        # Who opened a WAL or a journal, by handle: when it is closed, it matters whether that process still lives.
        self._openers: dict[int, int] = {}
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

    # -- files -----------------------------------------------------------------------------------------------------

    def _handle(self, file: Handle) -> pyfuse3.FileHandleT:
        handle = pyfuse3.FileHandleT(self._next_handle)
        self._next_handle += 1
        self._handles[handle] = file
        return handle

    @translated
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return await self._open(inode, flags, ctx, waits=True)

    async def _open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext, *, waits: bool
    ) -> pyfuse3.FileInfo:
        found = self.tree.inode(inode)
        if found.kind in VIRTUAL:
            handle = self._handle(await self._open_virtual(found, flags, ctx))
            return pyfuse3.FileInfo(fh=handle, direct_io=True, keep_cache=False)
        file = found.file
        assert file is not None
        if found.removed:
            # The kernel has not heard of it yet, and looks for the name again (open(2) is tried anew on ESTALE).
            raise pyfuse3.FUSEError(errno.ESTALE)
        applies = False
        if flags & WRITE_FLAGS and not isinstance(file, ShmFile):
            if waits:
                await self._access.wait_open(ctx.pid)
            applies = self._check_writer(ctx, of_content=not is_import(file, flags))
        file.ensure_open()
        if flags & os.O_TRUNC:
            await file.truncate(0)
        if applies:
            handle = self._handle(AppliedHandle(file))
            self._openers[handle] = ctx.pid
            return pyfuse3.FileInfo(fh=handle, keep_cache=True)
        handle = self._handle(file)
        if isinstance(file, JournalFile) and not self._access.primary:
            # A transaction that one thread begins and another one ends is nobody's that died.
            self._openers[handle] = process_of(ctx.pid)
        elif isinstance(file, WalFile | JournalFile):
            self._openers[handle] = ctx.pid
        elif isinstance(file, DatabaseFile) and is_import(file, flags):
            self._importing.add(handle)
            file.importers += 1
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    async def _open_virtual(self, inode: Inode, flags: int, ctx: pyfuse3.RequestContext) -> VirtualHandle | HaltHandle:
        assert inode.kind is not None
        _, stem = kind_of(inode.name)
        data = content(inode.kind, stem, self.store, self._access)
        if data is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        if not flags & WRITE_FLAGS:
            return VirtualHandle(data[0])
        if inode.kind is not Kind.HALT or self._access.elsewhere is None:
            raise pyfuse3.FUSEError(errno.EROFS)
        return HaltHandle(data[0], await open_halt(self._access.elsewhere, stem, ctx.pid))

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
        if kind is Kind.HALT and content(kind, stem, self.store, self._access) is not None and not flags & os.O_EXCL:
            pass  # it is there: open(2) with O_CREAT, as a shell's > has it
        elif kind in VIRTUAL:
            raise pyfuse3.FUSEError(errno.EACCES)
        elif kind is Kind.SHM:
            self._check_owner(path, stem)
            if self.tree.shm(path) is None:
                self.tree.make_shm(path, stat.S_IFREG | (mode & 0o7777))
        elif not self.store.file_path(path).exists():
            # Not held back by a handoff: whoever makes a journal has SQLite's lock already, and the kernel keeps the
            # folder locked while a name is made in it, so that the applier, which is to take that lock, would wait too.
            if kind is Kind.SUPER_JOURNAL and self._access.forwards:
                log.warning(
                    "commit_refused", file=path, reason=f"a transaction over several databases {ON_THE_PRIMARY}"
                )
                raise pyfuse3.FUSEError(errno.EROFS)
            self._check_writer(ctx, of_content=kind is not Kind.DATABASE or flags & os.O_ACCMODE == os.O_RDWR)
            self._create_file(path, kind, stem, mode, ctx)
        elif flags & os.O_EXCL:
            raise pyfuse3.FUSEError(errno.EEXIST)
        inode = self.tree.take(path, directory=False)
        attributes = self._entry(inode)
        return await self._open(inode.number, flags & ~(os.O_CREAT | os.O_EXCL), ctx, waits=False), attributes

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
            self.retire(path)
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
        if isinstance(file, CutOffHandle | OldIndexHandle):
            file = file.before
        if isinstance(file, HaltHandle):
            file.release()
        elif isinstance(file, AppliedHandle):
            await self._applier_closes(file.file, self._openers.pop(fh, 0))
        elif isinstance(file, WalFile):
            # Of one that is hidden too: to look after the wal-index in vain does no harm.
            await file.released(opener_is_gone=has_ended(self._openers.pop(fh, 0)) is not False)
        elif isinstance(file, JournalFile):
            # Not of one that is hidden: SQLite closes a journal before it deletes it, which is the COMMIT.
            if has_ended(self._openers.pop(fh, 0)) and not self._access.primary:
                await self._abandon(file)
        elif isinstance(file, DatabaseFile):
            if fh in self._importing:
                self._importing.discard(fh)
                file.importers -= 1
                file.left()
            if file.rejected:
                self._remove_rejected(file)

    async def _applier_closes(self, file: File, task_id: int) -> None:
        """On the primary it may have died in a transaction of another node, as any writer may."""
        if isinstance(file, WalFile) and self._access.primary:
            await file.released(opener_is_gone=has_ended(task_id) is not False)

    async def _abandon(self, journal: JournalFile) -> None:
        """The writer of a transaction died and this is no primary, where the next reader would roll it back."""
        if journal.is_live and not journal.unlinked and journal not in self._handles.values():
            inode = self.tree.known(journal.owner.name)
            number = inode.number if inode is not None else 0
            if await roll_back_abandoned(self.store, journal, partial(forget_content, number)):
                self.removed_names(journal.name)

    # -- transactions of other nodes, on the primary -----------------------------------------------------------------

    def expect(self, name: str, base: Position, origin: "Origin") -> None:
        """The applier is about to commit a transaction of another node, upon ``base``."""
        self._access.expected[name] = (base, origin)

    def expect_nothing(self, name: str) -> None:
        """Nothing that the applier commits to the database counts any more."""
        self._access.expected.pop(name, None)

    def indexed_databases(self) -> set[str]:
        """Names of databases whose wal-index alone says how far their WALs are committed: somebody has it open.

        Without one, who opens the database next goes by the file. Nor is it so where a transaction is held: that WAL is
        followed here already, and the applier might have to wait for the kernel's lock on it.
        """
        files = (inode.file for inode in self.tree.everything())
        held = {
            file.name
            for file in files
            if isinstance(file, DatabaseFile) and (file.is_held or (file.wal is not None and file.wal.is_held))
        }
        return {kind_of(file.name)[1] for file in self._handles.values() if isinstance(file, ShmFile)} - held

    def make_way(self, path: str) -> None:
        """Take away what an application was making under a name that is another node's database now. Raises OSError.

        Its transaction fails: no name is left by which it could end. What it did not make just now is kept.
        """
        self.store.make_way(path)
        names = (f"{path}-journal", f"{path}-wal", path)
        for name in names:
            inode = self.tree.known(name)
            if inode is not None and isinstance(inode.file, JournalFile):
                self.tree.journals.live.discard(inode.file)
            target = self.store.file_path(name)
            if target.exists():
                self.store.disk.unlink(target)
        self.removed_names(*names, f"{path}-shm")

    async def cut_off(self, name: str) -> None:
        """Nobody goes on with the files that a database has now: SQLite refuses each connection until it is closed.

        Who opens it when this has returned gets what is there then.
        """
        # Who asks for a name meanwhile makes another pass necessary. Somebody who does nothing else is cut off by the
        # last one, too; only what the kernel has of it by then it may still read.
        for _ in range(CUT_PASSES):
            if not (numbers := self._cut_off(name)):
                return
            # Twice: the kernel keeps a page that is changed while it is dropped, and says nothing.
            for number in (*numbers, *numbers):
                await trio.to_thread.run_sync(forget_content, number)
        self._cut_off(name)

    def _cut_off(self, name: str) -> list[int]:
        """The inodes of which the kernel has to forget what it caches; they have no names any more."""
        inodes = [found for each in (name, f"{name}-shm") if (found := self.tree.known(each)) is not None]
        files = [inode.file for inode in inodes]
        connections = 0
        for number, handle in self._handles.items():
            file = handle.file if isinstance(handle, AppliedHandle) else handle
            if file not in files:
                continue
            assert isinstance(handle, File | AppliedHandle)
            if isinstance(file, ShmFile):
                self._handles[number] = OldIndexHandle(handle, file)
            else:
                connections += file is handle
                self._handles[number] = CutOffHandle(handle)
        if (index := self.tree.shm(f"{name}-shm")) is not None:
            spoil(index)
        journal = self.tree.known(f"{name}-journal")
        if journal is not None and isinstance(journal.file, JournalFile):
            self.tree.journals.live.discard(journal.file)
        for inode in inodes:
            inode.is_cut_off = inode.kind is Kind.DATABASE
        self.removed_names(f"{name}-journal", f"{name}-wal", f"{name}-shm", name)
        if connections:
            log.warning(
                "connections_cut_off", database=name, connections=connections,
                reason="what they know is lost, and they might not notice: close them, and open the database again",
            )  # fmt: skip
        return [inode.number for inode in inodes]

    # -- a new role ------------------------------------------------------------------------------------------------

    def databases_in_use(self) -> set[str]:
        """Names of databases that somebody but the applier has open."""
        return {file.name for file in self._handles.values() if isinstance(file, DatabaseFile)}

    def begin_as_primary(self, frames: Mapping[str, int]) -> None:
        """Follow the WALs from here on; ``frames``: how many of each, by database, are committed.

        Raises OSError, Corrupt; then nothing else has changed.
        """
        for database in self.store.databases.values():
            name = f"{database.name}-wal"
            path = self.store.file_path(name)
            if database.exists and path.exists() and (path.stat().st_size or self.tree.known(name) is not None):
                wal = self.tree.take(name, directory=False).file
                assert isinstance(wal, WalFile)
                wal.begin_as_primary(frames.get(database.name, 0))

    async def end_as_primary(self) -> dict[str, tuple[int, int, int]]:
        """Nobody but the applier writes any more: salts and committed frames of each WAL, by database.

        No commit is under way.
        """
        found = {}
        for inode in self.tree.everything():
            if isinstance(inode.file, WalFile):
                salts_and_frames = inode.file.end_as_primary()
                if salts_and_frames[2]:
                    found[kind_of(inode.name)[1]] = salts_and_frames
        self.forget_names()
        for journal in list(self.tree.journals.live):
            try:
                await self._abandon(journal)
            except (OSError, LitereplicaError) as error:
                # It stays hot: whoever opens the database next plays it back, the applier above all.
                log.error("journal_not_rolled_back", file=journal.name, reason=str(error))  # noqa: TRY400  no bug
        return found

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
            if found.kind is Kind.HALT and self._access.elsewhere is not None:
                return self._attributes(found)  # a shell's > cuts it first
            raise pyfuse3.FUSEError(errno.EROFS)
        file = found.file
        applies = False
        if not isinstance(file, ShmFile) and not is_rolling_back(file):
            applies = self._check_writer(ctx, of_content=file is not None)
        if fields.update_size:
            if file is None:
                raise pyfuse3.FUSEError(errno.EISDIR)
            if applies and not self._access.primary:
                await file.truncate_applied(attr.st_size)
            elif not (isinstance(file, WalFile) and not attr.st_size and self._wal_stays(file, ctx)):
                try:
                    await file.truncate(attr.st_size)
                except BaseException:
                    if isinstance(file, JournalFile) and not file.is_live:
                        # It has ended all the same: what the kernel has of it would be played back.
                        forget_attributes(found.number)
                    raise
        if not isinstance(file, ShmFile):
            self._set_attributes(self.store.file_path(found.name), found, attr, fields)
        return self._attributes(found)

    def _wal_stays(self, wal: WalFile, ctx: pyfuse3.RequestContext) -> bool:
        """Whether a WAL that is to go, or to be emptied, is to be found by others who have the database open.

        One in rollback mode has a WAL here because the node was a replica, and commits through it do not count in
        page 1. Who had it open before, and finds no WAL, knows by that counter alone whether its pages are old; an
        empty WAL is none to SQLite (os_unix.c, unixAccess).
        """
        database = wal.owner.database
        if not self._access.primary or database is None or database.journal_mode != ROLLBACK_MODE:
            return False
        handles = sum(each is wal.owner for each in self._handles.values())
        return handles > (0 if self._access.is_applier(ctx.pid) else 1)

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
        if isinstance(inode.file, DatabaseFile):
            # A copy that is being logged would be a database without a file.
            await inode.file.wait_adopted()
            inode = self._find(path)
        file = inode.file
        if not isinstance(file, ShmFile) and not is_rolling_back(file):
            self._check_writer(ctx, of_content=isinstance(file, JournalFile | SuperJournalFile))
        if isinstance(file, DatabaseFile):
            self._drop(path, file)
        elif isinstance(file, WalFile):
            if not self._access.primary:
                # The applier's connection was the last one: an empty WAL lets read-only connections go on.
                raise pyfuse3.FUSEError(errno.EROFS)
            if self._wal_stays(file, ctx):
                raise pyfuse3.FUSEError(errno.EBUSY)  # SQLite does not look at what comes of it
            file.may_unlink()
        target = self.store.file_path(path)
        if isinstance(file, JournalFile | SuperJournalFile):
            await self._unlink_journal(path, kind, file)
        elif not isinstance(file, ShmFile):
            try:
                self.store.disk.unlink(target)
            except OSError:
                if (known := self.store.databases.get(path)) is not None and not known.exists:
                    # The drop is logged: nobody goes on with it, and the file is one that no log knows.
                    self._removed(path, kind)
                raise
        self._removed(path, kind)

    async def _unlink_journal(self, path: str, kind: Kind | None, file: JournalFile | SuperJournalFile) -> None:
        target = self.store.file_path(path)
        try:
            await file.unlink(lambda: self.store.disk.unlink(target))
        except BaseException:
            if not target.exists():
                # It has ended all the same.
                self._name_changes(path, kind)
                self.removed_names(path)
            raise

    def _drop(self, path: str, file: DatabaseFile) -> None:
        """Log that the database is gone, if it is one by now. Raises EBUSY, EIO, OSError."""
        known = self.store.databases.get(path)
        if known is not None and known.log.uncounted:
            raise pyfuse3.FUSEError(errno.EBUSY)
        if file.database is not None and self._access.primary:
            with self._access.committing(path):
                self._access.check_lock(path)
                file.drop(file.database)
            log.info("database_dropped", database=path, position=str(self.store.databases[path].position))

    def _removed(self, path: str, kind: Kind) -> None:
        self._name_changes(path, kind)
        self.tree.remove(path)


def is_import(file: File, flags: int) -> bool:
    """Whether somebody is about to copy a database file here: SQLite always opens for reading too."""
    return isinstance(file, DatabaseFile) and flags & os.O_ACCMODE == os.O_WRONLY


def is_rolling_back(file: File | None) -> bool:
    """Whether the change is one that undoes a transaction, which its writer may do on any node."""
    if isinstance(file, DatabaseFile):
        return file.is_protected
    return isinstance(file, SuperJournalFile) or (isinstance(file, JournalFile) and file.is_live)
