"""One transaction of a database in rollback mode, or of a new one, made as SQLite makes it: under a rollback journal.

Knows the order of the steps and what SQLite expects of each. Does not know who asked, nor how RESERVED is taken
(write_lock.py): the caller has it, and SHARED, and no journal is left to roll back.

The steps (pager.c, sqlite3PagerCommitPhaseOne and pager_end_transaction): the pages as they were go into the journal;
EXCLUSIVE; the pages into the database file; the journal is removed, which is the commit; what is then beyond the
database's end is cut off. Killed before the commit, it leaves a journal that the next user of the database rolls back;
killed after it, at most a file that is longer than page 1 says, which SQLite allows.

Nothing is synced: on the mount the log makes the transaction durable, and a journal that is needed after a loss of
power is made durable by the mount before it lets the database file change.

EXCLUSIVE waits for every reader, and PENDING keeps new ones out meanwhile. SQLite keeps PENDING until its application
gives up; this gives it back after PENDING_S for as long, so that one long reader does not shut all others out.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final

from litereplica.applier import holders, locks
from litereplica.applier.pieces import PIECE_BYTES, Piece, RecordPieces
from litereplica.applier.rollback_mode import PENDING_S
from litereplica.applier.turns import Turns, Waits
from litereplica.applier.whole import read_all, read_exactly, write_all
from litereplica.errors import Refused
from litereplica.sqlite.journal import (
    JOURNAL_HEADER_BYTES,
    ORIGINAL_EXTRA_BYTES,
    encode_journal_header,
    encode_original,
    is_live_journal,
    original_pages,
    parse_journal_header,
)
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, lock_page, parse_database_header

# Of page 1 (file format, 1.3.7 and 1.3.20): the change counter, and the value of it for which the page count holds.
_CHANGE_COUNTER: Final = 24
_VERSION_VALID_FOR: Final = 92
_COUNTER_BYTES: Final = 4


class JournalWriter:
    """A transaction on the database file behind ``file`` (RESERVED and SHARED are held on it) at ``path``."""

    __slots__ = (
        "_counter", "_end", "_file", "_has_first", "_journal", "_journal_bytes", "_nonce", "_page_size", "_pages",
        "_path", "_size",
    )  # fmt: skip

    def __init__(self, path: str, file: int) -> None:
        """Raises OSError, Corrupt."""
        self._path = path
        self._file = file
        self._size = os.fstat(file).st_size
        # None: there is nothing yet whose change anybody could have to see.
        self._counter: int | None = None
        self._page_size = 0
        if self._size:
            header = parse_database_header(os.pread(file, DATABASE_HEADER_BYTES, 0))
            self._page_size = header.page_size
            self._counter = (header.change_counter + 1) & 0xFFFFFFFF
        self._pages = -(-self._size // self._page_size) if self._size else 0
        self._end = self._pages
        self._has_first = False
        self._nonce = int.from_bytes(os.urandom(4))
        self._journal = -1
        self._journal_bytes = 0

    def commit(self, source: RecordPieces, waits: Waits) -> Turns[None]:
        """Make the pages of ``source`` the next transaction; PENDING and all SHARED bytes are held afterwards.

        Raises OSError, Corrupt, Refused, TimedOut; then the database is as it was. Nothing of it is left when the turns
        are given up either.
        """
        is_changed = False
        try:
            only, commit = yield from self._protect(source)
            yield from self._exclude(waits)
            is_changed = True
            for pages, _ in (only,) if only is not None else source:
                self._write(pages)
                if only is None:
                    yield 0.0
            self._complete(commit)
            self._remove_journal()
        except BaseException:
            self._undo(is_changed=is_changed)
            raise
        finally:
            if self._journal >= 0:
                locks.close(self._journal)
        if self._end > commit:
            # It is committed, whatever becomes of the rest of the file.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, commit * self._page_size)

    # -- the way back ----------------------------------------------------------------------------------------------

    def _protect(self, source: RecordPieces) -> Turns[tuple[Piece | None, int]]:
        """Write the journal; the piece, if there is only one, and the page count after the transaction.

        The record was read to its end then, and its checksum found right.
        """
        pieces = commit = 0
        only: Piece = [], 0
        for piece in source:
            pages, commit = piece
            if not pieces:
                self._begin(source, has_first=pages[0][0] == 1)
            else:
                yield 0.0
            pieces += 1
            only = piece
            self._journal_originals([pgno for pgno, _ in pages])
        if not commit:
            raise Refused(f"the transaction of {self._path} holds no page")
        step = PIECE_BYTES // self._page_size
        for start in range(commit + 1, self._pages + 1, step):
            self._journal_originals(range(start, min(start + step, self._pages + 1)))
            yield 0.0
        return (only if pieces == 1 else None), commit

    def _begin(self, source: RecordPieces, *, has_first: bool) -> None:
        if not self._size:
            if not source.is_whole:
                raise Refused(f"{self._path} is not there, and the transaction does not make all of it")
            self._page_size = source.page_size
        elif source.page_size != self._page_size:
            raise Refused(f"{self._path} has pages of {self._page_size} bytes, the transaction {source.page_size}")
        self._has_first = has_first
        self._open_journal()
        header = encode_journal_header(self._pages, self._page_size, self._nonce)
        if has_first:
            self._append(header)
        else:
            self._append(header + self._original(1, read_all(self._file, self._page_size, 0)))

    def _open_journal(self) -> None:
        """Empty: what a PERSIST journal has kept (the name of a super-journal at its end) would be read as part of it.

        Whoever rolls it back has to be allowed to: it belongs to the database's owner, as SQLite's own (os_unix.c,
        findCreateFileMode).
        """
        wanted = os.fstat(self._file)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        journal = os.open(f"{self._path}-journal", flags, stat.S_IMODE(wanted.st_mode))
        try:
            found = os.fstat(journal)
            if (found.st_uid, found.st_gid) != (wanted.st_uid, wanted.st_gid):
                with contextlib.suppress(PermissionError):
                    os.fchown(journal, wanted.st_uid, wanted.st_gid)
            if found.st_size:
                self._empty(journal)
        except BaseException:
            # It is not ours, and not ours to end.
            locks.close(journal)
            raise
        self._journal = journal

    def _empty(self, journal: int) -> None:
        if is_live_journal(read_all(journal, JOURNAL_HEADER_BYTES, 0)):
            raise Refused(f"the journal of {self._path} has to be rolled back first")
        os.ftruncate(journal, 0)

    def _journal_originals(self, pgnos: Sequence[int]) -> None:
        locked = lock_page(self._page_size)
        runs = list(_runs([pgno for pgno in pgnos if pgno <= self._pages and pgno != locked]))
        if runs:
            self._append(b"".join(self._originals(run) for run in runs))

    def _originals(self, run: range) -> bytes:
        size = self._page_size
        data = read_all(self._file, len(run) * size, (run.start - 1) * size)
        return b"".join(self._original(pgno, data[index * size : (index + 1) * size]) for index, pgno in enumerate(run))

    def _original(self, pgno: int, page: bytes) -> bytes:
        return encode_original(pgno, page.ljust(self._page_size, b"\0"), self._nonce)

    def _append(self, data: bytes) -> None:
        write_all(self._journal, data, self._journal_bytes)
        self._journal_bytes += len(data)

    def _undo(self, *, is_changed: bool) -> None:
        """As it was before. What cannot be undone here is undone by the next user, who finds a hot journal.

        It is cut before it is removed: the mount takes nothing for a transaction at that end of a journal of ours
        (mount.journal_file), so whatever goes wrong here commits nothing.
        """
        if self._journal < 0:
            return
        with contextlib.suppress(OSError):
            if is_changed:
                self._play_back()
            os.ftruncate(self._journal, 0)
            self._remove_journal()

    def _remove_journal(self) -> None:
        """Raises ESTALE where the name is another one's: the database was dropped, and made again."""
        path = f"{self._path}-journal"
        if os.stat(path).st_ino != os.fstat(self._journal).st_ino:  # noqa: PTH116  in every commit
            raise OSError(errno.ESTALE, f"{self._path} was dropped")
        # As SQLite does it on the mount; store/disk.py has the files below.
        os.unlink(path)  # noqa: PTH108, TID251

    def _play_back(self) -> None:
        def read(offset: int, size: int) -> bytes:
            return read_exactly(self._journal, size, offset)

        header = parse_journal_header(read(0, JOURNAL_HEADER_BYTES))
        assert header is not None, "EXCLUSIVE is held over a journal of our own"
        played = 0
        for pgno, page in original_pages(header, read, self._journal_bytes):
            write_all(self._file, page, (pgno - 1) * self._page_size)
            played += 1
        written = (self._journal_bytes - JOURNAL_HEADER_BYTES) // (self._page_size + ORIGINAL_EXTRA_BYTES)
        if played != written:
            # What is left of the transaction would be committed with the journal's end.
            raise OSError(errno.EIO, f"the journal of {self._path} gives {played} of {written} pages")
        if os.fstat(self._file).st_size != self._size:
            os.ftruncate(self._file, self._size)

    # -- the change ------------------------------------------------------------------------------------------------

    def _exclude(self, waits: Waits) -> Turns[None]:
        """Have what SQLite calls EXCLUSIVE. Raises TimedOut: then no more is held than before."""

        def problem() -> str:
            return f"{holders.user(file)} uses {self._path}"

        file = self._file
        keeps_out, turn_ends = False, 0.0
        try:
            while not (keeps_out and locks.try_exclusive(file, locks.SHARED_BYTES_OFFSET, locks.SHARED_BYTES)):
                now = time.monotonic()
                if now > turn_ends:
                    turn_ends = now + PENDING_S
                    if keeps_out:
                        locks.release(file, locks.PENDING_BYTE_OFFSET)
                        keeps_out = False
                    elif locks.try_exclusive(file, locks.PENDING_BYTE_OFFSET):
                        keeps_out = True
                        continue
                    else:
                        turn_ends = 0.0
                yield waits.next_delay(problem)
        except BaseException:
            if keeps_out:
                locks.release(file, locks.PENDING_BYTE_OFFSET)
            raise

    def _write(self, pages: Sequence[tuple[int, bytes]]) -> None:
        size = self._page_size
        for pgno, page in pages:
            write_all(self._file, self._counted(page) if pgno == 1 else page, (pgno - 1) * size)
        self._end = max(self._end, pages[-1][0])

    def _counted(self, page: bytes) -> bytes:
        """Page 1 as SQLite leaves it (pager_write_changecounter): whoever has cached pages looks at its counter."""
        if self._counter is None:
            return page
        counter = self._counter.to_bytes(_COUNTER_BYTES)
        changed = bytearray(page)
        changed[_CHANGE_COUNTER : _CHANGE_COUNTER + _COUNTER_BYTES] = counter
        changed[_VERSION_VALID_FOR : _VERSION_VALID_FOR + _COUNTER_BYTES] = counter
        return bytes(changed)

    def _complete(self, commit: int) -> None:
        """Page 1, if it was not in the record, and the file's end, if the transaction left the last pages out."""
        size = self._page_size
        if not self._has_first:
            self._write([(1, read_exactly(self._file, size, 0))])
        if commit > self._end:
            last = commit - (commit == lock_page(size))
            if last > self._end:
                self._write([(last, bytes(size))])


def _runs(pgnos: Sequence[int]) -> Iterator[range]:
    """Ascending page numbers as runs without gaps."""
    start = 0
    for index in range(1, len(pgnos) + 1):
        if index == len(pgnos) or pgnos[index] != pgnos[index - 1] + 1:
            yield range(pgnos[start], pgnos[index - 1] + 1)
            start = index
