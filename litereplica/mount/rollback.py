"""The end of a rollback journal: what it protected becomes a transaction.

Knows how to find out what changed (the pages written under the journal, compared with the checksums of the pages
before it), and the order: the record is durable in the log before the journal's end reaches its backing file, so after
a crash either both happened or the journal is played back. A rollback ends its journal too: nothing differs then, and
nothing is logged. Does not know what ends a journal (mount.journal_file).
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyfuse3
import structlog
import trio

from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.position import Position
from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile, Finish
from litereplica.mount.elsewhere import BecamePrimary
from litereplica.mount.files import fence, fence_for, make_durable
from litereplica.mount.first_page import under_journal
from litereplica.mount.replica_journal import end_elsewhere, is_undone
from litereplica.sqlite.pages import (
    DATABASE_HEADER_BYTES,
    DatabaseHeader,
    lock_page,
    parse_database_header,
    stored_page_count,
)
from litereplica.sqlite.version import header_problem
from litereplica.store.adopt import log_file, whole_pages
from litereplica.store.commit import PendingCommit, log_pages
from litereplica.store.database import ROLLBACK_MODE, WAL_MODE, Database, Pages
from litereplica.store.group import GroupFile, GroupStays
from litereplica.store.roll_back import NotDurable, roll_back
from litereplica.store.store import Store

if TYPE_CHECKING:
    from litereplica.mount.journal_file import JournalFile

log = structlog.get_logger()

# Read and compared at once; other databases are served in between.
STEP_BYTES: Final = 1 << 20
ON_THE_PRIMARY: Final = "can only be committed on the primary: run it there, or through the proxy"


@dataclass(frozen=True, slots=True)
class _Change:
    """What a journal protected: ``pgnos`` differ from before. ``restored``: of what was written some does not."""

    file: DatabaseFile
    header: DatabaseHeader
    page_count: int
    pgnos: list[int]
    restored: bool

    @property
    def is_transaction(self) -> bool:
        database = self.file.database
        return database is None or bool(self.pgnos) or self.page_count != database.page_count


async def end_journals(
    store: Store,
    access: Access,
    files: list[DatabaseFile],
    finish: Finish,
    *,
    journals_stay: bool = False,
    undoes: bool = False,
) -> bool:
    """Commit what the live journals of ``files`` protect, all or nothing; ``finish`` ends them, once it is durable.

    False: it is committed elsewhere, and nobody has said that it is durable there; its application is to hear that.
    ``journals_stay``: they are ended by what ``finish`` does to a super-journal, and stay live for now; so the base
    does not move: a start would play them back, and has to redo this transaction after that. ``undoes``: nothing is to
    be committed; EIO if anything would be. Raises OSError, FUSEError; then nothing has ended, the journals are hot and
    SQLite rolls back.
    """
    for file in files:
        await file.wait_adopted()
    late = [file for file in files if _is_late(access, file)]
    undone = await _undone(access, files, late)
    try:
        changes = [change for file in files if file not in undone and (change := await _find_change(file)) is not None]
        transactions = [change for change in changes if change.is_transaction]
        _check_undone(transactions if undoes else [])
        _check_in_time([change for change in transactions if change.file in late])
        pending: list[PendingCommit] = []
        elsewhere = await _end_elsewhere(store, access, transactions, finish) if transactions else None
        if elsewhere is not None:
            pass
        elif transactions:
            with access.committing(files[0].name):
                _check_locks(access, transactions)
                pending = await _log(store, access, files, transactions, finish)
        else:
            # A rollback: also where no commit is accepted (any more).
            pending = await _log(store, access, files, transactions, finish)
    except BaseException as error:
        for file in files:
            file.say_refused(error)
        raise
    for commit in pending:
        commit.count()
    for change in transactions:
        database = change.file.database
        assert database is not None
        database.journal_mode = WAL_MODE if change.header.wal else ROLLBACK_MODE
        change.file.say_accepted()
    restored = {change.file.name for change in changes if change.restored} | {file.name for file in undone}
    for file in [*undone, *(change.file for change in changes)]:
        if (database := file.database) is not None:
            database.open_pages.close(rolled_back=file.name in restored)
            # On a replica there may be records that no file has yet; what is late has some in its WAL alone.
            lacks = file in late or not (access.primary or database.applied == database.position.txid)
            if not journals_stay and not lacks:
                database.file_complete()
    for file in files:
        file.journal_ended()
    return elsewhere is not False


def _is_late(access: Access, file: DatabaseFile) -> bool:
    """Whether the WAL has transactions that who writes under a journal has not seen.

    Who begins a transaction and finds a WAL uses it. But between the end of the WAL and page 1 that says so SQLite
    gives its exclusive lock back (sqlite3PagerCloseWal, sqlite3BtreeSetVersion): who opens the database in between
    makes a new WAL.
    """
    wal = file.wal
    return access.primary and wal is not None and not wal.unlinked and wal.detector.committed_frames > 0


def _check_in_time(late: list[_Change]) -> None:
    if late:
        reason = (
            "another connection has committed to a new WAL while this one left WAL mode; nothing to do: the database "
            "stays in WAL mode, try again"
        )
        raise late[0].file.refuse("commit_refused", reason, errno.EIO)


async def _undone(access: Access, files: list[DatabaseFile], late: list[DatabaseFile]) -> list[DatabaseFile]:
    """Files that are as before their journals, where no commit is accepted: a rollback always is.

    Not told from the checksums: these may be those of transactions that are logged and not applied, because the
    journal keeps the applier away, or because they are in the WAL alone (``late``). Nor are there any where the
    applier's journal lies over a file that no log knows, all of which would be logged as a transaction of another node.
    """
    refuses = access.problem() is not None
    asked = [file for file in files if refuses or file in late or _is_appliers_over_unknown(file)]
    return [file for file in asked if await is_undone(file)]


def _check_undone(changes: list[_Change]) -> None:
    if changes:
        raise changes[0].file.refuse("commit_refused", "what was refused is not put back yet", errno.EIO)


def _is_appliers_over_unknown(file: DatabaseFile) -> bool:
    return file.database is None and file.journal is not None and file.journal.is_appliers


def _check_locks(access: Access, changes: list[_Change]) -> None:
    for change in changes:
        if change.file.journal is None or not change.file.journal.is_appliers:
            access.check_lock(change.file.name)


async def _end_elsewhere(store: Store, access: Access, changes: list[_Change], finish: Finish) -> bool | None:
    """Have the primary commit; whether it is known to be durable there. Raises EIO, OSError.

    None where this node is the primary, or nothing is forwarded.
    """
    if not access.forwards:
        return None
    file = changes[0].file
    if len(changes) > 1:
        names = ", ".join(change.file.name for change in changes)
        raise file.refuse(
            "commit_refused", f"a transaction over several databases ({names}) {ON_THE_PRIMARY}", errno.EIO
        )
    try:
        return await end_elsewhere(store, access, file, _ChangedPages(changes[0]), finish)
    except BecamePrimary:
        return None
    except BaseException:
        await _protect_torn(access, file)
        raise


class _ChangedPages:
    """The pages of one change."""

    def __init__(self, change: _Change) -> None:
        self.page_size, self.commit = change.header.page_size, change.page_count
        self._file = change.file
        self.pgnos = change.pgnos
        if change.file.database is None:
            locked = lock_page(self.page_size)
            self.pgnos = [pgno for pgno in range(1, self.commit + 1) if pgno != locked]

    def read(self, start: int, end: int) -> Pages:
        """(pgno, page) of ``pgnos[start:end]``."""
        size = self.page_size
        return [page for run in _runs(self.pgnos[start:end], size) for page in _read_run(self._file, run, size)]


async def roll_back_abandoned(store: Store, journal: "JournalFile", forget_cached: Callable[[], object]) -> bool:
    """Undo what the live ``journal`` of a dead writer protects, and remove it; False if somebody else was faster.

    ``forget_cached`` has the kernel drop what it caches of the database file, on a thread. That has to be before the
    journal is gone: without one, page 1 of the dead writer would be read as committed, and the first WAL made of it.
    Raises OSError, Corrupt.
    """
    file, turn = journal.owner, journal.turns
    if file.is_written_through or file.is_torn:
        # It is durable then, and the backing file has pages that are not committed.
        try:
            await trio.to_thread.run_sync(roll_back, store.disk, file.path)
        except NotDurable as error:
            if file.database is not None:
                file.database.file_failure = error
            raise
        if journal.unlinked or journal.turns != turn:
            return False
    file.journal_ended()
    await trio.to_thread.run_sync(forget_cached)
    if journal.unlinked or journal.turns != turn:
        # What the file holds by now is of the next transaction.
        return False
    journal.forget()
    if (database := file.database) is not None:
        database.open_pages.close(rolled_back=True)
    # Of one who had begun to play it back.
    file.journal_ended()
    file.is_undone = True
    log.info("transaction_rolled_back", database=file.name, reason="its writer died, and this node is not the primary")
    return True


async def _log(
    store: Store, access: Access, files: list[DatabaseFile], changes: list[_Change], finish: Finish
) -> list[PendingCommit]:
    """Make the transactions durable in their logs, then ``finish``."""
    pending: list[PendingCommit] = []
    group = None
    try:
        if len(changes) > 1:
            group = GroupFile.write(store, [change.file.name for change in changes])
        for change in changes:
            pending.append(await _log_one(store, access, change))  # noqa: PERF401  what there is is cut on an error
        if group is not None:
            _check_named(group, pending)
        for commit in pending:
            await make_durable(access, commit)
        if pending:
            access.check(files[0].name)
        for file in files:
            if file.is_torn or any(change.file is file for change in changes):
                file.write_held()
        finish()
    except BaseException as error:
        for file in files:
            # Before the records go: what the backing files have taken has to be undone if they are not there.
            await _protect_torn(access, file)
        _end_group(access, group or error, changes, _cut(pending))
        raise
    # Where it stays, this transaction has happened all the same, and a start finds it whole.
    _end_group(access, group, changes)
    return pending


def _check_named(group: GroupFile, pending: list[PendingCommit]) -> None:
    """The group was written before its records: raises OSError if a database has got another one in between."""
    if any(commit.txid != group.members[commit.database.name].txid for commit in pending):
        raise OSError(errno.EBUSY, "another transaction of one of these databases was logged")


def _cut(pending: list[PendingCommit]) -> OSError | None:
    """Take all records back; the first error of those that could not be."""
    failure = None
    for commit in pending:
        try:
            commit.cut()
        except OSError as error:
            failure = failure or error
    return failure


def _end_group(
    access: Access, group: GroupFile | BaseException | None, changes: list[_Change], not_cut: OSError | None = None
) -> None:
    """Nothing may follow a group that a start still has to judge: then this node accepts no commit any more.

    ``group``: or why there is none. ``not_cut``: a record of it may be there at the next start, which takes it back.
    """
    stays = group if isinstance(group, GroupStays) else None
    if isinstance(group, GroupFile):
        try:
            if not_cut is None:
                group.remove()
            else:
                stays = group.leave(not_cut)
        except GroupStays as error:
            stays = error
    if stays is not None:
        names = ", ".join(change.file.name for change in changes)
        fence_for(access, f"a transaction over several databases ({names}) could not be settled", stays)


async def _protect_torn(access: Access, file: DatabaseFile) -> None:
    """The backing file has pages of a transaction that is refused: see to it that the journal can undo them."""
    database = file.database
    if not file.is_torn or database is None or file.journal is None:
        return
    file.open_held(database)
    try:
        with trio.CancelScope(shield=True):
            await file.journal.make_durable()
    except OSError as error:
        fence(access, database, error)
        # The restart has it from the kernel, unless the power fails.
        with contextlib.suppress(OSError):
            file.journal.unhide()


async def _log_one(store: Store, access: Access, change: _Change) -> PendingCommit:
    file = change.file
    origin = None
    if file.journal is not None and file.journal.is_appliers:
        known = store.databases.get(file.name)
        origin = access.take_expected(file.name, known.position if known is not None else Position.ZERO)
    database = file.database
    if database is None:
        return await log_file(store, file.name, origin)
    pages = under_journal(file, database, _ChangedPages(change))
    return await log_pages(database, pages.pgnos, pages.commit, pages.page_size, pages.read, origin)


async def _find_change(file: DatabaseFile) -> _Change | None:
    """What differs from before the journal; None for a file that is no database (yet, or not any more)."""
    database = file.database
    if database is None and not whole_pages(file.path):
        return None
    first = file.held[1][:DATABASE_HEADER_BYTES] if 1 in file.held else file.read_now(0, DATABASE_HEADER_BYTES)
    if (problem := header_problem(first)) is not None:
        raise file.refuse("commit_refused", problem)
    try:
        header = parse_database_header(first)
        page_count = stored_page_count(header, file.size())
    except Corrupt as error:
        raise file.refuse("commit_refused", f"the database file cannot be read: {error.message}", errno.EIO) from None
    if database is None:
        return _Change(file, header, page_count, [], restored=False)
    if header.page_size != database.page_size:
        locked = lock_page(header.page_size)
        every = [pgno for pgno in range(1, page_count + 1) if pgno != locked]
        return _Change(file, header, page_count, every, restored=True)
    # What was written beyond the end is of a savepoint that was rolled back: SQLite cuts it off next.
    held = [pgno for pgno in file.held if pgno <= page_count]
    candidates = sorted({*database.open_pages.changed(page_count, database.page_count), *held})
    differing = await _differing(file, database, candidates)
    return _Change(file, header, page_count, differing, restored=len(differing) < len(candidates))


async def _differing(file: DatabaseFile, database: Database, candidates: list[int]) -> list[int]:
    """Those of ``candidates`` whose checksum is not the known one, and all that are new."""
    size, known, locked = database.page_size, database.page_count, database.lock_page
    table = database.checksums.table
    found: list[int] = []
    done_bytes = 0
    for run in _runs([pgno for pgno in candidates if pgno != locked], size):
        found += [
            pgno
            for pgno, page in _read_run(file, run, size)
            if pgno > known or page_checksum(pgno, page) != table[pgno - 1]
        ]
        done_bytes += len(run) * size
        if done_bytes >= STEP_BYTES:
            done_bytes = 0
            await trio.lowlevel.checkpoint()
    return found


def _runs(pgnos: list[int], page_size: int) -> Iterator[range]:
    """Page numbers that follow each other, at most STEP_BYTES of pages in one."""
    longest = max(1, STEP_BYTES // page_size)
    start = 0
    for index in range(1, len(pgnos) + 1):
        if index == len(pgnos) or pgnos[index] != pgnos[index - 1] + 1 or index - start == longest:
            yield range(pgnos[start], pgnos[index - 1] + 1)
            start = index


def _read_run(file: DatabaseFile, run: range, page_size: int) -> Pages:
    # What is held has numbers of the page size before, if that has changed.
    if len(run) == 1 and (page := file.held.get(run.start)) is not None and len(page) == page_size:
        return [(run.start, page)]
    data = file.read_now((run.start - 1) * page_size, len(run) * page_size)
    if len(data) != len(run) * page_size:
        raise pyfuse3.FUSEError(errno.EIO)
    return [(pgno, data[index * page_size : (index + 1) * page_size]) for index, pgno in enumerate(run)]
