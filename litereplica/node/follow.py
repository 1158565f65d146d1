"""Life as a replica: what the log has received is brought into the mounted files.

Knows which records each database still needs and who brings them in: this process while nobody can have the file open
(it does not exist yet), the applier from then on. Does not know how records arrive (replication) or how SQLite takes
them (applier).

A transaction that an application here has made is not given to the applier. The newest one may be afterwards, once
more: to lay page 1 over (store.unlaid), to have a WAL folded (node.resting), and when the applier is a new one. An
application may go on meanwhile; then the mount refuses what the applier writes, and nothing has happened.

The queue is the log: per database only a few spans are under way, so memory does not grow with the distance.
"""

from typing import Final

import structlog
import trio

from litereplica.applier.link import ApplierLink
from litereplica.errors import LitereplicaError
from litereplica.mount.operations import Operations
from litereplica.node.progress import Progress
from litereplica.node.resting import Resting
from litereplica.sqlite.pages import DATABASE_HEADER_BYTES, parse_database_header
from litereplica.store.apply import write_span
from litereplica.store.database import Database
from litereplica.store.log import Span
from litereplica.store.replica_wal import make_wal, wal_of
from litereplica.store.store import Store

log = structlog.get_logger()

# Spans under way per database: one being applied, the others on their way to the applier.
WINDOW_SPANS: Final = 8
# What one span holds at most (unless one record is longer): the applier merges it into one local commit.
SPAN_BYTES: Final = 1024 * 1024
SPAN_RECORDS: Final = 64
# While a new file is written here, readers wait for nothing: larger steps.
NEW_FILE_SPAN_BYTES: Final = 64 * 1024 * 1024
NEW_FILE_RECORDS: Final = 1 << 20
# A failed span is sent again after this: long enough that a broken disk does not fill the log with lines.
RETRY_S: Final = 0.5
# So often in a row, and it is not a matter of one moment. Who waits for a lock says so after seconds, and then seldom.
FAILURES_LIMIT: Final = 2


