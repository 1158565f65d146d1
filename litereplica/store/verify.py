"""Whether a database's file holds what its log and its page checksums say, while applications go on.

Knows how to look at a piece of the file again until what differs is either explained or damage, and how the rolling
checksum is made of the pages of the file and, for those that records after the base changed, of the log: what readers
see at the position. Does not know who asks, at which pace, or what becomes of damage.

What a page must be is judged on the loop, without an await between the last look at the log, at the page checksums and
at the live rollback journals; the file is read in a worker thread.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio

from litereplica.errors import Unavailable
from litereplica.ltx.position import Position
from litereplica.store.cursor import Trimmed
from litereplica.store.database import Database
from litereplica.store.direct import CHUNK_BYTES, DirectFile
from litereplica.store.judge import Judge, page_checksums

LOOKS: Final = 3
"""How often a page must be found wrong, read anew each time, before it is called damaged."""
TRIES: Final = 20
"""Looks in all at one chunk, with those that an application's rollback made worthless."""
BEGINNINGS: Final = 3
"""A verification begins anew when the database was dropped, replaced or given another page size under it."""
OPEN_WAIT_S: Final = 1.0
"""What one step waits for an application's transaction; between steps the asker hears that we live."""
OPEN_LIMIT_S: Final = 60.0
"""How long an application may hold pages in a transaction before it is said that they cannot be verified."""


class Replaced(Unavailable):
    """The file that was being read is not this database's any more, or its pages mean something else now."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Checksums of the pages from ``first_pgno`` as they were read. ``uncertain``: under a live journal just now."""

    first_pgno: int
    entries: "array[int]"
    damaged: list[int]
    uncertain: list[int]

    def checksum(self, pgno: int) -> int:
        """Of one page of the chunk; 0 where the file has ended."""
        index = pgno - self.first_pgno
        return self.entries[index] if index < len(self.entries) else 0


class FileCheck:
    """One database's file, read in chunks of ``pages``. Raises Replaced when it can no longer say anything."""

    __slots__ = ("_database", "_file", "_identity", "_limiter", "pages")

    def __init__(self, database: Database) -> None:
        """Raises Unavailable when there is no file to look at just now, OSError."""
        self._database = database
        self._identity = _identity(database)
        if not database.exists or not is_settled(database):
            raise Unavailable(f"{database.name} is being replaced on this node: ask again in a moment")
        self.pages = CHUNK_BYTES // database.page_size
        try:
            self._file = DirectFile(database.store.disk, database.file_path)
        except FileNotFoundError:
            raise Unavailable(f"{database.name} has not arrived on this node yet: ask again in a moment") from None
        self._limiter = trio.CapacityLimiter(1)

    async def look(self, first_pgno: int, judge: Callable[[], Judge]) -> Chunk:
        """Read and judge the chunk that begins at ``first_pgno``.

        ``judge()`` answers before each read with one whose base is wholly in the file then. Raises Replaced, Trimmed,
        Corrupt (the log is damaged), OSError.
        """
        database = self._database
        looks = 0
        entries = array("Q")
        wrong: list[int] = []
        for _ in range(TRIES):
            judging = judge()
            rollbacks = database.open_pages.rollbacks
            entries = await trio.to_thread.run_sync(self._read, first_pgno, limiter=self._limiter)
            self.confirm()
            wrong = await judging.wrong_pages(first_pgno, self.pages, entries)
            self.confirm()
            if not wrong:
                return Chunk(first_pgno, entries, [], [])
            if database.open_pages.rollbacks != rollbacks:
                continue
            uncertain = [pgno for pgno in wrong if database.open_pages.intersects(pgno, 1)]
            damaged = [pgno for pgno in wrong if pgno not in set(uncertain)]
            if not damaged:
                return Chunk(first_pgno, entries, [], uncertain)
            looks += 1
            if looks == LOOKS:
                return Chunk(first_pgno, entries, damaged, uncertain)
        return Chunk(first_pgno, entries, [], wrong)

    async def read_pages(self, first_pgno: int, pgnos: list[int]) -> list[tuple[int, bytes]]:
        """(pgno, bytes) of pages in the chunk at ``first_pgno`` as they are in the file; fewer at its end."""

        def read() -> list[tuple[int, bytes]]:
            size = self._database.page_size
            with self._file.read((first_pgno - 1) * size) as data:
                at = [(pgno, (pgno - first_pgno) * size) for pgno in pgnos]
                return [(pgno, bytes(data[start : start + size])) for pgno, start in at if start < len(data)]

        found = await trio.to_thread.run_sync(read, limiter=self._limiter)
        self.confirm()
        return found

    def _read(self, first_pgno: int) -> "array[int]":
        _, page_size, lock_page = self._identity[:3]
        with self._file.read((first_pgno - 1) * page_size) as data:
            return page_checksums(data, first_pgno, page_size, lock_page)

    def confirm(self) -> None:
        """Raise Replaced unless what was read so far still is this database's file."""
        if _identity(self._database) != self._identity or not is_settled(self._database):
            raise Replaced(f"{self._database.name} was replaced as a whole while it was read: ask again")

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _identity(database: Database) -> tuple[int, int, int, int]:
    """What changes when the file or the meaning of its page numbers does."""
    return database.log.generation, database.page_size, database.lock_page, database.dropped_txid


