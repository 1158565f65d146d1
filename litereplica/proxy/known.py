"""How far this node has come, as far as the proxy has been told.

Knows applied positions, which checksums a TXID had, and who waits for one. Does not know who tells (proxy.local_node).
"""

import asyncio
import heapq
import itertools
from collections import OrderedDict
from typing import Final

from litereplica.ltx.position import Position

# Positions that are remembered for one database: those of every client that wrote in the last minutes.
REMEMBERED: Final = 4096


class KnownDatabase:
    """One database. Until something is told nothing is known, and ``has`` is False."""

    def __init__(self) -> None:
        self.applied = 0
        # So far readers see it for certain.
        self._shown = 0
        self._checksums: OrderedDict[int, int] = OrderedDict()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._gone = 0

    def forget(self) -> None:
        """The history may be another one now, or it is not known any more how far the node is."""
        self.applied = self._shown = 0
        self._checksums.clear()

    def told(self, txid: int, checksum: int | None, *, shown: bool = True) -> None:
        """``txid`` is applied; one that is below what was told before is of another history.

        Readers see it now, but where it is not known to be ``shown``: then they see the one before, for certain.
        """
        if txid < self.applied:
            self.forget()
        self.applied = txid
        self._shown = max(self._shown, txid if shown else txid - 1)
        if checksum is not None:
            self.remember(Position(txid, checksum))
        while self._waiters and self._waiters[0][0] <= txid:
            _, _, future = heapq.heappop(self._waiters)
            if not future.done():
                future.set_result(None)

    def advance(self, position: Position) -> None:
        """Readers see it, or a later one: answers to several questions come in any order."""
        if position.txid > self.applied:
            self.told(position.txid, position.checksum)
        else:
            self._shown = max(self._shown, position.txid)
            self.remember(position)

    def remember(self, position: Position) -> None:
        """This position is of this node's history."""
        self._checksums[position.txid] = position.checksum
        self._checksums.move_to_end(position.txid)
        if len(self._checksums) > REMEMBERED:
            self._checksums.popitem(last=False)

    def has(self, position: Position) -> bool:
        """Whether readers see it, for certain; False when it has to be asked."""
        return position.txid <= self._shown and self._checksums.get(position.txid) == position.checksum

    async def wait(self, txid: int) -> None:
        """Return when ``txid`` (or a later one) is applied."""
        if self.applied >= txid:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (txid, next(self._numbers), future))
        try:
            await future
        finally:
            future.cancel()
            self._drop_gone()

    def _drop_gone(self) -> None:
        """Those that gave up stay in the heap; when they may be half of it, it is made anew."""
        self._gone += 1
        if self._gone * 2 > len(self._waiters):
            self._waiters = [each for each in self._waiters if not each[2].done()]
            heapq.heapify(self._waiters)
            self._gone = 0
