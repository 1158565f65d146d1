"""The -wal file of a replica whose applications write.

Knows who writes it in turn (applications and the applier, under SQLite's write lock), how a transaction of an
application is held at the write that completes it, and what its completion, its refusal and the WAL's new beginning do.
Does not know how it is committed elsewhere (mount.elsewhere), nor the frames' rules (sqlite.detector).

Interleavings, and why each is harmless:

- An applier's write between two transactions. Only applications' writes are followed. What the applier writes makes us
  lose sight of the file (``lose_sight``); the first write of an application after it is where SQLite's wal-index says
  that the committed frames end, so the detector resumes there. Both had the write lock, so neither was in the middle.
  What is still kept of a transaction that came to nothing is dropped: written later, it would lie over the applier's.
- A transaction that was refused, and the next one at the same frames. The frame that commits is never in the file as it
  is before its completion: its page is (so that no full disk can come between), its header is zeroes until the one
  write of 24 bytes that completes it. Who reads meanwhile finds it as it will be: the kernel keeps what it reads, and
  does not see that write. A refusal spoils the page, because the kernel may have the header for good, and the two would
  be a transaction for who recovers the WAL; the last part of the page it reads again, since its write has failed. For
  the same reason reads do not bring kept bytes to the file, and what is kept is only written where a frame ends.
- A write that the kernel had cut at a page, and whose last part was refused: SQLite is told that it was a short one and
  writes that part again (seekAndWrite in os_unix.c). It completes nothing any more and is refused too, as is every
  write until a transaction begins where the refused one did (``UnsummedFrames.refuse_rest``), whatever the role is
  by then. Of a COMMIT that is an error though it has happened, that part is refused until anybody writes behind it.
- A writer that dies before its transaction is held: its kept bytes are overlaid or dropped. While it is held: the
  kernel keeps the process, and its locks, until the write is answered. After the completion and before it has
  published: ``Database.claim`` says what is committed; the applier compares before it appends; an application that
  was about to write over it is refused (Rewind), and one that begins the WAL anew too, unless it is all in the
  database file; and the applier is asked to look after the wal-index when the dead writer's handle is released.
- Two writers in turn: each write waits while one is held.
- The record arrives and others after it: it is completed in the stretch in which it is counted (store.awaited), so the
  applier, which is given the next ones, never gets this one. If it differs in page 1 (the primary keeps a change
  counter), the applier lays that over when nobody writes; what it writes too late for that is refused (store.unlaid).
- The WAL begins again (a header with other salts, or cut to nothing): SQLite does so when all that is published is in
  the database file, so at least ``applied`` is.
- This node becomes the primary while a transaction goes on, held or not: the detector that has followed it stays, and
  what is kept too (``follows``). A held one is committed here then. It was made on what the applier had published,
  which is all that is logged: a promotion waits for that.
- This node stops being the primary while a transaction goes on: the detector stays (``begin``).
"""

import contextlib
import errno
from typing import TYPE_CHECKING, Final

import pyfuse3
import structlog

from litereplica.errors import Corrupt, Refused, Unavailable
from litereplica.mount.elsewhere import NOT_KNOWN_DURABLE, BecamePrimary, Lost, commit_elsewhere
from litereplica.mount.first_page import as_sent
from litereplica.mount.kept_file import INVERTED
from litereplica.mount.unsummed import NO_SUMS
from litereplica.mount.wal_pages import FramePages
from litereplica.sqlite.detector import Rewind
from litereplica.sqlite.frames import Transaction
from litereplica.sqlite.outcome import Examined
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, parse_wal_header
from litereplica.store.database import ROLLBACK_MODE, WAL_MODE, Database, journal_mode_of

if TYPE_CHECKING:
    from litereplica.mount.wal_file import WalFile

log = structlog.get_logger()

_SPOILED: Final = b"\xff"
"""What is left of a refused page: no page of a database is only that, so no checksum can fit."""


