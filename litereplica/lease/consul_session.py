"""Our session in Consul: what makes the entries of a dead process go away.

Knows how a session is made, kept and noticed to be lost. Does not know what is locked with it; and no decision hangs on
it: the lease is held by its value, not by the session (docs/architecture.md, "Lease").
"""

import math
from typing import Final

import structlog
import trio

from litereplica.lease.consul_client import Agents, NotDone

log = structlog.get_logger(__name__)

SHORTEST_TTL_S: Final = 10
"""Consul takes no less (and ends a session at up to twice that)."""
RENEWALS_IN_TTL: Final = 3
# Renewals that failed are repeated sooner, so that several fit into what is left.
RETRY_S: Final = 1.0


class Session:
    """One at a time; a new one when it was lost. ``name`` is unique to one start of one node's process."""

    def __init__(self, agents: Agents, name: str, lease_ttl_s: float) -> None:
        self._agents = agents
        self._name = name
        self._ttl_s = max(SHORTEST_TTL_S, math.ceil(lease_ttl_s))
        self._making = trio.Lock()
        self.id = ""
        """Empty while there is none."""

    @property
    def gone_within_s(self) -> float:
        """How long Consul may keep the session of a process that died."""
        return 2.0 * self._ttl_s

    @property
    def renew_every_s(self) -> float:
        return self._ttl_s / RENEWALS_IN_TTL

    async def ensure(self) -> str:
        """Return the id of a session that was there a moment ago; makes one when there is none."""
        if not self.id:
            async with self._making:
                if not self.id:
                    self.id = await self._agents.write(
                        lambda api: api.session.create(
                            name=self._name, checks=[], lock_delay=0, behavior="delete", ttl=self._ttl_s
                        )
                    )
        return self.id

    def lost(self, session: str) -> None:
        """Consul does not know this one any more."""
        if self.id == session:
            log.warning("consul_session_lost", session=session)
            self.id = ""

    async def renew(self) -> None:
        """Keep it alive, or make a new one. Raises Unavailable."""
        session = await self.ensure()
        try:
            await self._agents.write(lambda api: api.session.renew(session))
        except NotDone:
            self.lost(session)
            await self.ensure()

    async def end(self) -> None:
        """End it, and with it every entry that it locks. Raises Unavailable."""
        session, self.id = self.id, ""
        if session:
            await self._agents.write(lambda api: api.session.destroy(session))
