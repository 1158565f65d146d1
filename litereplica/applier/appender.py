"""The files of one database, and how a transaction is appended to its WAL.

Knows the steps of one transaction, in turns that never wait, what has to be true of the wal-index before one, and how
SQLite's WRITE lock is kept between two. Does not know the queue (backlog.py), what is done without a WAL
(committer.py), nor when checkpoints happen (checkpoint.py). worker.py has the interleavings.
"""

import os
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Final

from litereplica.applier import glance, holders
from litereplica.applier.opened import OpenDatabase, open_as_it_is, open_database, open_wal, prepare, uses_wal
from litereplica.applier.pieces import FilePieces, PageSizeChanged, Piece, RecordPieces
from litereplica.applier.protocol import Apply, Install, Look
from litereplica.applier.republish import shows
from litereplica.applier.turns import LOCK_WAIT_S, TimedOut, Turns, Waits
from litereplica.applier.wal_lock import WalLock
from litereplica.applier.wal_writer import WalWriter
from litereplica.errors import Refused, Unavailable
from litereplica.sqlite.shm import WalIndexHeader, read_header
from litereplica.sqlite.wal import WAL_HEADER_BYTES

READERS_WAIT_S: Final = 30.0
"""How long readers may keep the WAL in use when another page size needs a new one; then it is said, and tried again."""

PATIENCE_S: Final = 60.0
"""How long applications may hold the lock once it was said that they do: seldom enough for a log, and the next look at
the files is soon enough for whatever else is wrong with them."""

_READERS_DELAY_S: Final = 0.1
# An application is in a transaction: below a millisecond beside its round trip to the primary. When it was said that it
# stays in there, less often: a turn has several attempts, and they cost a part of a processor.
_APPLY_DELAY_S: Final = 0.001
_PATIENT_DELAY_S: Final = 0.01
# Calls of a microsecond each, in one turn: a busy writer leaves the lock free for a few of them only.
_ATTEMPTS: Final = 20
_RECOVERIES: Final = 3


