"""Rollback journals of the mount, and the super-journals that tie several of them together.

Knows when a journal begins to protect its database file and what ends it: its end is the commit. Does not know what was
committed (mount.rollback).
"""

import contextlib
import errno
from pathlib import Path
from typing import TYPE_CHECKING

from litereplica.mount.access import Access
from litereplica.mount.database_file import Finish
from litereplica.mount.elsewhere import NOT_KNOWN_DURABLE
from litereplica.mount.files import File, fence_for
from litereplica.mount.replica_journal import begin_elsewhere
from litereplica.mount.rollback import end_journals
from litereplica.sqlite.journal import JOURNAL_MAGIC, is_live_journal, super_journal_name
from litereplica.store.store import Store

if TYPE_CHECKING:
    from litereplica.mount.database_file import DatabaseFile

_MAGIC_BYTES = 8


class Journals:
    """The journals of a mount that somebody else asks for: ``live`` ones, and ``unnamed`` ones.

    A super-journal commits live ones; the name of an unnamed one becomes durable with its directory. ``supers``: last
    components of the super-journals' names. They are enough, as 32 bits of each are random (vdbeaux.c, vdbeCommit), and
    more cannot be asked for: their writers may know the mount, or a folder of it, by another path.
    """

    __slots__ = ("live", "supers", "unnamed")

    def __init__(self) -> None:
        self.live: set[JournalFile] = set()
        self.unnamed: set[JournalFile] = set()
        self.supers: set[str] = set()

    def directory_synced(self, folder: Path) -> None:
        """An application has made the names in ``folder`` durable."""
        self.unnamed -= {each for each in self.unnamed if each.path.parent == folder}


