"""The applications that write, held back while the role is handed over.

Knows how they are held: SQLite's own write lock on every database that somebody has open (they wait in their busy
timeout), and no new open for writing. Does not know why.
"""

from typing import Final

import structlog

from litereplica.applier.link import ApplierLink
from litereplica.mount.access import Access
from litereplica.mount.operations import Operations
from litereplica.node.gathering import Gathering

log = structlog.get_logger()

ANSWER_SLACK_S: Final = 1.0
"""Beyond the time that the applier itself gives a lock: for its answers."""


class Writers:
    """``unyielding``: who did not give up the lock the last time, as ``app.db: process 123 (python3)``."""

    def __init__(self, operations: Operations, access: Access) -> None:
        self.unyielding: tuple[str, ...] = ()
        self._operations = operations
        self._access = access
        self._asked: Gathering[str] | None = None

    async def quiesce(self, link: ApplierLink, limit_s: float) -> tuple[str, ...]:
        """Hold writers back; who did not yield in time."""
        self._access.hold_opens()
        asked = self._asked = Gathering(self._operations.databases_in_use())
        for name in list(asked.missing):
            link.lock(name, limit_s)
        await asked.wait(limit_s + ANSWER_SLACK_S)
        silent = [f"{name}: an unknown process" for name in asked.missing]
        held = [f"{name}: {holder}" for name, holder in asked.found.items() if holder]
        self.unyielding = tuple(sorted([*silent, *held]))
        if self.unyielding:
            log.warning("writers_do_not_yield", writers=self.unyielding)
        return self.unyielding

    def resume(self, link: ApplierLink) -> None:
        """Let them go on; on a node that is no longer primary their next COMMIT fails."""
        asked, self._asked = self._asked, None
        if asked is not None:
            for name in (*asked.missing, *(name for name, holder in asked.found.items() if not holder)):
                link.unlock(name)
        self.unyielding = ()
        self._access.let_open()

    def locked(self, name: str, holder: str) -> None:
        """The applier has the lock of a database; or not: ``holder`` kept it."""
        if self._asked is not None:
            self._asked.answer(name, holder)

    def lost(self) -> None:
        """The applier died, and every lock with it."""
        if self._asked is not None:
            self._asked.abandon()
