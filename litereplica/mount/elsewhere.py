"""Where a transaction that an application of a replica has written is committed: on the primary.

Knows the port only: what the mount asks of whoever talks to the primary, and the three ways it may end. Does not know
how it gets there (node.forwarder), how a transaction is found (mount.wal_file, mount.rollback), nor what is held
meanwhile (mount.replica_wal, mount.replica_journal).
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from litereplica.errors import LitereplicaError, Refused, Unavailable
from litereplica.ltx.format import Origin
from litereplica.store.awaited import Awaited
from litereplica.store.database import Database, Pages
from litereplica.store.local import LocalTransaction, Stale, record_local

if TYPE_CHECKING:
    from litereplica.mount.access import Access

_ID_BITS: Final = 63
NOT_KNOWN_DURABLE: Final = "it is committed, and whether it is on the primary's disk is not known"
_RANDOM: Final = random.SystemRandom()


class BecamePrimary(LitereplicaError):
    """This node is the primary now, and no other node has the transaction: it is committed here, as any other."""


class Lost(Unavailable):
    """What was committed for this node may be lost: what was here was given up for another history since."""


class HoldHandle(Protocol):
    """The right to write a database, kept for one process."""

    def release(self) -> None:
        """Give it back; never waits."""
        ...


class Elsewhere(Protocol):
    """The primary, as the mount of a replica sees it. Every method that waits has a limit of its own."""

    @property
    def limit_s(self) -> float:
        """``writes.timeout``."""
        ...

    def problem(self, name: str) -> str | None:
        """Why no transaction of the database is taken now; None when one is."""
        ...

    async def ready(self, database: Database) -> None:
        """Return when readers here see all that is logged of it here: ``applied`` is ``position``.

        Raises Refused (a transaction that began before is stale), Unavailable.
        """
        ...

    async def begin(self, name: str) -> None:
        """A transaction under a rollback journal begins: nobody else writes the database until it has ended.

        Raises Refused, Unavailable.
        """
        ...

    async def commit(self, transaction: LocalTransaction, awaited: Awaited, *, durable: bool) -> None:
        """Have the transaction committed; returns when ``awaited.committed``, and on the primary's disk if ``durable``.

        Raises Refused (it is not committed, and never will be), Unavailable (that is not known), BecamePrimary.
        """
        ...

    async def make_durable(self, name: str) -> None:
        """Return when the last transaction that was committed for this node is on the primary's disk.

        Raises Refused, Unavailable (Lost: it will never be known).
        """
        ...

    async def hold(self, name: str) -> HoldHandle:
        """Wait until this node alone may write the database, and has all of it. Raises Refused, Unavailable."""
        ...


class LocalPages(Protocol):
    """What a transaction changes: ``pgnos`` ascending, ``commit`` pages of ``page_size`` bytes after it."""

    @property
    def pgnos(self) -> list[int]: ...
    @property
    def commit(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    def read(self, start: int, end: int) -> Pages:
        """(pgno, page) of ``pgnos[start:end]``."""
        ...


async def commit_elsewhere(
    access: "Access",
    database: Database,
    pages: LocalPages,
    prepare: Callable[[], None],
    complete: Callable[[], None],
    *,
    durable: bool,
    first_here: int | None = None,
) -> bool:
    """Have the primary commit what an application has written here; whether that is known to be durable there.

    ``first_here``: the checksum of the page 1 that was written, where the one of ``pages`` is another.
    ``prepare`` does all that may fail before anything is sent, ``complete`` the rest in the instant in which the
    transaction is the cluster's. Raises Refused (it is not committed), Unavailable (it may be), BecamePrimary (nor is
    it, and this node commits now), OSError of ``prepare`` (it is not) and of ``complete`` (it is, and the applier
    brings it in).
    """
    elsewhere = access.elsewhere
    assert elsewhere is not None
    await elsewhere.ready(database)
    origin = Origin(database.store.node, _RANDOM.getrandbits(_ID_BITS))
    transaction = await record_local(database, pages.pgnos, pages.commit, pages.page_size, pages.read, origin)
    try:
        _check_seen(database)
        prepare()
        post_checksum, first_page, changed = transaction.post_checksum, transaction.first_page, transaction.changed
        if first_here is not None:
            assert first_page is not None, f"{database.name}: a page 1 that was written is not sent"
            post_checksum, first_page = post_checksum ^ first_page ^ first_here, first_here
            if changed is not None and changed[0] == 1:
                changed = 1, first_here
        awaited = Awaited(origin, transaction.base, post_checksum, complete, first_page, changed)
        awaited.begin(database)
        try:
            await elsewhere.commit(transaction, awaited, durable=durable)
        except (Refused, Unavailable, BecamePrimary):
            if not awaited.committed:
                raise
            durable = False
        finally:
            awaited.withdraw(database)
        assert awaited.committed, f"{database.name}: an outcome that is none"
    finally:
        transaction.close()
    if awaited.failure is not None:
        raise awaited.failure
    return durable


def _check_seen(database: Database) -> None:
    """What the application has read is the newest: it keeps the applier away. Raises Stale."""
    if database.applied != database.position.txid or database.pending_install is not None:
        raise Stale(
            f"{database.name} is at {database.position}, and a transaction was made here on {database.applied:016x}: "
            f"begin it again"
        )
