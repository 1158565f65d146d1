"""Watching the lease.

Knows the lease as it was last read, and since when it is unchanged on this node's clock. Does not know what follows.
"""

from collections.abc import Callable
from typing import Final

import structlog
import trio

from litereplica.cluster.lease import Endpoint, View
from litereplica.errors import Unavailable
from litereplica.lease.base import Lease

log = structlog.get_logger()

RETRY_S: Final = 0.2
"""Between attempts while there is no answer: short against any ttl, and five small requests a second are nothing."""


class Watch:
    """``changed`` is called after each change, and when answers come again."""

    def __init__(self, lease: Lease, clock: Callable[[], float], limit_s: float, changed: Callable[[], None]) -> None:
        self._lease = lease
        self._clock = clock
        self._limit_s = limit_s
        self._changed = changed
        self.view: View | None = None
        self.since = clock()
        """When ``view`` was first read, which is after it was made."""
        self.last_holder: Endpoint | None = None
        self.problem = ""
        """Why the lease cannot be read now."""

    def unchanged_s(self) -> float:
        """For how long the lease has been as it is, at least."""
        return self._clock() - self.since

    async def run(self) -> None:
        """Read for ever. A holder that lives renews within the limit of a read, so one without a change is rare."""
        while True:
            try:
                view = await self._lease.watch(self.view, self._limit_s)
            except Unavailable as error:
                if not self.problem:
                    log.warning("lease_not_readable", reason=error.message)
                self.problem = error.message
                await trio.sleep(RETRY_S)
                continue
            if self.problem:
                log.info("lease_readable_again")
                self.problem = ""
            if view != self.view:
                self._saw(view)

    def _saw(self, view: View) -> None:
        self.view, self.since = view, self._clock()
        if view.holding is not None:
            self.last_holder = view.holding.holder
        self._changed()
