"""Joining the cluster that the lease belongs to.

Knows how long it is tried (for ever, while there is no answer) and what is remembered. Does not know roles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from litereplica.cluster.lease import Member, Reign
from litereplica.errors import Unavailable
from litereplica.lease.base import Lease
from litereplica.node.plane import Plane

log = structlog.get_logger()

RETRY_S: Final = 0.5
"""Between attempts while there is no answer."""


@dataclass(frozen=True, slots=True)
class Joined:
    """``history``: past and present primaries. ``forgetful``: the store knows less of the past than this node."""

    cluster: str
    history: tuple[Reign, ...]
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
    history = await _history(lease, plane, waits)
    forgetful = plane.seen_epoch() > max((each.epoch for each in history), default=0)
    log.info("joined", cluster=cluster)
    return Joined(cluster, history, forgetful)


async def _history(lease: Lease, plane: Plane, waits: Callable[[str], None]) -> tuple[Reign, ...]:
    """Of the lease; () when there is none, or no answer.

    A node with nothing waits for the answer: without it, it might lead where others have something.
    """
    waited = False
    while True:
        try:
            history = await lease.history()
        except Unavailable as error:
            if not waited:
                log.warning("history_not_read", reason=error.message)
            if plane.standing().total:
                return ()
            if not waited:
                waits(f"the history of primaries is out of reach: {error.message}")
            waited = True
            await trio.sleep(RETRY_S)
            continue
        try:
            await plane.note_reigns(history)
        except OSError as error:
            log.warning("history_not_kept", reason=str(error))
        return history
