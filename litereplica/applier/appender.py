"""The files of one database, and how a transaction is appended to its WAL.

Knows the steps of one transaction, in turns that never wait, and what has to be true of the wal-index before one.
Does not know the queue (backlog.py), nor when checkpoints happen (checkpoint.py). worker.py has the interleavings.
"""

from collections.abc import Callable
from itertools import chain
from typing import Final

from litereplica.applier import holders, locks
from litereplica.applier.opened import OpenDatabase, open_database, open_wal, prepare
from litereplica.applier.pieces import FilePieces, Piece, RecordPieces
from litereplica.applier.protocol import Republish
from litereplica.applier.republish import shows
from litereplica.applier.turns import Turns, Waits
from litereplica.applier.wal_writer import WalWriter
from litereplica.errors import Corrupt, Refused, Unavailable
from litereplica.sqlite.shm import WRITE_LOCK, WalIndexHeader, invalidate_header, read_checkpoint_info, read_header

READERS_WAIT_S: Final = 30.0
"""How long readers may keep the WAL in use when another page size needs a new one; then it is said, and tried again."""

_READERS_DELAY_S: Final = 0.1
_RECOVERIES: Final = 3


class Appender:
    """The database at ``path``, called ``name``; ``opened`` is None until it is needed and after a failure.

    ``frames``: in the WAL with the last publication. ``wants_empty_wal``: the next transaction cannot be written before
    the WAL is empty. ``claim``: what the daemon knows to be committed, until it was compared with the wal-index.
    """

    __slots__ = (
        "_invalidated", "_make_room", "_wants_empty", "claim", "frames", "name", "opened", "path", "wants_empty_wal",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        path: str,
        make_room: Callable[[], None],
        wants_empty: Callable[[], None],
        invalidated: Callable[[], None],
    ) -> None:
        """``make_room`` is called before files are opened, ``wants_empty`` each time ``wants_empty_wal`` is waited for.

        ``invalidated`` is called when the wal-index did not show all that is committed, and is rebuilt.
        """
        self.name = name
        self.path = path
        self.opened: OpenDatabase | None = None
        self.frames = 0
        self.wants_empty_wal = False
        self.claim: Republish | None = None
        self._make_room = make_room
        self._wants_empty = wants_empty
        self._invalidated = invalidated

    def forget_files(self) -> None:
        """Close the files; the next transaction opens them anew."""
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.close()

    def release(self) -> Turns[WalIndexHeader | None]:
        """Close the files; what was committed in that instant, None when there is no WAL with anything in it.

        Raises Unavailable while the wal-index is being changed, Corrupt, OSError, sqlite3.Error.
        """
        waits = Waits()
        is_torn = False
        while True:
            if self.opened is not None and self.opened.broken:
                self.forget_files()
            try:
                opened = self.opened = self.opened or open_wal(self.path)
            except Unavailable as error:
                yield waits.next_delay(error.message)
                continue
            if opened is None:
                break
            if self.claim is not None or is_torn:
                yield from self.compare()
            if (header := opened.close_at()) is not None:
                break
            is_torn = True
            yield waits.next_delay(f"the wal-index of {self.path} is being changed")
        self.opened = self.claim = None
        self.frames = 0
        return header if opened is not None else None

    def compare(self) -> Turns[None]:
        """Compare the wal-index of the open database with ``claim``, and have it rebuilt if it shows less or is torn.

        Raises as ``append``.
        """
        assert self.opened is not None
        yield from self._lock(self.opened)
        _unlock(self.opened)

    def append(self, source: FilePieces | RecordPieces) -> Turns[None]:
        """Make the pages of ``source`` one transaction; raises LitereplicaError, OSError, sqlite3.Error."""
        pieces = iter(source)
        first = next(pieces, None)
        if first is None:
            return
        if isinstance(source, FilePieces):
            self.claim = None  # whatever was committed before, this replaces it
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
        header = yield from (self._lock_empty(opened) if resized else self._lock(opened))
        try:
            _check_index(opened, header)
            opened.sequence += header.max_frame == 0
            writer = WalWriter(opened.wal, opened.memory, header, page_size=source.page_size, sequence=opened.sequence)
            for pages, commit in chain((first,), pieces):
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
        finally:
            _unlock(opened)

    def _open(self, page_size: int, first_page: bytes | None) -> Turns[OpenDatabase]:
        waits = Waits()
        yield from prepare(self.path, waits)
        while True:
            try:
                return open_database(self.path, page_size, first_page)
            except Unavailable as error:
                yield waits.next_delay(error.message)

    def _lock(self, opened: OpenDatabase) -> Turns[WalIndexHeader]:
        """Take ``gate`` and the WRITE lock; the value is the header read under them. Raises Unavailable, Corrupt.

        The header shows what ``claim`` says.
        """
        waits = Waits()
        recoveries = 0
        problem: str | Callable[[], str]
        while True:
            if not opened.gate.acquire(blocking=False):
                problem = f"a checkpoint of {self.path} does not end"
            elif not _take_write_lock(opened):
                opened.gate.release()
                problem = lambda: (  # noqa: E731  it is asked only once it is said
                    f"{holders.write_lock_holder(opened.shm)} holds SQLite's write lock on {self.path}"
                )
            elif (header := self._compared(opened, rebuilt=recoveries > 0)) is not None:
                return header
            else:
                _unlock(opened)
                problem = f"the wal-index of {self.path} cannot be recovered"
                if recoveries < _RECOVERIES and opened.recover():
                    recoveries += 1
                    continue
            yield waits.next_delay(problem)

    def _compared(self, opened: OpenDatabase, *, rebuilt: bool) -> WalIndexHeader | None:
        """The header, once it shows what ``claim`` says; None when it has to be recovered first. Under the WRITE lock.

        ``rebuilt``: it has been, so the file has no more. Raises Corrupt when transactions that are logged are in
        neither: what came after them would not fit.
        """
        block = opened.memory.blocks[0]
        header = read_header(block)
        claim = self.claim
        if header is None or claim is None or shows(header, claim):
            if header is not None:
                self.claim = None
            return header
        if not rebuilt:
            invalidate_header(block)
            self._invalidated()
            return None
        self.claim = None
        if (header.salt1, header.salt2) != (claim.salt1, claim.salt2):
            return header  # the WAL was begun again since: all of the old one is in the database file
        _unlock(opened)
        self.claim = claim
        raise Corrupt(
            f"{self.path}-wal has {header.max_frame} committed frames, but {claim.frames} are in the log: "
            f"restart litereplica, which brings them in again"
        )

    def _lock_empty(self, opened: OpenDatabase) -> Turns[WalIndexHeader]:
        """As ``_lock``, once the WAL holds nothing: all is in the database file and no reader uses a frame.

        New readers do not delay it: where everything is in the file, they take their pages from there.
        """
        waits = Waits(READERS_WAIT_S, _READERS_DELAY_S)
        try:
            while True:
                header = yield from self._lock(opened)
                if not header.max_frame:
                    return header
                _unlock(opened)
                if opened.broken:
                    raise Unavailable(f"SQLite cannot fold the WAL of {self.path}")
                self.wants_empty_wal = True
                self._wants_empty()
                yield waits.next_delay(f"readers of {self.path} keep its page size from changing")
        finally:
            self.wants_empty_wal = False


def _take_write_lock(opened: OpenDatabase) -> bool:
    try:
        return locks.try_exclusive(opened.shm, WRITE_LOCK)
    except OSError:
        opened.gate.release()
        raise


def _unlock(opened: OpenDatabase) -> None:
    locks.release(opened.shm, WRITE_LOCK)
    opened.gate.release()


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


def _check_index(opened: OpenDatabase, header: WalIndexHeader) -> None:
    """Refuse a wal-index that no SQLite would have left so."""
    if header.max_frame and header.page_size != opened.page_size:
        raise Refused(f"{opened.path}-wal has pages of {header.page_size} bytes, the database {opened.page_size}")
    backfilled = read_checkpoint_info(opened.memory.blocks[0]).backfilled
    if backfilled > header.max_frame:
        raise Corrupt(
            f"the wal-index of {opened.path} claims {backfilled} frames copied of {header.max_frame}: "
            f"restart litereplica, which rebuilds it"
        )


def _page_one(piece: Piece) -> bytes | None:
    return next((page for pgno, page in piece[0] if pgno == 1), None)