class JournalFile(File):
    """A rollback journal.

    As long as the backing database file has nothing that it would have to undo, its magic is kept out of its own
    backing file: it was not made durable, and what a loss of power leaves of it must not be played back.
    """

    __slots__ = ("_changes", "_hidden", "_journals", "_owner", "_synced", "is_appliers", "is_live", "turns")

    def __init__(self, store: Store, access: Access, owner: "DatabaseFile", name: str, journals: Journals) -> None:
        super().__init__(store, access, name)
        self._owner = owner
        self._journals = journals
        # It begins with the magic: whoever opens the database next would play it back.
        self.is_live = False
        # How often it has begun or ended: another transaction may be in the same file.
        self.turns = 0
        # Of the primary: it protects a transaction of another node, which the applier makes.
        self.is_appliers = False
        # Readers of the mount see the magic, the backing file does not have it.
        self._hidden = False
        self._changes = 0
        self._synced = -1
        journals.unnamed.add(self)
        try:
            if self.path.exists():
                self.ensure_open()
                self._set_live(is_live_journal(self.read_now(0, _MAGIC_BYTES)))
        except OSError:
            journals.unnamed.discard(self)
            self.close()
            raise

    @property
    def owner(self) -> "DatabaseFile":
        """The database file that it protects."""
        return self._owner

    @property
    def is_durable(self) -> bool:
        """Its bytes, magic and all, and its name are on the disk: the way back survives a loss of power."""
        return not self._hidden and self._synced == self._changes and self not in self._journals.unnamed

    def _set_live(self, live: bool) -> None:  # noqa: FBT001  the one state of it
        self.is_live = live
        self.turns += 1
        if live:
            self._journals.live.add(self)
        else:
            self._journals.live.discard(self)

    async def write_expected(self, offset: int, data: bytes) -> int:
        was_live = self.is_live
        written = await self.write(offset, data)
        if self.is_live and not was_live:
            self.is_appliers = True
        return written

    async def write(self, offset: int, data: bytes) -> int:
        if offset >= _MAGIC_BYTES or not data:
            if data == JOURNAL_MAGIC:
                self._check_super_journal(offset)
            self._changes += 1
            return self.store.disk.pwrite(self.descriptor, data, offset)
        before = self.read_now(0, _MAGIC_BYTES)
        size = len(data)
        after = (before[:offset].ljust(offset, b"\0") + data)[:_MAGIC_BYTES] + before[offset + len(data) :]
        lives = is_live_journal(after)
        if lives and not self.is_live:
            # A transaction begins; of the applier, if ``write_expected`` says so.
            self.is_appliers = False
            if self.access.forwards:
                await begin_elsewhere(self.access, self._owner)
            else:
                self.access.check(self._owner.name)
        if self.is_live and not lives:
            await self._end(lambda: self._write_end(offset, data))
        else:
            self._changes += 1
            hidden = lives and not self._owner.is_written_through
            if hidden:
                data = bytes(_MAGIC_BYTES - offset) + data[_MAGIC_BYTES - offset :]
            self.store.disk.pwrite(self.descriptor, data, offset)
            self._hidden = hidden
            if lives != self.is_live:
                self._set_live(lives)
        return size

    def _write_end(self, offset: int, data: bytes) -> None:
        """Raises OSError; then the journal is as it was: one with half of an end undoes nothing."""
        before = None
        with contextlib.suppress(OSError):  # a rollback needs an end more than a way back
            before = super().read_now(offset, len(data))
        try:
            self.store.disk.pwrite(self.descriptor, data, offset)
        except OSError as error:
            self._changes += 1
            is_put_back = False
            if before is not None:
                with contextlib.suppress(OSError):
                    self.store.disk.pwrite(self.descriptor, before, offset)
                    is_put_back = True
            if not is_put_back:
                fence_for(self.access, f"the journal of {self._owner.name} is ended by half", error)
            raise

    def _check_super_journal(self, offset: int) -> None:
        """The journal is about to name its super-journal, with JOURNAL_MAGIC at ``offset`` as the end of that.

        One outside the mount is refused here (EIO), where SQLite still listens: it removes a super-journal without the
        node hearing of it, and pays no heed to errors of what comes after (vdbeaux.c, vdbeCommit).
        """

        def read(start: int, size: int) -> bytes:
            return (self.read_now(start, min(size, offset - start)) + JOURNAL_MAGIC)[:size]

        path = super_journal_name(read, offset + _MAGIC_BYTES)
        if path is not None and _last(path) not in self._journals.supers:
            reason = (
                f"a transaction over several databases whose main one is outside the mount ({path}): open the one in "
                f"the mount first and attach the other, or put this one into WAL mode"
            )
            raise self.refuse("commit_refused", reason, errno.EIO)

    def read_now(self, offset: int, size: int) -> bytes:
        data = super().read_now(offset, size)
        if self._hidden and offset < _MAGIC_BYTES:
            end = min(_MAGIC_BYTES - offset, len(data))
            data = JOURNAL_MAGIC[offset : offset + end] + data[end:]
        return data

    async def read(self, offset: int, size: int) -> bytes:
        return self.read_now(offset, size)

    async def truncate(self, size: int) -> None:
        self.ensure_open()
        if self.is_live and size < _MAGIC_BYTES:
            await self._end(lambda: self.store.disk.truncate(self.descriptor, size), undoes=self.is_appliers)
            return
        self._changes += 1
        await super().truncate(size)

    async def unlink(self, finish: Finish) -> None:
        """Remove its name by ``finish``; the commit, if it protected anything."""
        if self.is_live:
            await self._end(finish)
        else:
            finish()

    async def _end(self, finish: Finish, *, undoes: bool = False) -> None:
        """``undoes``: the applier commits by removing its journal, and cuts the one of what it has put back.

        Raises OSError, FUSEError; of what is committed too, when it has ended (not ``is_live``) and may not be durable.
        """
        is_known = True
        if not self._owner.unlinked:
            is_known = await end_journals(self.store, self.access, [self._owner], finish, undoes=undoes)
        elif self.access.forwards and (self._owner.is_written_through or self._owner.held):
            raise self.refuse("commit_refused", "the database file has given way to the primary's", errno.EIO)
        else:
            finish()
        self._set_live(False)  # noqa: FBT003
        self.is_appliers = False
        self._changes += 1
        self._hidden = False
        _check_known(self._owner, is_known=is_known)

    def forget(self) -> None:
        """What it protected has been undone: remove the file, if that has not happened. Raises OSError."""
        if self.path.exists():
            self.store.disk.unlink(self.path)
        self._set_live(False)  # noqa: FBT003
        self.is_appliers = False

    def close(self) -> None:
        if self.unlinked:
            self._journals.unnamed.discard(self)
        super().close()

    async def sync(self) -> None:
        if self._owner.database is not None and not self._owner.is_written_through:
            return  # the backing file has nothing yet that it would have to undo
        await self._sync()

    async def _sync(self) -> None:
        changes = self._changes
        await super().sync()
        self._synced = changes

    async def make_durable(self) -> None:
        """Before the first change of the backing database file, whatever ``synchronous`` is. Raises OSError."""
        if self._hidden:
            await self._sync()
            self.unhide()
        if self._synced != self._changes:
            await self._sync()
        if self in self._journals.unnamed:
            disk, folder = self.store.disk, self.path.parent
            await self.store.calls.run(lambda: disk.fsync_directory(folder))
            self._journals.directory_synced(folder)

    def unhide(self) -> None:
        """From here on a start plays it back; unless it is durable, not after a loss of power. Raises OSError."""
        if self._hidden:
            self.store.disk.pwrite(self.descriptor, JOURNAL_MAGIC, 0)
            self._hidden = False
            self._changes += 1

    def depends_on(self, path: str) -> bool:
        """Whether its transaction is committed by the removal of the super-journal ``path``."""
        self.ensure_open()
        name = super_journal_name(self.read_now, self.size())
        return name is not None and _last(name) == _last(path)


class SuperJournalFile(File):
    """Names the journals of one transaction over several databases; its removal commits them all (pager.c)."""

    __slots__ = ("_journals",)

    def __init__(self, store: Store, access: Access, name: str, journals: Journals) -> None:
        super().__init__(store, access, name)
        self._journals = journals
        journals.supers.add(_last(name))

    async def unlink(self, finish: Finish) -> None:
        """Remove its name by ``finish``, and commit what depends on it."""
        journals = [each for each in self._journals.live if each.depends_on(self.name)]
        owners = sorted({each.owner for each in journals if not each.owner.unlinked}, key=lambda each: each.name)
        is_known = True
        if owners:
            is_known = await end_journals(self.store, self.access, owners, finish, journals_stay=True)
        else:
            finish()
        self._journals.supers.discard(_last(self.name))
        if owners:
            _check_known(owners[0], is_known=is_known)


def _check_known(file: "DatabaseFile", *, is_known: bool) -> None:
    """Nothing asks after the end of a journal, as an fsync of a WAL does. Raises EIO: it may not be durable."""
    if not is_known:
        raise file.refuse_commit(NOT_KNOWN_DURABLE, is_unknown=True)


def _last(path: str) -> str:
    return path.rpartition("/")[2]