class Follower:
    """Feeds the applier. ``run`` never returns; ``stuck`` names databases that cannot go on by themselves."""

    def __init__(self, store: Store, operations: Operations, link: ApplierLink) -> None:
        self._store = store
        self._operations = operations
        self._link = link
        self._progress: dict[str, Progress] = {}
        self._dirty: dict[str, None] = {}
        self._retries: list[str] = []
        self._resting = Resting(store, self._ask_again)
        # This node is about to be the primary: nothing is applied once more.
        self._lets_go = False
        self._wake = trio.Event()

    # -- what happens elsewhere ------------------------------------------------------------------------------------

    def changed(self, database: Database) -> None:
        """A listener of the store: there may be something to apply."""
        progress = self._progress.get(database.name)
        if progress is None and (database.claim is not None or database.unlaid):
            progress = self._progress[database.name] = Progress(0)
        if progress is not None and progress.sent < database.applied:
            # A transaction of an application here, which has brought it in by itself.
            progress.sent = database.applied
            self._resting.committed(database)
        if database.is_behind:
            if progress is not None and progress.flows and self._is_plain(database, progress):
                # The common case takes no turn of the scheduler: it is in the path from commit to visible.
                self._send(database, progress)
                return
            self._dirty[database.name] = None
            self._wake.set()

    @staticmethod
    def _is_plain(database: Database, progress: Progress) -> bool:
        """Nothing stands between the log and the applier but the next records."""
        return (
            database.pending_install is None
            and database.dropped_txid <= max(database.applied, progress.sent)
            and progress.stuck is None
            and not progress.failed
        )

    def applied(self, name: str, txid: int) -> None:
        """The applier has made everything up to ``txid`` visible."""
        database, progress = self._store.get(name), self._progress.get(name)
        if database is None or (progress is not None and progress.closing is not None):
            return  # of a file that the applier is about to let go of
        was_at_rest = database.unlaid.at_rest
        database.unlaid.reported(txid)
        if progress is None:
            return
        under_way, unlaid = progress.under_way, database.unlaid
        while under_way and under_way[0] <= txid:
            under_way.popleft()
        if database.pending_install is not None:
            if under_way or not progress.installing:
                # This was the history that a snapshot is about to replace.
                self.changed(database)
                return
            progress.installing = False
            database.installed()
        elif txid > progress.sent:
            return  # of a history that was replaced meanwhile
        if txid >= database.applied:
            self._resting.applied(name)
        progress.reported, progress.failures = txid, 0
        unlaid.laid(txid)
        database.set_applied(min(txid, database.position.txid))
        if not was_at_rest:
            database.changed()
        self.changed(database)

    def checkpointed(self, name: str, txid: int) -> None:
        """The applier has folded everything up to ``txid`` into the database file."""
        database = self._store.get(name)
        if database is not None and database.pending_install is None:
            try:
                database.checkpointed(min(txid, database.position.txid))
            except (OSError, LitereplicaError) as error:
                # The next report counts for this one; a crash before it means more to redo.
                log.warning("log_unreadable", database=name, reason=str(error), then="redo begins where it did")

    def failed(self, name: str, txid: int, reason: str, *, retry: bool) -> None:
        """The applier could not apply."""
        database, progress = self._store.get(name), self._progress.get(name)
        if database is None or progress is None or progress.closing is not None:
            return  # of a history that was dropped meanwhile
        if database.pending_install is not None and (not progress.installing or database.awaits_install):
            # Of the history that a snapshot is about to replace, its records may be gone: none of it is needed.
            log.info("not_applied", database=name, txid=f"{txid:016x}", reason=reason)
            database.unlaid.reported(txid)
            progress.under_way.clear()
            progress.installing = False
            self.changed(database)
            return
        if retry and self._is_overlay(database, txid):
            log.debug("not_laid", database=name, txid=f"{txid:016x}", reason=reason)
            database.unlaid.over()
            progress.under_way.clear()
            progress.sent = database.applied
            self.changed(database)
            return
        # What is given to it may have been another history's just then: everything is read anew, once.
        retry = retry or not progress.failures
        database.unlaid.reported(txid)
        progress.under_way.clear()
        progress.installing = False
        if retry:
            self._try_later(name, progress, txid, reason)
            return
        log.error("apply_failed", database=name, txid=f"{txid:016x}", reason=reason, retry=False)
        progress.stuck = reason

    def _try_later(self, name: str, progress: Progress, txid: int, reason: str) -> None:
        log.error("apply_failed", database=name, txid=f"{txid:016x}", reason=reason, retry=True)
        if not progress.failed:
            progress.failed = True
            progress.failures += 1
            progress.reason = reason
            self._retries.append(name)
            self._wake.set()

    def _is_overlay(self, database: Database, txid: int) -> bool:
        """What has failed was applied before, and an application has gone on from it since, or is about to."""
        unlaid = database.unlaid
        return txid == unlaid.laying and (unlaid.is_overtaken or database.awaited is not None or self._lets_go)

    def closed(self, name: str) -> None:
        """The applier has let go of a dropped database."""
        database, progress = self._store.get(name), self._progress.get(name)
        if progress is not None and progress.closing is not None:
            progress.closing.set()
            progress.closing = None
            if database is not None:
                # What was to be laid over is not answered any more.
                database.unlaid.over()
                self.changed(database)

    async def give_way(self, database: Database) -> None:
        """Have the applier let go of a database, and return when it has; it is given nothing until ``go_on``."""
        progress = self._progress.get(database.name)
        if progress is None:
            progress = self._progress[database.name] = Progress(database.applied)
        self._close(database, progress)
        progress.reset(database.applied)
        progress.giving_way = True
        await self.wait_closed(database.name)

    def go_on(self, database: Database) -> None:
        """Another file has taken its place, or will not."""
        self._progress[database.name].giving_way = False
        self.changed(database)

    def _close(self, database: Database, progress: Progress) -> None:
        self._link.close_database(database.name)
        if self._link.pid is not None and progress.closing is None:
            # Who waits for the end of an earlier one has the same: only the last is answered.
            progress.closing = trio.Event()

    async def wait_closed(self, name: str) -> None:
        """Return when another file may have the name of a database."""
        progress = self._progress.get(name)
        while progress is not None and progress.closing is not None:
            await progress.closing.wait()

    def restarted(self) -> None:
        """A new applier knows nothing of what was under way: everything after the applied TXID goes out again.

        The same after ``let_go``, when this node has not become the primary.
        """
        self._lets_go = False
        for database in self._store.databases.values():
            progress = self._progress.get(database.name)
            if progress is not None:
                progress.reset(database.applied)
                # It folds the WALs of databases that it has open: one whose WAL still holds the newest transaction gets
                # that once more, or its WAL would stay until the next one.
                progress.again = True
                self.closed(database.name)
                self._dirty[database.name] = None
        self._wake.set()

    def may_commit(self, database: Database) -> bool:
        """Whether an application's transaction may be completed here: nothing older comes into the files after it."""
        progress = self._progress.get(database.name)
        return progress is None or not progress.under_way or database.unlaid.laying > 0

    def lay_now(self, used: set[str]) -> list[Database]:
        """Have laid what is unlaid in databases that are not ``used``: this node is about to be the primary."""
        found = [each for each in self._store.databases.values() if each.unlaid and each.name not in used]
        for database in found:
            self._ask_again(database)
        return found

    def let_go(self) -> None:
        """From here on nothing is laid over: the applier is about to let go of everything."""
        self._lets_go = True

    def _ask_again(self, database: Database) -> None:
        """Have the newest transaction applied once more (page images: but for page 1 nothing changes)."""
        progress = self._progress.get(database.name)
        if progress is None:
            progress = self._progress[database.name] = Progress(database.applied)
        if not progress.under_way:
            progress.again = True
            self._dirty[database.name] = None
            self._wake.set()

    def replaced(self, database: Database) -> None:
        """A snapshot has taken the place of the history that the applier was given."""
        progress = self._progress.get(database.name)
        if database.pending_install is None:
            # Its file is another one: whoever had it open goes on with the old one, as after a drop.
            self._operations.removed_here(database.name)
            database.unlaid.over()
            if progress is None:
                self._link.close_database(database.name)
            else:
                progress.reset(database.applied)
                self._close(database, progress)
        elif progress is not None:
            # What is under way for the old content is still reported, and waited for.
            progress.installing = False
            progress.stuck = None
        self.changed(database)

    @property
    def stuck(self) -> dict[str, str]:
        """Databases that need a person, with the reason."""
        return {name: each.stuck for name, each in self._progress.items() if each.stuck is not None}

    @property
    def failing(self) -> dict[str, str]:
        """Databases that could not be applied again and again, and why the last time. It goes on being tried."""
        return {name: each.reason for name, each in self._progress.items() if each.failures >= FAILURES_LIMIT}

    # -- the task --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring everything in, for ever."""
        for database in self._store.databases.values():
            self.changed(database)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._resting.run)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                dirty, self._dirty = self._dirty, {}
                retries, self._retries = self._retries, []
                for name in retries:
                    nursery.start_soon(self._retry, name)
                for name in dirty:
                    found = self._store.get(name)
                    if found is not None:
                        self._feed(found, nursery)

    async def _retry(self, name: str) -> None:
        """Send again what failed, after a while; the other databases go on meanwhile."""
        await trio.sleep(RETRY_S)
        progress, database = self._progress.get(name), self._store.get(name)
        if progress is not None and database is not None and progress.failed:
            progress.failed = False
            progress.sent = database.applied
            # Not only if it is behind: what has failed may have been to apply the newest transaction once more.
            self._dirty[name] = None
            self._wake.set()

    def _feed(self, database: Database, nursery: trio.Nursery) -> None:
        progress = self._progress.get(database.name)
        if progress is None:
            progress = self._progress[database.name] = Progress(database.applied)
        if progress.stuck is not None:
            return
        if progress.failed:
            return
        if database.dropped_txid > max(database.applied, progress.sent):
            progress.flows = False
            if not self._drop(database, progress):
                return
        if progress.closing is not None or progress.giving_way:
            return
        if database.pending_install is not None:
            # An overlay is not under way any more after a promotion that failed, and still to be heard of.
            if not (progress.under_way or database.unlaid.laying):
                self._install(database, progress)
            return
        if not database.file_path.exists() or database.applied <= database.dropped_txid:
            # After a drop there is nothing to make until the database comes back. What has its name by then is what an
            # application here was making, and another node made first.
            if database.applied < database.position.txid and not progress.making:
                progress.making = True
                nursery.start_soon(self._make_file, database, progress)
            return
        progress.flows = True
        self._send(database, progress)

    def _send(self, database: Database, progress: Progress) -> None:
        """Give the applier what its window has room for."""
        if database.claim is not None and database.claim != progress.claimed:
            # Whoever made that commit may have died before it published it: nothing may be appended over it.
            progress.claimed = database.claim
            self._link.republish(database.name, *database.claim)
        if progress.again:
            progress.again = False
            self._send_again(database, progress)
        unlaid = database.unlaid
        if 0 < unlaid.newest <= progress.sent < database.position.txid and not progress.under_way:
            # What follows does not hold page 1.
            progress.sent = unlaid.newest - 1
        while len(progress.under_way) < WINDOW_SPANS:
            try:
                span = database.log.spans(progress.sent, SPAN_BYTES, SPAN_RECORDS)
            except (OSError, LitereplicaError) as error:
                self.failed(database.name, progress.sent + 1, str(error), retry=isinstance(error, OSError))
                return
            if span is None:
                return
            self._send_span(database, progress, span)

    def _send_again(self, database: Database, progress: Progress) -> None:
        """Apply the newest transaction once more, unless others follow it, or the applier has seen it already."""
        txid = database.applied
        is_idle = txid == database.position.txid and database.exists and database.pending_install is None
        if not is_idle or progress.under_way or database.unlaid.laying or progress.reported >= txid or self._lets_go:
            return
        if database.base.txid < txid and database.log.first_txid <= txid:
            try:
                span = database.log.spans(txid - 1, SPAN_BYTES, 1)
            except (OSError, LitereplicaError) as error:
                progress.again = True
                self.failed(database.name, txid, str(error), retry=isinstance(error, OSError))
                return
            assert span is not None
            database.unlaid.lay(txid, database.checksums.table[0])
            self._send_span(database, progress, span)

    def _send_span(self, database: Database, progress: Progress, span: Span) -> None:
        progress.sent = span.last_txid
        progress.under_way.append(span.last_txid)
        self._link.apply(
            database.name, span.path, span.offset, span.length, span.first_txid, span.last_txid,
            applied=database.applied,
        )  # fmt: skip

    def _install(self, database: Database, progress: Progress) -> None:
        path = database.pending_install
        assert path is not None
        progress.sent = database.base.txid
        progress.under_way.append(database.base.txid)
        progress.installing = True
        # It has answered for all that it was given before.
        database.awaits_install = False
        log.info("snapshot_replaces_database", database=database.name, position=str(database.base))
        try:
            # Of the snapshot: the database's own may be another one by now, if a record after it says so.
            with path.open("rb") as file:
                page_size = parse_database_header(file.read(DATABASE_HEADER_BYTES)).page_size
            pages = path.stat().st_size // page_size
        except (OSError, LitereplicaError) as error:
            self.failed(database.name, database.base.txid, str(error), retry=isinstance(error, OSError))
        else:
            self._link.install(database.name, path, page_size, pages, database.base.txid)

    async def _make_file(self, database: Database, progress: Progress) -> None:
        """Build a database that does not exist here yet under a name of its own, then show it whole."""
        disk = self._store.disk
        temporary = database.directory / "new"
        try:
            if temporary.exists():
                disk.unlink(temporary)
            after, target = database.applied, database.position.txid
            generation = database.log.generation
            while after < target and database.log.generation == generation:
                span = database.log.spans(after, NEW_FILE_SPAN_BYTES, min(NEW_FILE_RECORDS, target - after))
                assert span is not None
                if span.length <= SPAN_BYTES:
                    write_span(disk, temporary, span)
                else:
                    await trio.to_thread.run_sync(write_span, disk, temporary, span)
                after = span.last_txid
            # A file that is shown before its log is durable is of no log's after a loss of power.
            await database.log.sync()
            if (
                database.dropped_txid > after
                or database.pending_install is not None
                or database.applied >= target
                # It went back meanwhile: this file is of the history that was lost.
                or database.log.generation != generation
            ):
                disk.unlink(temporary)
            elif not temporary.stat().st_size:
                # The last of the records is a drop: there is nothing to show.
                disk.unlink(temporary)
                progress.sent = after
                database.set_applied(after)
            else:
                disk.make_directories(database.file_path.parent)
                self._operations.make_way(database.name)
                wal = wal_of(database)
                if wal.exists():
                    disk.unlink(wal)
                # Before the file: in rollback mode nobody may find it without.
                make_wal(disk, temporary, wal)
                disk.rename(temporary, database.file_path)
                progress.sent = after
                # First: it must not be made a second time, under those who have it open.
                database.set_applied(after)
                # All of it is in the file, and nothing tells so again if no more comes: the self-check counts on it.
                self.checkpointed(database.name, after)
        except (OSError, LitereplicaError) as error:
            self.failed(database.name, database.applied + 1, str(error), retry=isinstance(error, OSError))
        finally:
            progress.making = False
        self.changed(database)

    def _drop(self, database: Database, progress: Progress) -> bool:
        """Take away the file of a dropped database; False: the disk refuses, and it is tried again."""
        dropped = database.dropped_txid
        try:
            # Before the name is free for another file: redo of a log without the drop would go into that one.
            database.log.sync_blocking()
        except OSError as error:
            self.failed(database.name, dropped, f"the log cannot be made durable: {error.strerror}", retry=True)
            return False
        self._close(database, progress)
        self._operations.removed_here(database.name)
        try:
            for path in (database.file_path, wal_of(database)):
                if path.exists():
                    self._store.disk.unlink(path)
        except OSError as error:
            # The applier lets go of it meanwhile, so ``failed`` would take this for what a lost history has left.
            self._try_later(database.name, progress, dropped, f"its file cannot be removed: {error.strerror}")
            return False
        progress.reset(dropped)
        database.unlaid.over()
        log.info("database_dropped", database=database.name, position=f"{dropped:016x}")
        database.set_applied(dropped)
        return True
