"""A transaction that an application of this node has made and that is on its way to be committed by the primary.

Knows how its outcome shows in the log that this node receives: the record with its origin comes, or another one takes
its place. Does not know how it was sent, nor what there is to complete.

An outcome is settled in the very stretch without ``await`` in which its record is counted: nobody on this node sees
the position that it leads to before the application's own bytes are where they belong.

The record is what was written here, or it differs in page 1 (a primary in rollback mode counts changes there; its mode
is not that of the WAL here, mount.first_page), which is told from the checksums: all pages' and page 1's, here and
there. Then it is applied too, and page 1 is unlaid (store.unlaid). If it differs in any other way, the applier has to
bring it in, and the next transaction waits for that.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio

from litereplica.ltx.format import Origin, RecordHeader
from litereplica.ltx.position import Position
from litereplica.store.local import check_base

if TYPE_CHECKING:
    from litereplica.store.database import Database

log = structlog.get_logger()


class Awaited:
    """What a held write waits for. ``complete`` puts the application's bytes into their file; it may raise OSError.

    ``committed``: it is the cluster's transaction base + 1; ``failure`` is then what ``complete`` raised, if it did:
    the applier brings the transaction in as any other, and the application is told EIO.
    ``refused``: why it is none, and never will be. ``unknown``: why this node cannot say any more; the primary can.
    """

    __slots__ = (
        "_first_before",
        "_settled",
        "base",
        "changed",
        "committed",
        "complete",
        "failure",
        "first_page",
        "origin",
        "post_checksum",
        "refused",
        "unknown",
    )

    def __init__(
        self,
        origin: Origin,
        base: Position,
        post_checksum: int,
        complete: Callable[[], None],
        first_page: int | None = None,
        changed: tuple[int, int] | None = None,
    ) -> None:
        """``first_page``, ``changed``: as LocalTransaction has them, of the page 1 that was written here."""
        self.origin = origin
        self.base = base
        self.post_checksum = post_checksum
        self.complete = complete
        self.first_page = first_page
        self.changed = changed
        # Checksum of page 1 at ``base``.
        self._first_before = 0
        self.committed = False
        self.failure: OSError | None = None
        self.refused: str | None = None
        self.unknown: str | None = None
        self._settled = trio.Event()

    def begin(self, database: "Database") -> None:
        """Be the one that the database awaits, before anything is sent. Raises Stale when it is not at ``base``."""
        check_base(database, self.base)
        assert database.awaited is None, f"two transactions of {database.name} at once"
        self._first_before = _first_entry(database)
        database.awaited = self

    def withdraw(self, database: "Database") -> None:
        """Nobody waits any more: a record that comes later is one for the applier, as any other."""
        if database.awaited is self:
            database.awaited = None

    @property
    def settled(self) -> bool:
        """Whether there is an outcome."""
        return self._settled.is_set()

    async def wait(self) -> None:
        """Return when there is an outcome: committed, refused or unknown. The limit is the caller's."""
        await self._settled.wait()

    # -- told by the database --------------------------------------------------------------------------------------

    def counted(self, database: "Database", header: RecordHeader) -> None:
        """The next record has become part of the log and is the database's position now."""
        database.awaited = None
        if header.origin != self.origin:
            self.refused = f"another transaction of {database.name} came first ({database.position}): begin it again"
            self._settled.set()
            return
        position = database.position
        assert position.txid == self.base.txid + 1, (position, self.base)
        assert header.pre_checksum == self.base.checksum, (header.pre_checksum, self.base)
        self.committed = True
        database.own_txid = position.txid
        database.unlaid.overtake()
        try:
            self.complete()
        except OSError as error:
            self.failure = error
            log.error(  # noqa: TRY400
                "commit_not_completed", database=database.name, position=str(position), reason=error.strerror
            )
        else:
            if database.applied == self.base.txid:
                self._apply(database)
        self._settled.set()

    def _apply(self, database: "Database") -> None:
        """What was completed is the record, or all of it but page 1; else the applier lays it over."""
        txid, checksum = database.position.txid, database.position.checksum
        first = _first_entry(database)
        if checksum == self.post_checksum:
            if self.first_page is None and database.unlaid:
                return
            database.unlaid.laid(txid)
        else:
            expected = self._first_before if self.first_page is None else self.first_page
            # A record that changes page 1 holds it.
            if first == self._first_before or checksum != self.post_checksum ^ expected ^ first:
                return
            database.unlaid.add(txid, self._first_before, self.first_page)
        database.applied = txid
        database.committed_here(txid, self.changed)

    def replaced(self, database: "Database") -> None:
        """The content, and with it the log, gives way to one in which the transaction may be or not."""
        database.awaited = None
        self.unknown = f"{database.name} was replaced by a snapshot at {database.position}"
        self._settled.set()


def _first_entry(database: "Database") -> int:
    """The checksum of page 1; 0 while there is none."""
    return database.checksums.table[0] if database.exists else 0
