"""forget-diverged: a node that goes back to the cluster's history says that it keeps what it had, and does not."""

from collections.abc import Awaitable, Callable

from jepsen.mutations.replacing import replace_function
from litereplica.ltx.position import Position
from litereplica.replication import reconcile
from litereplica.store.database import Database
from litereplica.store.diverged import Entry, drop_entry


def put_in_place() -> None:
    replace_function(reconcile, "keep", _keep)


async def _keep(
    right: Callable[..., Awaitable[Entry]],
    database: Database,
    base: Position,
    common: bool,  # noqa: FBT001  as it is there
    primary: str,
    primary_epoch: int,
    reason: str,
) -> Entry:
    entry = await right(database, base, common=common, primary=primary, primary_epoch=primary_epoch, reason=reason)
    drop_entry(database.store.disk, database.store.diverged, entry)
    return entry