class ReplicaWal:
    """What a WAL is on a replica. ``WalFile`` asks."""

    __slots__ = ("_failed_end", "_is_followed", "_is_synced", "_unconfirmed", "_wal")

    def __init__(self, wal: "WalFile") -> None:
        self._wal = wal
        # The detector has seen every write since it began; else it resumes at the next one.
        self._is_followed = False
        # The last commit was followed by an fsync: the next one is asked to be durable at once.
        self._is_synced = False
        # The last commit was made elsewhere, and it is not known whether it is durable there (None: there is none).
        self._unconfirmed: bool | None = None
        # Where the last transaction ends, if its writer was told of an error though it is committed; 0 if not.
        self._failed_end = 0

    @property
    def is_followed(self) -> bool:
        """Whether applications were the last who wrote it."""
        return self._is_followed

    # -- roles -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """This node was the primary: all writes have been followed."""
        self._is_followed = True
        self._is_synced = False
        self._unconfirmed = None
        self._failed_end = 0

    def follows(self, frames: int) -> bool:
        """Whether the detector has what somebody who follows the WAL of ``frames`` committed frames would have.

        Raises Corrupt when it has not, though a commit is held.
        """
        wal = self._wal
        if self._is_followed and wal.detector.committed_frames >= frames:
            return True
        if wal.is_held:
            raise Corrupt(f"{wal.name}: a commit is held after {wal.detector.committed_frames} frames, not {frames}")
        return False

    # -- the applier -----------------------------------------------------------------------------------------------

    def lose_sight(self) -> None:
        """The applier writes: no application is in a transaction."""
        self._is_followed = False
        self._failed_end = 0
        self._wal.drop_kept()

    def look_after_index(self) -> None:
        """A writer is dead; perhaps it had not published what was completed."""
        if self._is_followed:
            self._wal.look_after_index()

    # -- writes of applications ------------------------------------------------------------------------------------

    async def write(self, offset: int, data: bytes) -> int:
        """Take a write; raises what ``WalFile.failure`` translates."""
        wal, access = self._wal, self._wal.access
        if access.elsewhere is None:
            # Who opened the file while this node was primary: the transaction ends here.
            access.check(wal.owner.name)
        await wal.wait_held()
        if access.primary:
            return await wal.write_request(offset, data)
        if WAL_HEADER_BYTES <= offset < self._failed_end:
            raise pyfuse3.FUSEError(errno.EIO)
        self._failed_end = 0
        unsummed = wal.unsummed
        if not self._is_followed:
            self._resume(offset)
        if unsummed.end and offset >= unsummed.end:
            wal.check_rest(offset)
        examined = wal.detector.examine(offset, data, wal.read_now)
        if examined is None:
            if len(data) == FRAME_HEADER_BYTES and (data[8:] == NO_SUMS or unsummed.any):
                wal.check_header(offset, data)
            return wal.keep(offset, data)
        if examined.restart and examined.transactions:
            # Never SQLite: the header alone first, then what it makes a transaction of.
            wal.detector.refuse()
            cut = WAL_HEADER_BYTES - offset
            await self.write(offset, data[:cut])
            await self.write(WAL_HEADER_BYTES, data[cut:])
            return len(data)
        if examined.restart:
            self._begin_again(examined, offset, data)
        else:
            await self._commit(examined.transactions, offset, data)
        return len(data)

    def _resume(self, offset: int) -> None:
        """An application begins a transaction where its wal-index says that the committed frames end."""
        wal = self._wal
        wal.drop_kept()
        wal.unsummed.reset()
        header = wal.read_now(0, WAL_HEADER_BYTES)
        frames = 0
        claim = self._database().claim if wal.owner.database is not None else None
        try:
            if offset >= WAL_HEADER_BYTES:
                parsed = parse_wal_header(header)
                frames, rest = divmod(offset - WAL_HEADER_BYTES, FRAME_HEADER_BYTES + parsed.page_size)
                if rest:
                    raise Corrupt(f"it begins at byte {offset}, where no frame does")  # noqa: TRY301
                if claim is not None and claim[:2] == (parsed.salt1, parsed.salt2) and frames < claim[2]:
                    raise Rewind(f"a write at {offset} of the WAL would change a committed frame (of {claim[2]})")
            wal.detector.resume(frames, wal.size(), wal.read_now, trusted=True)
        except Corrupt as error:
            if offset >= WAL_HEADER_BYTES:
                raise wal.refuse(
                    "commit_refused", f"what is written does not follow: {error.message}", errno.EIO
                ) from None
            wal.detector.resume(0, wal.size(), wal.read_now)
        self._is_followed = True

    def _database(self) -> Database:
        database = self._wal.owner.database
        if database is None:
            raise self._wal.refuse("commit_refused", "its database was deleted, or never made", errno.EIO)
        return database

    def _begin_again(self, examined: Examined, offset: int, data: bytes) -> None:
        """The WAL begins again with the header in ``data``. Raises Rewind when something is only in the old one."""
        wal = self._wal
        database = wal.owner.database
        try:
            if database is not None:
                wal.check_folded(database)
                self._folded(database)
            wal.flush_before(examined)
            wal.store.disk.pwrite(wal.descriptor, data, offset)
        except BaseException as error:
            wal.detector.refuse()
            wal.owner.say_refused(error)
            raise
        wal.detector.accept()
        wal.unsummed.reset()

    @staticmethod
    def _folded(database: Database) -> None:
        """All that is visible is in the database file."""
        database.checkpointed(database.applied)
        database.claim = None

    # -- a commit --------------------------------------------------------------------------------------------------

    async def _commit(self, transactions: list[Transaction], offset: int, data: bytes) -> None:
        wal = self._wal
        commit = None
        wal.hold()
        try:
            wal.access.check_elsewhere(wal.owner.name)
            commit = _HeldCommit(wal, self._database(), transactions, offset, data)
            await self._commit_elsewhere(commit, transactions)
        except BaseException as error:
            if commit is None or not commit.is_complete:
                wal.detector.refuse()
                if commit is not None:
                    commit.spoil()
            wal.owner.say_refused(error)
            raise
        else:
            wal.unsummed.reset()
            wal.owner.say_accepted()
        finally:
            wal.let_go()

    async def _commit_elsewhere(self, commit: "_HeldCommit", transactions: list[Transaction]) -> None:
        wal = self._wal
        pages = commit.pages
        if pages.page_size != commit.database.page_size:
            raise wal.refuse("commit_refused", "the page size of a replicated database cannot change", errno.EIO)
        _check_mode(wal, commit.database, pages)
        # In a rollback mode each commit is durable, whatever ``synchronous`` is, and no fsync asks for it afterwards.
        is_always = commit.database.journal_mode == ROLLBACK_MODE
        durable, self._is_synced = self._is_synced or is_always, False
        sent, first_here = as_sent(commit.database, pages)
        try:
            confirmed = await commit_elsewhere(
                wal.access, commit.database, sent, commit.prepare, commit.complete, durable=durable,
                first_here=first_here,
            )  # fmt: skip
            self._unconfirmed = not confirmed
        except BecamePrimary:
            with wal.access.committing(wal.owner.name):
                wal.access.check_lock(wal.owner.name)
                commit.prepare()
                await wal.log(transactions, commit.offset, commit.complete_here)
        except Refused as error:
            raise wal.owner.refuse_commit(error.message) from None
        except Unavailable as error:
            raise wal.owner.refuse_commit(error.message, is_unknown=True) from None
        else:
            if is_always and not confirmed:
                # It is committed, and its writer does not publish it.
                self._failed_end = wal.detector.committed_bytes
                wal.look_after_index()
                raise wal.owner.refuse_commit(NOT_KNOWN_DURABLE, is_unknown=True)

    # -- fsync, truncate -------------------------------------------------------------------------------------------

    async def sync(self, database: Database) -> bool:
        """Make what was committed elsewhere durable there; False when there is nothing of that kind."""
        if self._wal.access.elsewhere is None or self._unconfirmed is None:
            return False
        self._is_synced = True
        if self._unconfirmed:
            try:
                await self._wal.access.elsewhere.make_durable(database.name)
            except (Refused, Unavailable, BecamePrimary) as error:
                if self._wal.access.primary:
                    return False  # it is for this node to make it so
                # As a disk does it: a loss is told once.
                self._unconfirmed = not isinstance(error, Lost)
                raise self._wal.owner.refuse_commit(error.message, is_unknown=True) from None
            self._unconfirmed = False
        return True

    def check_truncate(self, size: int) -> None:
        """An application cuts the WAL, or empties it (``emptied`` comes next). Raises EIO when it may not."""
        wal = self._wal
        database = wal.owner.database
        if wal.access.elsewhere is None or wal.is_held:
            wal.access.check(wal.owner.name)
        if size == 0:
            if database is not None and self._is_needed(database):
                raise wal.refuse(
                    "truncate_refused",
                    "the database is in rollback mode on the primary, and is read through this WAL here",
                    errno.EIO,
                )
            if database is not None:
                wal.check_emptied(database)
            wal.drop_kept()
            return
        if not self._is_followed:
            raise wal.refuse("truncate_refused", "the applier has written it since", errno.EIO)
        try:
            wal.detector.truncate(size)
        except Rewind:
            raise wal.refuse("truncate_refused", "the WAL holds transactions", errno.EIO) from None

    def emptied(self) -> None:
        """It has no bytes any more, and is followed from its start."""
        if (database := self._wal.owner.database) is not None:
            self._folded(database)
        self._is_followed = True

    def _is_needed(self, database: Database) -> bool:
        """Whether page 1 says "rollback", or will: readers must find frames in the WAL then (applier.rollback_mode).

        What is logged may say "WAL" by now, while page 1, all of which is in the file at a cut, does not yet.
        """
        if database.journal_mode == ROLLBACK_MODE:
            return True
        return database.is_behind and journal_mode_of(self._wal.owner.read_now(0, DATABASE_HEADER_BYTES)) != WAL_MODE


