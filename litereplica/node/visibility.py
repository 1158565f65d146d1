"""When readers of this node see what its own applications have committed.

Knows that SQLite shows a transaction to others only after the write that commits it was answered, so that the log has
it before (a commit must not wait for that), and how the applier is asked whether it is shown. Does not know who waits.

In WAL mode only. In the rollback modes the writer has the database to itself from before its first page until the
end of its journal was answered, and by then the position is the new one: who begins to read waits in its busy timeout,
and then sees it.

Nothing is asked for a transaction that another one follows: that was built upon it, so it had been shown.
"""

from collections.abc import Callable
from itertools import count
from typing import Final

import trio

from litereplica.applier.link import ApplierLink
from litereplica.mount.access import Access
from litereplica.mount.operations import Operations
from litereplica.mount.wal_file import WalFile
from litereplica.store.database import Database

ANSWER_LIMIT_S: Final = 1.0
"""The applier answers in a tenth of a millisecond; one that has died never does, and the next one is asked."""

_FIRST_DELAY_S: Final = 0.0005
"""A writer needs some microseconds from its last write to the wal-index; one that syncs, as long as the disk does."""
_LONGEST_DELAY_S: Final = 0.05
"""Of a writer that stands still: a look costs a ten-thousandth of a second."""

WalEnd = tuple[int, int, int]
"""Salts of a WAL and how many of its frames are committed."""


class Visibility:
    """One looks for all who wait for the same database."""

    def __init__(self, operations: Operations, access: Access, link: Callable[[], ApplierLink]) -> None:
        self._operations = operations
        self._access = access
        self._link = link
        # By database: the newest ends that were found shown, and that the applier was told to have shown.
        self._shown: dict[str, WalEnd] = {}
        self._told: dict[str, WalEnd] = {}
        self._turns: dict[str, trio.Lock] = {}
        self._numbers = count(1)
        self._asked: dict[int, _Asked] = {}

    async def wait(self, database: Database, txid: int) -> int:
        """Return when readers that begin now see ``txid``, which is applied; the answer: what they see."""
        at, name = database.applied, database.name
        if self._unshown(name) is None:
            return at
        if txid < at:
            return at - 1
        async with self._turns.setdefault(name, trio.Lock()):
            await self._wait_shown(database, at)
        return at

    def is_shown(self, name: str) -> bool:
        """Whether readers are known to see all that is applied. False on a primary, which would have to ask.

        There a transaction is told before its WAL's end is the new one.
        """
        return not self._access.primary and self._unshown(name) is None

    async def _wait_shown(self, database: Database, at: int) -> None:
        name, delay_s = database.name, _FIRST_DELAY_S
        while database.applied == at and (end := self._unshown(name)) is not None:
            asked = await self._ask(name, end)
            if asked.shown:
                self._shown[name] = end
                return
            if asked.is_orphaned and self._access.fenced is None and self._told.get(name) != end:
                # Once: the node does the same when the dead writer's file is closed. After a failed fsync it is not
                # known what is committed, and nothing is shown that its writer has not shown.
                self._told[name] = end
                self._link().republish(name, *end)
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _unshown(self, name: str) -> WalEnd | None:
        """The end of what applications have written to the WAL, unless readers are known to see it."""
        tree = self._operations.tree
        inode = tree.known(f"{name}-wal")
        end = inode.file.written_end() if inode is not None and isinstance(inode.file, WalFile) else None
        # Who opens a database that nobody has open reads the WAL itself.
        return None if end == self._shown.get(name) or tree.known(f"{name}-shm") is None else end

    async def _ask(self, name: str, end: WalEnd) -> "_Asked":
        number, asked = next(self._numbers), _Asked()
        self._asked[number] = asked
        try:
            self._link().look(name, number, *end)
            with trio.move_on_after(ANSWER_LIMIT_S):
                await asked.answered.wait()
        finally:
            del self._asked[number]
        return asked

    def on_looked(self, number: int, *, shown: bool, writes: bool) -> None:
        """The applier has looked."""
        if (asked := self._asked.get(number)) is not None:
            asked.shown, asked.is_orphaned = shown, not (shown or writes)
            asked.answered.set()


class _Asked:
    """``shown``: readers see it; ``is_orphaned``: nobody is left to show it. Neither without an answer."""

    __slots__ = ("answered", "is_orphaned", "shown")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.shown = self.is_orphaned = False
