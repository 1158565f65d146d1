"""Joining the cluster that the lease belongs to.

Knows how long it is tried (for ever, while there is no answer) and what is remembered. Does not know roles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from litereplica.cluster.lease import Member
from litereplica.errors import Unavailable
from litereplica.lease.base import Lease
from litereplica.node.plane import Plane

log = structlog.get_logger()

RETRY_S: Final = 0.5
"""Between attempts while there is no answer."""


@dataclass(frozen=True, slots=True)
class Joined:
    """``forgetful``: the store knows less of the past than this node."""

    cluster: str
    forgetful: bool


async def join(lease: Lease, plane: Plane, known: str, member: Member, waits: Callable[[str], None]) -> Joined:
    """Join, and remember which cluster it is. ``waits`` is told once when there is no answer. Raises Refused."""
    cluster, waited = "", False
    while not cluster:
        try:
            cluster = await lease.join(known, member)
        except Unavailable as error:
            if not waited:
                log.warning("lease_not_reached", reason=error.message)
                waits(f"the lease is out of reach: {error.message}")
            waited = True
            await trio.sleep(RETRY_S)
    if cluster != known:
        await plane.note_cluster(cluster)
    forgetful = plane.seen_epoch() > await _newest_epoch(lease, plane)
    log.info("joined", cluster=cluster)
    return Joined(cluster, forgetful)


async def _newest_epoch(lease: Lease, plane: Plane) -> int:
    """Of the history beside the lease; 0 when there is none, or no answer."""
    try:
        history = await lease.history()
        await plane.note_reigns(history)
    except (Unavailable, OSError) as error:
        log.warning("history_not_read", reason=str(error))
        return 0
    return max((each.epoch for each in history), default=0)
