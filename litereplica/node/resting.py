"""What applications of a replica leave behind when they rest: page 1 to be laid over, a WAL to be folded.

Knows when an application has rested long enough for either, and that one remedy serves both: the applier is given the
newest transaction once more. Does not know how (node.follow), nor what is unlaid (store.unlaid).
"""

from collections.abc import Callable
from typing import Final

import trio

from litereplica.store.database import Database
from litereplica.store.store import Store

# A transaction comes back to who made it, and is committed again, within this if its application goes on at once.
LAY_AFTER_S: Final = 0.1
# Applications fold their WALs themselves while they write on; this is for those that have stopped.
FOLD_AFTER_S: Final = 2.0


class Resting:
    """Databases whose applications have committed here, and when last."""

    def __init__(self, store: Store, ask_again: Callable[[Database], None]) -> None:
        """``ask_again``: have the newest transaction applied once more; it may come to nothing, and is asked again."""
        self._store = store
        self._ask_again = ask_again
        # With a WAL that nobody may be left to fold.
        self._unfolded: dict[str, float] = {}
        self._unlaid: dict[str, float] = {}
        # Something is there to be laid over, to be folded.
        self._lays = trio.Event()
        self._folds = trio.Event()

    def committed(self, database: Database) -> None:
        """An application here has committed."""
        self._unfolded[database.name] = trio.current_time()
        self._folds.set()
        if database.unlaid:
            self._unlaid[database.name] = trio.current_time()
            self._lays.set()

    def applied(self, name: str) -> None:
        """The applier has written the newest transaction: it folds the WAL as it folds any."""
        self._unfolded.pop(name, None)

    async def run(self) -> None:
        """See to both, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lay)
            nursery.start_soon(self._fold)

    async def _lay(self) -> None:
        while True:
            await self._lays.wait()
            self._lays = trio.Event()
            while self._unlaid:
                await trio.sleep(LAY_AFTER_S)
                rested = trio.current_time() - LAY_AFTER_S
                for name, at in tuple(self._unlaid.items()):
                    database = self._store.get(name)
                    if database is None or not database.unlaid:
                        del self._unlaid[name]
                    elif at <= rested and database.awaited is None:
                        self._ask_again(database)

    async def _fold(self) -> None:
        while True:
            await self._folds.wait()
            self._folds = trio.Event()
            while self._unfolded:
                await trio.sleep(FOLD_AFTER_S)
                rested = trio.current_time() - FOLD_AFTER_S
                for name in [name for name, at in self._unfolded.items() if at <= rested]:
                    del self._unfolded[name]
                    if (database := self._store.get(name)) is not None:
                        self._ask_again(database)
