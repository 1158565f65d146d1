"""A transaction that an application of this node has made and another node has to commit, as a record.

Knows which bytes it is and what it is based on. Nothing of the database changes: neither its log nor its checksums.
Does not know where the pages come from, how the record travels, or what becomes of it (store.awaited).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from litereplica.errors import Refused
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.encode import RecordEncoder, block_capacity
from litereplica.ltx.format import Origin
from litereplica.ltx.position import Position
from litereplica.store.spool import Spool

if TYPE_CHECKING:
    from litereplica.store.database import Database, Pages


class Stale(Refused):
    """The transaction was made on a state that is not the newest: its application has to begin it again."""


class LocalTransaction:
    """One record, whole. ``base``: the position it was made on, and so what its pre-checksum says.

    ``post_checksum``: the rolling checksum after it, if the primary commits it as it is. ``commit``: pages after it.
    ``first_page``: the checksum of page 1, None when the record does not hold it. ``changed``: a page that it changes,
    and its checksum; None: it changes none. ``length``: bytes of the record.
    Whoever has it calls ``close``.
    """

    __slots__ = (
        "_spool", "base", "changed", "commit", "database", "first_page", "length", "origin", "page_size",
        "post_checksum",
    )  # fmt: skip

    def __init__(
        self,
        database: "Database",
        origin: Origin,
        base: Position,
        post_checksum: int,
        commit: int,
        page_size: int,
        spool: Spool,
        first_page: int | None,
        changed: tuple[int, int] | None,
    ) -> None:
        self.database = database
        self.origin = origin
        self.base = base
        self.post_checksum = post_checksum
        self.commit = commit
        self.page_size = page_size
        self.first_page = first_page
        self.changed = changed
        self.length = spool.length
        self._spool = spool

    @property
    def name(self) -> str:
        """The database's name."""
        return self.database.name

    def read(self, offset: int, size: int) -> bytes:
        """The record's bytes there, fewer only at its end. Raises OSError."""
        return self._spool.read(offset, size)

    def close(self) -> None:
        """Let the record go; a second time does nothing."""
        self._spool.close()


def check_base(database: "Database", base: Position) -> None:
    """Raise Stale unless the database is at ``base``."""
    if database.position != base:
        raise Stale(
            f"a transaction of {database.name} was made at {base}, the database is at {database.position} by now: "
            f"begin it again"
        )


async def record_local(
    database: "Database",
    pgnos: list[int],
    commit: int,
    page_size: int,
    read: "Callable[[int, int], Pages]",
    origin: Origin,
) -> LocalTransaction:
    """Make the record of a transaction that leaves ``commit`` pages of ``page_size`` bytes, in bounded memory.

    ``pgnos`` and ``read(i, j)`` are as in ``log_pages``: ascending, none beyond ``commit``, never the lock page; their
    pages must not change until this returns. Another page size than the database has is a new content: ``pgnos`` are
    all its pages. Raises Stale when the database moved on meanwhile, OSError; nothing is left then.
    """
    base, table_pages = database.position, database.page_count
    is_new_content = page_size != database.page_size
    checksum = 0 if is_new_content else base.checksum
    first_page: int | None = None
    changed: tuple[int, int] | None = None
    encoder = RecordEncoder(database.next_header(page_size, len(pgnos), commit, origin))
    spool, step = Spool(database.store), block_capacity(page_size)
    try:
        spool.append(encoder.begin())
        for start in range(0, len(pgnos), step):
            pages = read(start, min(start + step, len(pgnos)))
            # Taken anew each time: it is replaced when another database of pages is received meanwhile.
            table = database.checksums.table
            for pgno, page in pages:
                known = 0 if is_new_content or pgno > table_pages else table[pgno - 1]
                entry = page_checksum(pgno, page)
                checksum ^= entry ^ known
                if entry != known:
                    # Page 1, which the primary may change too, only if there is no other.
                    changed = pgno, entry
                if pgno == 1:
                    first_page = entry
            spool.append(encoder.block(pages))
            if len(pgnos) > step:
                await trio.lowlevel.checkpoint()
                check_base(database, base)
        if not is_new_content and commit < table_pages:
            checksum ^= database.checksums.xor_range(commit + 1, table_pages)
        spool.append(encoder.end(checksum))
    except BaseException:
        spool.close()
        raise
    return LocalTransaction(database, origin, base, checksum, commit, page_size, spool, first_page, changed)