class Appender:
    """The database at ``path``, called ``name``; ``opened`` is None until it is needed and after a failure.

    ``frames``: in the WAL with the last publication. ``wants_empty_wal``: the next transaction cannot be written before
    the WAL is empty. ``lock``: SQLite's WRITE lock.
    """

    __slots__ = (
        "_is_patient", "_make_room", "_waits", "_wants_empty", "frames", "lock", "name", "opened", "path",
        "wants_empty_wal",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        path: str,
        lock: WalLock,
        make_room: Callable[[], None],
        wants_empty: Callable[[], None],
    ) -> None:
        """``make_room`` is called before files are opened, and may raise Unavailable.

        ``wants_empty`` is called each time ``wants_empty_wal`` is waited for.
        """
        self.name = name
        self.path = path
        self.opened: OpenDatabase | None = None
        self.frames = 0
        self.wants_empty_wal = False
        self.lock = lock
        self._is_patient = False
        # Of an apply that waits for the lock.
        self._waits: Waits | None = None
        self._make_room = make_room
        self._wants_empty = wants_empty

    def forget_files(self) -> None:
        """Close the files; the next transaction opens them anew."""
        opened, self.opened = self.opened, None
        if opened is not None:
            self.lock.give_back(opened)
            opened.close()

    @property
    def uses_wal(self) -> bool:
        """Whether a transaction of the primary goes into a WAL, as SQLite would decide. Raises OSError, Corrupt."""
        opened = self.opened
        if opened is not None:
            if not (opened.broken or opened.is_replaced):
                return True
            self.forget_files()
        return uses_wal(self.path)

    def hurry(self) -> None:
        """Somebody waits for the end of what is under way: no more patience than with a lock that was never said."""
        if self._waits is not None:
            self._waits.shorten(LOCK_WAIT_S)

    def holder(self) -> str:
        """Who has the WRITE lock, for people."""
        return holders.writer(self.path) if self.opened is None else holders.write_lock_holder(self.opened.shm)

    # -- one that is released, or looked at ------------------------------------------------------------------------

    def release(self) -> Turns[WalIndexHeader | None]:
        """Let go of the files; what was committed in that instant, None when there is no WAL with anything in it.

        They stay open until they are used again or forgotten. Raises Unavailable while the wal-index is being changed,
        Corrupt, OSError, sqlite3.Error.
        """
        waits = Waits()
        is_torn = False
        while True:
            if self.opened is not None and self.opened.broken:
                self.forget_files()
            if self.opened is None and (header := glance.published(self.path)) is not None:
                # Applications wrote last, so the mount has followed them, also what is not published (``claim``).
                self.lock.claim = None
                return header
            try:
                opened = self.opened = self.opened or open_wal(self.path)
            except Unavailable as error:
                yield waits.next_delay(error.message)
                continue
            if opened is None:
                break
            if is_torn or not self._shows_claim(opened):
                yield from self._see_claim(opened)
            if (header := opened.retire()) is not None:
                break
            is_torn = True
            yield waits.next_delay(f"the wal-index of {self.path} is being changed")
        self.lock.claim = None
        self.frames = 0
        return header if opened is not None else None

    def _see_claim(self, opened: OpenDatabase) -> Turns[None]:
        """As ``compare``, which needs the WRITE lock, or until that is no longer needed.

        A promotion must not wait for the lock: an application may have it whose commit waits for the promotion.
        """
        attempts = self.compare()
        try:
            for delay_s in attempts:
                if self._shows_claim(opened):
                    return
                yield delay_s
        finally:
            attempts.close()

    def _shows_claim(self, opened: OpenDatabase) -> bool:
        """Whether the wal-index shows what ``claim`` says, or the WAL has begun again since: looked at without a lock.

        It begins again, by its header's new salts, only when all that it held is in the database file; the mount sees
        to that (mount.replica_wal).
        """
        header = read_header(opened.memory.blocks[0])
        if header is None or self.lock.claim is None or shows(header, self.lock.claim):
            return header is not None
        salts = os.pread(opened.wal, WAL_HEADER_BYTES, 0)[16:24]
        return len(salts) == 8 and salts != self.lock.claim.salt1.to_bytes(4) + self.lock.claim.salt2.to_bytes(4)

    def compare(self) -> Turns[None]:
        """Compare the wal-index of the open database with ``claim``, and have it rebuilt if it shows less or is torn.

        Raises as ``append``.
        """
        assert self.opened is not None
        yield from self.lock.take(self.opened, self._patience(), in_line=False)
        self.lock.unlock(self.opened)

    def look(self, wanted: Look, *, may_open: bool) -> tuple[bool, bool]:
        """``shown`` and ``writes`` of Looked. Not ``may_open``: closing a descriptor would drop locks of ours."""
        try:
            if (opened := self.opened) is not None:
                found = glance.judge(opened.shm, opened.memory.blocks[0], wanted)
                if found[0] or not may_open or not opened.is_replaced:
                    return found
                self.forget_files()
            return glance.look(self.path, wanted) if may_open else (False, True)
        except OSError:
            return False, True  # the mount is gone, or a disk fails: to be asked again

    # -- one that the primary has committed ------------------------------------------------------------------------

    def apply(self, batch: list[Apply] | Install) -> Turns[None]:
        """Make what the messages tell the newest state; raises as ``append``."""
        if isinstance(batch, Install):
            yield from self.append(FilePieces(batch))
            return
        starts_at = 0
        while True:
            try:
                yield from self.append(RecordPieces(self.name, batch, starts_at))
            except PageSizeChanged as change:
                # Frames that were written already stay unpublished, and are overwritten.
                starts_at = change.txid
            else:
                return

    def append(self, source: FilePieces | RecordPieces) -> Turns[None]:
        """Make the pages of ``source`` one transaction; raises LitereplicaError, OSError, sqlite3.Error.

        An application that is in a write transaction is waited for, and when it was said once, for long.
        """
        try:
            yield from self._append(source)
        except TimedOut:
            self._is_patient = True
            raise
        self._is_patient = False

    def _append(self, source: FilePieces | RecordPieces) -> Turns[None]:
        pieces = iter(source)
        first = next(pieces, None)
        if first is None:
            return
        if isinstance(source, FilePieces):
            self.lock.claim = None  # whatever was committed before, this replaces it
        if self.opened is not None and self.opened.broken:
            self.forget_files()
        opened = self.opened
        if opened is None:
            self._make_room()
            opened = self.opened = yield from self._open(source.page_size, _page_one(first))
        resized = opened.page_size != source.page_size
        if resized and not source.is_whole:
            # A redo over what a dead applier has published begins with records of the old size: one that changes it
            # follows, or they do not belong here.
            for _ in pieces:
                yield 0.0
            raise Refused(
                f"the records of {self.name} have pages of {source.page_size} bytes, its file here {opened.page_size}: "
                f"drop the database here, and it will be fetched again"
            )
        header = yield from (self._lock_empty(opened) if resized else self.lock.take(opened, self._patience()))
        try:
            yield from self._write(opened, header, source, chain((first,), pieces))
        finally:
            self.lock.unlock(opened)

    def _write(
        self, opened: OpenDatabase, header: WalIndexHeader, source: FilePieces | RecordPieces, pieces: Iterable[Piece]
    ) -> Turns[None]:
        """Under the WRITE lock."""
        resized = opened.page_size != source.page_size
        if header.max_frame and header.page_size != opened.page_size:
            raise Refused(f"{opened.path}-wal has pages of {header.page_size} bytes, the database {opened.page_size}")
        opened.sequence += header.max_frame == 0
        writer = WalWriter(opened.wal, opened.memory, header, page_size=source.page_size, sequence=opened.sequence)
        for pages, commit in pieces:
            writer.append(pages, commit)
            if not commit:
                yield 0.0
        if source.rollback is not None:
            # Before anybody can see it: from here on the WAL is not cut to nothing any more.
            opened.rollback = source.rollback
        if resized:
            yield from _publish_resized(opened, writer, source.page_size)
        else:
            writer.publish()
        self.frames = writer.frames

    # -- one that is to be committed here --------------------------------------------------------------------------

    def commit(self, source: RecordPieces, waits: Waits) -> Turns[bool]:
        """Make the pages of ``source`` one transaction, as an application does it; False if there is no WAL for it.

        Raises as ``append``.
        """
        pieces = iter(source)
        first = next(pieces, None)
        if first is None:
            raise Refused(f"the transaction of {self.name} holds no page")
        opened = yield from self._open_as_it_is(waits)
        if opened is None:
            return False
        if opened.page_size != source.page_size:
            raise Refused(f"{self.path} has pages of {opened.page_size} bytes, the transaction {source.page_size}")
        header = yield from self.lock.take(opened, waits)
        try:
            yield from self._write(opened, header, source, chain((first,), pieces))
        finally:
            self.lock.unlock(opened)
        return True

    def take_lock(self, waits: Waits) -> Turns[bool]:
        """Take the WRITE lock and keep it (``lock.keeps``); False if there is no WAL. Raises as ``append``."""
        opened = yield from self._open_as_it_is(waits)
        if opened is None:
            return False
        yield from self.lock.take(opened, waits)
        self.lock.keeps = True
        return True

    def give_lock_back(self) -> None:
        """Keep it no longer; while nothing is under way."""
        self.lock.keeps = False
        if self.opened is not None:
            self.lock.give_back(self.opened)

    def _open_as_it_is(self, waits: Waits) -> Turns[OpenDatabase | None]:
        while self.opened is None:
            self._make_room()
            try:
                self.opened = open_as_it_is(self.path)
            except Unavailable as error:
                yield waits.next_delay(error.message)
            else:
                break
        return self.opened

    def _open(self, page_size: int, first_page: bytes | None) -> Turns[OpenDatabase]:
        waits = Waits()
        yield from prepare(self.path, waits)
        while True:
            try:
                return open_database(self.path, page_size, first_page)
            except Unavailable as error:
                yield waits.next_delay(error.message)

    # -- the lock --------------------------------------------------------------------------------------------------

    def _patience(self) -> Waits:
        self._waits = Waits(PATIENCE_S, _PATIENT_DELAY_S) if self._is_patient else Waits(LOCK_WAIT_S, _APPLY_DELAY_S)
        return self._waits

    def _lock_empty(self, opened: OpenDatabase) -> Turns[WalIndexHeader]:
        """As ``_lock``, once the WAL holds nothing: all is in the database file and no reader uses a frame.

        New readers do not delay it: where everything is in the file, they take their pages from there.
        """
        waits = Waits(READERS_WAIT_S, _READERS_DELAY_S)
        try:
            while True:
                header = yield from self.lock.take(opened, self._patience())
                if not header.max_frame:
                    return header
                self.lock.unlock(opened)
                if opened.broken:
                    raise Unavailable(f"SQLite cannot fold the WAL of {self.path}")
                self.wants_empty_wal = True
                self._wants_empty()
                yield waits.next_delay(f"readers of {self.path} keep its page size from changing")
        finally:
            self.wants_empty_wal = False


def _publish_resized(opened: OpenDatabase, writer: WalWriter, page_size: int) -> Turns[None]:
    """Publish pages of another size; no checkpoint may come between that and the connection's look at them."""
    waits = Waits()
    while not opened.connection_lock.acquire(blocking=False):
        yield waits.next_delay(f"a checkpoint of {opened.path} does not end")
    try:
        writer.publish()
        opened.show_page_size(page_size)
    finally:
        opened.connection_lock.release()


def _page_one(piece: Piece) -> bytes | None:
    return next((page for pgno, page in piece[0] if pgno == 1), None)
