"""Page 1 of a database, where the files of this node have another one than the cluster.

Knows how a primary finds the page that readers here see, and how it gets into the record of the first transaction;
how the two came to differ, store.unlaid knows. And what page 1 says of the journal mode: a database in rollback mode is
read through a WAL on a replica, and SQLite makes what it makes anew there (VACUUM, a backup into it) one in WAL mode
(backup.c, sqlite3_backup_step: sqlite3BtreeSetVersion). That is of this node alone, so it is not sent.
"""

import errno
from typing import TYPE_CHECKING, Final

import trio

from litereplica.ltx.checksum import page_checksum
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.elsewhere import LocalPages
from litereplica.sqlite.pages import ROLLBACK_VERSIONS, VERSIONS
from litereplica.sqlite.wal import FRAME_HEADER_BYTES, WAL_HEADER_BYTES
from litereplica.store.database import ROLLBACK_MODE, WAL_MODE, Database, Pages, journal_mode_of

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


class _InRollbackMode:
    """``pages``, whose page 1 says that the database is in rollback mode."""

    def __init__(self, pages: LocalPages) -> None:
        self.pgnos = pages.pgnos
        self.commit = pages.commit
        self.page_size = pages.page_size
        self._pages = pages

    def read(self, start: int, end: int) -> Pages:
        """(pgno, page) of ``pgnos[start:end]``."""
        found = self._pages.read(start, end)
        if found and found[0][0] == 1:
            first = bytearray(found[0][1])
            first[VERSIONS] = ROLLBACK_VERSIONS
            found[0] = 1, bytes(first)
        return found


def as_sent(database: Database, pages: LocalPages) -> tuple[LocalPages, int | None]:
    """``pages`` of a WAL on a replica as the primary gets them; if page 1 is another there, the checksum of ours."""
    if not enters_wal_mode(database, pages):
        return pages, None
    ((_, first),) = pages.read(0, 1)
    return _InRollbackMode(pages), page_checksum(1, first)


def enters_wal_mode(database: Database, pages: LocalPages) -> bool:
    """Whether a database in rollback mode would be one in WAL mode afterwards."""
    if not database.exists or database.journal_mode != ROLLBACK_MODE or pages.pgnos[:1] != [1]:
        return False
    ((_, first),) = pages.read(0, 1)
    return journal_mode_of(first) == WAL_MODE


async def in_wal(wal: "WalFile", database: Database, pages: LocalPages) -> LocalPages:
    """``pages`` of a transaction that its writer, who has SQLite's write lock, is about to commit. Raises EIO.

    EIO too for one that would leave rollback mode: such a database has a WAL until its last connection from before the
    promotion is closed. But what is unlaid may have left it already.
    """
    if not database.unlaid:
        if enters_wal_mode(database, pages):
            reason = (
                "the database is in rollback mode, and is read through a WAL since this node was a replica: close all "
                "connections to it first (VACUUM and a backup into it would put it into WAL mode)"
            )
            raise wal.refuse("commit_refused", reason, errno.EIO)
        return pages
    if pages.pgnos[:1] == [1]:
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
