"""What the applier says, passed on to whom it concerns.

Knows who that is. Does not know what they do about it. Every method is one of ApplierEvents (applier/events.py).
"""

from collections.abc import Callable

import structlog

from litereplica.node.following import Following
from litereplica.node.gathering import Gathering
from litereplica.node.remote_writes import RemoteWrites
from litereplica.node.visibility import Visibility
from litereplica.node.writers import Writers
from litereplica.store.store import Store

log = structlog.get_logger()


class Hearing:
    """``released``: who waits for databases to be let go of.

    ``restarted`` is told of a new child, ``applied`` of a database whose records were applied, ``stopped`` of one where
    they could not be.
    """

    def __init__(
        self,
        store: Store,
        following: Following,
        writers: Writers,
        writes: RemoteWrites,
        visibility: Visibility,
        *,
        applied: Callable[[str], None],
        stopped: Callable[[], None],
        restarted: Callable[[], None],
    ) -> None:
        self.released: Gathering[int] | None = None
        self._store = store
        self._following = following
        self._writers = writers
        self._writes = writes
        self._visibility = visibility
        self._applied = applied
        self._stopped = stopped
        self._restarted = restarted

    def on_applied(self, database: str, txid: int) -> None:
        """Readers see everything up to ``txid``."""
        if self._following.follower is not None:
            self._following.follower.applied(database, txid)
            self._applied(database)
        else:
            self._reported(database, txid)

    def on_checkpointed(self, database: str, txid: int, *, truncated: bool) -> None:  # noqa: ARG002  the link's form
        """Everything up to ``txid`` is in the database file."""
        if self._following.follower is not None:
            self._following.follower.checkpointed(database, txid)

    def on_failed(self, database: str, txid: int, reason: str, *, retry: bool) -> None:
        """The records from ``txid`` on were not applied."""
        if self._following.follower is not None:
            self._following.follower.failed(database, txid, reason, retry=retry)
            self._stopped()
        else:
            self._reported(database, txid)

    def _reported(self, name: str, txid: int) -> None:
        """Of what it was given before this node became the primary."""
        if (database := self._store.get(name)) is not None:
            database.unlaid.reported(txid)

    def on_closed(self, database: str) -> None:
        """The applier has let go of a dropped database."""
        if self._following.follower is not None:
            self._following.follower.closed(database)

    def on_released(self, database: str, salt1: int, salt2: int, frames: int) -> None:  # noqa: ARG002  the link's form
        """The applier has let go of a database whose WAL has ``frames`` committed frames."""
        if self.released is not None:
            self.released.answer(database, frames)

    def on_release_failed(self, database: str, reason: str) -> None:
        """The applier has it still."""
        log.warning("release_failed", database=database, reason=reason)
        if self.released is not None:
            self.released.abandon()

    def on_locked(self, database: str) -> None:
        """No application is inside a write transaction of it, or can begin one."""
        self._writers.locked(database, "")

    def on_lock_refused(self, database: str, holder: str) -> None:
        """An application did not give up SQLite's write lock."""
        self._writers.locked(database, holder)

    def on_committed(self, database: str, number: int) -> None:
        """A transaction of a replica is committed."""
        self._writes.committer.on_committed(database, number)

    def on_commit_refused(self, database: str, number: int, reason: str, *, busy: bool) -> None:
        """A transaction of a replica could not be."""
        self._writes.committer.on_commit_refused(database, number, reason, busy=busy)

    def on_held(self, database: str, number: int) -> None:
        """SQLite's write lock is held for another node."""
        self._writes.halting.on_held(database, number)

    def on_hold_refused(self, database: str, number: int, holder: str) -> None:
        """It could not be had."""
        self._writes.halting.on_hold_refused(database, number, holder)

    def on_hold_lost(self, database: str, number: int, reason: str) -> None:
        """It could not be kept."""
        self._writes.halting.on_hold_lost(database, number, reason)

    def on_reported(self, database: str, number: int) -> None:  # noqa: ARG002  the link's form
        """All that was published has been told."""
        self._writes.forwarder.on_reported(number)

    def on_looked(self, database: str, number: int, *, shown: bool, writes: bool) -> None:  # noqa: ARG002  the link's form
        """Whether readers see the newest transaction."""
        self._visibility.on_looked(number, shown=shown, writes=writes)

    def on_restarted(self) -> None:
        """The applier died and there is a new one: its locks are gone."""
        self._writers.lost()
        if self.released is not None:
            self.released.abandon()
        self._writes.committer.on_restarted()
        self._writes.halting.on_restarted()
        self._writes.forwarder.on_restarted()
        self._restarted()
