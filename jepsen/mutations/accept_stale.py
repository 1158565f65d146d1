"""accept-stale: the primary commits what a replica's application has made upon an older position.

Its pages take the place of newer ones: what others have committed in between is overwritten.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from jepsen.mutations.replacing import replace_function, require
from litereplica.cluster.messages import OUTCOME_STALE
from litereplica.node.committer import Committer, Settled
from litereplica.node.intake import Arrival


def put_in_place() -> None:
    require(Committer, ["_wait_turn", "_commit", "_look"])
    replace_function(Committer, "_wait_turn", _wait_turn)


async def _wait_turn(
    right: Callable[[Committer, Arrival], Awaitable[Settled | None]], self: Committer, arrival: Arrival
) -> Settled | None:
    settled = await right(self, arrival)
    if settled is None or settled[0] != OUTCOME_STALE:
        return settled
    database = self._store.get(arrival.forward.database)
    assert database is not None
    arrival.forward = replace(arrival.forward, base=database.position)
    return await right(self, arrival)