def is_settled(database: Database) -> bool:
    """No snapshot is on its way into the file."""
    return database.pending_install is None and (database.kept_install is None or database.install_folded)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found. ``recomputed``, ``table`` and ``logged`` have to be the checksum of ``position``.

    ``recomputed``: the rolling checksum of the pages of the file, and of ``log_pages`` that the log has newer.
    ``table``: of the page checksums. ``logged``: what the log's last record says; None when that is no longer kept.
    ``damaged``: numbers of the pages that are wrong, ascending.
    """

    position: Position
    recomputed: int
    table: int
    logged: int | None
    page_size: int
    page_count: int
    log_pages: int
    damaged: tuple[int, ...]

    @property
    def sound(self) -> bool:
        """Everything agrees."""
        checksum = self.position.checksum
        return not self.damaged and checksum == self.recomputed == self.table and self.logged in (None, checksum)


class Verification:
    """Reads every page of a database once: call ``step`` until ``result`` is there, then ``close``.

    ``pages_done`` of ``pages_total`` are for a progress bar; both may fall when it has to begin anew.
    """

    __slots__ = (
        "_beginnings", "_check", "_damaged", "_database", "_entries", "_judge", "_key", "_next_pgno", "_waiting_since",
        "result",
    )  # fmt: skip

    def __init__(self, database: Database, key: str) -> None:
        """``key`` names the pin that keeps the records after the base meanwhile. Raises as FileCheck does."""
        self._database = database
        self._key = f"verify {key}"
        self._beginnings = 0
        self.result: Verified | None = None
        self._check: FileCheck | None = None
        self._begin()

    def _begin(self) -> None:
        self.close()
        self._beginnings += 1
        database = self._database
        self._check = FileCheck(database)
        database.log.pin(self._key, database.base.txid)
        self._judge = Judge(database, database.base)
        self._entries = array("Q")
        self._damaged: list[int] = []
        self._next_pgno = 1
        self._waiting_since = 0.0

    @property
    def pages_total(self) -> int:
        """Pages of the database now."""
        return self._database.page_count

    @property
    def pages_done(self) -> int:
        """Pages that have been looked at."""
        return min(self._next_pgno - 1, self.pages_total)

    async def step(self) -> None:
        """Look at the next chunk; at the end compare.

        Raises Unavailable (the database changes as a whole all the time, or an application keeps pages in a
        transaction), Corrupt (the log is damaged), OSError.
        """
        assert self._check is not None
        try:
            if self._next_pgno <= self._database.page_count:
                await self._look(self._check)
            else:
                await self._finish(self._check)
        except (Replaced, Trimmed):
            if self._beginnings >= BEGINNINGS:
                name = self._database.name
                raise Unavailable(
                    f"{name} was replaced, or its log cut, {BEGINNINGS} times while it was read: ask again"
                ) from None
            self._begin()

    async def _look(self, check: FileCheck) -> None:
        chunk = await check.look(self._next_pgno, lambda: self._judge)
        if chunk.uncertain:
            await self._wait_for_journal()
            return
        self._waiting_since = 0.0
        # Where the file is shorter than the database, its pages so far are in the log only.
        self._entries.frombytes(bytes(8 * (self._next_pgno - 1 - len(self._entries))))
        self._entries.extend(chunk.entries)
        self._damaged += chunk.damaged
        self._next_pgno += check.pages

    async def _wait_for_journal(self) -> None:
        now = trio.current_time()
        self._waiting_since = self._waiting_since or now
        if now - self._waiting_since > OPEN_LIMIT_S:
            raise Unavailable(
                f"an application has been in a transaction on {self._database.name} for {OPEN_LIMIT_S:g} s, whose "
                f"pages may still be rolled back: end it, and ask again"
            )
        with trio.move_on_after(OPEN_WAIT_S):
            await self._database.open_pages.wait_closed()
        await trio.lowlevel.checkpoint()

    async def _finish(self, check: FileCheck) -> None:
        database = self._database
        # Pages by which it has grown meanwhile are in the log after the base. Nothing is awaited from here on.
        await self._judge.catch_up()
        check.confirm()
        page_count, newest = database.page_count, self._judge.newest
        table = np.frombuffer(database.checksums.table[:page_count], dtype=np.uint64)
        entries = np.zeros(page_count, dtype=np.uint64)
        read = min(page_count, len(self._entries))
        entries[:read] = np.array(self._entries[:read], dtype=np.uint64)
        logged = [pgno for pgno in newest if pgno <= page_count]
        if logged:
            entries[np.array(logged, dtype=np.int64) - 1] = np.array([newest[pgno] for pgno in logged], dtype=np.uint64)
        entries[table == 0] = 0
        self.result = Verified(
            position=database.position,
            recomputed=int(np.bitwise_xor.reduce(entries)) if page_count else 0,
            table=database.checksums.xor_range(1, page_count),
            logged=database.log.checksum_at(database.position.txid),
            page_size=database.page_size,
            page_count=page_count,
            log_pages=len(logged),
            damaged=tuple(pgno for pgno in self._damaged if pgno <= page_count and pgno not in newest),
        )

    def close(self) -> None:
        """Give the file and the log back."""
        if self._check is not None:
            check, self._check = self._check, None
            self._database.log.unpin(self._key)
            check.close()