def _check_mode(wal: "WalFile", database: Database, pages: FramePages) -> None:
    """Raises EIO when the transaction leaves WAL mode: other connections, here and elsewhere, would go on in it."""
    if database.journal_mode == WAL_MODE and pages.pgnos[0] == 1:
        ((_, first),) = pages.read(0, 1)
        if journal_mode_of(first) != WAL_MODE:
            raise wal.refuse(
                "commit_refused", "WAL mode is left on the primary only (PRAGMA journal_mode): run it there", errno.EIO
            )


class _HeldCommit:
    """The bytes of a write that commits, and what is kept before it.

    ``prepare`` brings all of it to the file but the header of the frame that commits; ``complete`` brings that.
    """

    __slots__ = (
        "_data",
        "_header",
        "_header_at",
        "_is_prepared",
        "_page",
        "_wal",
        "database",
        "is_complete",
        "offset",
        "pages",
    )

    def __init__(
        self, wal: "WalFile", database: Database, transactions: list[Transaction], offset: int, data: bytes
    ) -> None:
        self.database = database
        self.offset = offset
        self.pages = FramePages(wal.detector, transactions, database.lock_page, offset, wal.read_now)
        self.is_complete = False
        self._wal = wal
        self._data = data
        self._is_prepared = False
        # Where the frame is that commits first: nothing after it is valid without it.
        self._page = self._header_at = 0
        self._header = b""
        header = wal.detector.header
        assert header is not None
        self._header_at = WAL_HEADER_BYTES + transactions[0].last_frame * (FRAME_HEADER_BYTES + header.page_size)

    def prepare(self) -> None:
        """Raises OSError: there is no room."""
        if self._is_prepared:
            return
        wal = self._wal
        kept = wal.take_kept(self.offset)
        at, tail = self.offset - len(kept), kept + self._data
        start = self._header_at - at
        self._is_prepared = True
        if 0 <= start <= len(tail) - FRAME_HEADER_BYTES:
            self._header = tail[start : start + FRAME_HEADER_BYTES]
            tail = tail[:start] + bytes(FRAME_HEADER_BYTES) + tail[start + FRAME_HEADER_BYTES :]
            self._page = min(len(tail) - start - FRAME_HEADER_BYTES, self.pages.page_size)
            wal.store.disk.pwrite(wal.descriptor, tail, at)
            wal.show(self._header_at, self._header)
        else:
            # Never SQLite: a part of that header is in the file, so what completes it is all that was written last.
            wal.store.disk.pwrite(wal.descriptor, kept, at)
            self._header, self._header_at = self._data, self.offset

    def complete(self) -> None:
        """It is the cluster's next transaction. Raises OSError."""
        wal, database = self._wal, self.database
        wal.store.disk.pwrite(wal.descriptor, self._header, self._header_at)
        wal.drop_kept()
        wal.detector.accept()
        self.is_complete = True
        header = wal.detector.header
        assert header is not None
        database.claim = (header.salt1, header.salt2, wal.detector.committed_frames)

    def complete_here(self) -> None:
        """It is committed by this node, unless that lost its role in this instant. Raises OSError, EIO."""
        self._wal.access.check(self._wal.owner.name)
        self.complete()
        self.database.claim = None

    def spoil(self) -> None:
        """It will not be committed: nobody may take what is in the file for a transaction."""
        wal = self._wal
        if self._is_prepared:
            if self._page:
                wal.spoil(self._header_at + FRAME_HEADER_BYTES, _SPOILED * self._page)
            with contextlib.suppress(OSError):
                header = bytes(FRAME_HEADER_BYTES) if self._page else self._header.translate(INVERTED)
                wal.store.disk.pwrite(wal.descriptor, header, self._header_at)
            if wal.status().st_size < self.offset:
                # What was kept before the write was not taken, and the kernel has counted it (``drop_kept``).
                with contextlib.suppress(OSError):
                    wal.store.disk.truncate(wal.descriptor, self.offset)
        wal.drop_kept()
        begins_at = wal.detector.committed_bytes
        wal.detector.forget(begins_at)
        wal.unsummed.refuse_rest(begins_at)
