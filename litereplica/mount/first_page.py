"""Page 1 of a database that this node, the primary, has otherwise than its log: the first transaction brings it in.

Knows how to find the page that readers here see, and how it gets into a record that does not hold it. Does not know
how the two came to differ (store.unlaid): in the change counter alone.
"""

import errno
from typing import TYPE_CHECKING, Final

import trio

from litereplica.ltx.checksum import page_checksum
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.elsewhere import LocalPages
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES
from litereplica.store.database import Database, Pages

if TYPE_CHECKING:
    from litereplica.mount.wal_file import WalFile

_PAGE_ONE: Final = (1).to_bytes(4)
# Looked at at once; other databases are served in between.
_STEP_FRAMES: Final = 1024


class _WithFirst:
    """``pages``, and a page 1 before them."""

    def __init__(self, pages: LocalPages, first: bytes) -> None:
        self.pgnos = [1, *pages.pgnos]
        self.commit = pages.commit
        self.page_size = pages.page_size
        self._pages = pages
        self._first = first

    def read(self, start: int, end: int) -> Pages:
        """(pgno, page) of ``pgnos[start:end]``."""
        if start:
            return self._pages.read(start - 1, end - 1)
        return [(1, self._first), *(self._pages.read(0, end - 1) if end > 1 else ())]


async def in_wal(wal: "WalFile", database: Database, pages: LocalPages) -> LocalPages:
    """``pages`` of a transaction that its writer, who has SQLite's write lock, is about to commit. Raises EIO."""
    if not database.unlaid or pages.pgnos[:1] == [1]:
        return pages
    size = pages.page_size
    found = wal.owner.read_now(0, size)
    for frame in reversed(range(wal.detector.committed_frames)):
        offset = WAL_HEADER_BYTES + frame * (FRAME_HEADER_BYTES + size)
        if wal.read_now(offset, len(_PAGE_ONE)) == _PAGE_ONE:
            found = wal.read_now(offset + FRAME_HEADER_BYTES, size)
            break
        if not frame % _STEP_FRAMES:
            await trio.lowlevel.checkpoint()
    return _with(wal.owner, database, pages, found)


def under_journal(file: DatabaseFile, database: Database, pages: LocalPages) -> LocalPages:
    """The same under a rollback journal, where the database file has what is not among ``pages``."""
    if not database.unlaid or pages.pgnos[:1] == [1]:
        return pages
    return _with(file, database, pages, file.read_now(0, pages.page_size))


def _with(file: DatabaseFile, database: Database, pages: LocalPages, found: bytes) -> LocalPages:
    entry = page_checksum(1, found)
    if entry == database.checksums.table[0]:
        database.unlaid.replaced()
        return pages
    if entry not in database.unlaid.firsts:
        reason = "page 1 is neither what is logged nor what was written here: restart litereplica"
        raise file.refuse("commit_refused", reason, errno.EIO)
    return _WithFirst(pages, found)
