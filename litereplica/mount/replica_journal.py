"""The end of a rollback journal on a replica whose applications write.

Knows what is done before the transaction is sent, what in the instant in which it is the cluster's, and what when it is
refused. Does not know how it is found in the pages (mount.rollback), nor how it is committed elsewhere.

A replica reads and writes every database through a WAL, so journals are rare: a database that is being made here, and
one that was open in a rollback mode when this node was the primary, until the applier has made its first WAL (for which
it needs all of SQLite's locks, so never while somebody is in a transaction).

Interleavings, and why each is harmless:

- Records that arrive while the transaction goes on are logged and not applied, as its locks keep the applier away; so
  it is stale, and refused at its end, or at its beginning when they are there by then. To make that rare the primary is
  asked for the right to write at the beginning, before a page is changed (``Elsewhere.begin``).
- The rollback after that, whoever makes it (its writer, the next reader, the applier): the file is what the journal
  says that it was, though not what the log says by then. That end is let through without a word to anybody
  (``is_undone``), or the journal would stay hot for ever, with the applier behind it.
- Another node makes a database of the same name first: its record takes the place of this one (refused), and its file
  the place of this file (``Operations.make_way``), which is gone then with everything in it. A file that was there
  before, and that no log knows, is kept as it was then (``Store.make_way``).
- A writer that dies before the end: its journal is played back when its handle is released, or by the applier, or by
  the next reader; nothing differs then, and nothing is sent. While the end is held: the kernel keeps it until the end
  is answered.
- A full disk: the room for pages behind the file's end is taken before anything is sent. Whatever fails in spite of it
  is undone by the application, by its journal; and the applier brings the transaction in.
- The node becomes the primary meanwhile: the transaction is committed here.
"""

from collections.abc import Callable
from typing import Final

import trio

from litereplica.errors import Refused, Unavailable
from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile, Finish
from litereplica.mount.elsewhere import BecamePrimary, LocalPages, commit_elsewhere
from litereplica.sqlite.journal import JOURNAL_HEADER_BYTES, original_pages, parse_journal_header
from litereplica.store.store import Store

# Compared at once; other databases are served in between.
_STEP_BYTES: Final = 1 << 20


async def begin_elsewhere(access: Access, file: DatabaseFile) -> None:
    """A transaction begins: the primary keeps others from the database. Raises EIO."""
    access.check_elsewhere(file.name)
    assert access.elsewhere is not None
    try:
        if (database := file.database) is not None:
            await access.elsewhere.ready(database)
        await access.elsewhere.begin(file.name)
    except BecamePrimary:
        access.check(file.name)
    except (Refused, Unavailable) as error:
        raise file.refuse_commit(error.message) from None


async def end_elsewhere(store: Store, access: Access, file: DatabaseFile, pages: LocalPages, finish: Finish) -> bool:
    """Have the primary commit ``pages``, which ``file`` has, then ``finish``; whether it is known to be durable there.

    Raises EIO, OSError, BecamePrimary.
    """
    access.check_elsewhere(file.name)
    database = store.databases.get(file.name) or store.create(file.name)
    room = _Room(file)
    file.is_held = True

    def complete() -> None:
        file.write_held()
        finish()

    try:
        return await commit_elsewhere(access, database, pages, room.take, complete, durable=True)
    except Refused as error:
        room.give_back()
        raise file.refuse_commit(error.message) from None
    except Unavailable as error:
        room.give_back()
        raise file.refuse_commit(error.message, is_unknown=True) from None
    except BaseException:
        room.give_back()
        raise
    finally:
        file.is_held = False


async def is_undone(file: DatabaseFile) -> bool:
    """Whether ``file`` is as it was before its live journal: playing that back would change nothing.

    A page that the journal does not have was free before, and its content is nothing to SQLite (PAGER_GET_NOCONTENT).
    """
    database, journal = file.database, file.journal
    is_written = file.is_written_through or file.is_torn or (database is not None and database.open_pages.is_open)
    if not is_written and not file.held:
        return True
    if journal is None or (header := parse_journal_header(journal.read_now(0, JOURNAL_HEADER_BYTES))) is None:
        return False
    size, done_bytes = header.page_size, 0
    if file.size() != header.page_count * size:
        return False
    for pgno, page in original_pages(header, journal.read_now, journal.size()):
        if file.read_now((pgno - 1) * size, size) != page:
            return False
        done_bytes += size
        if done_bytes >= _STEP_BYTES:
            done_bytes = 0
            await trio.lowlevel.checkpoint()
    return True


class _Room:
    """The blocks behind the end of the backing file that what is held needs."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._before = -1
        self.give_back: Callable[[], None] = lambda: None

    def take(self) -> None:
        """Raises OSError: there is no room."""
        file = self._file
        before = file.status().st_size
        more = file.size() - before
        if more > 0:
            self._before = before
            self.give_back = self._cut
            file.store.disk.allocate(file.descriptor, before, more)

    def _cut(self) -> None:
        if not self._file.is_torn:
            self._file.store.disk.truncate(self._file.descriptor, self._before)
