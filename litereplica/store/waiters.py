"""Who waits for a TXID to be applied.

Knows that thousands may wait, and that a commit must cost nothing for those whose TXID is still to come. Does not know
what they wait for it for.
"""

from heapq import heapify, heappop, heappush

import trio


class Waiters:
    """Tasks by the TXID that they wait for."""

    __slots__ = ("_lots", "_txids")

    def __init__(self) -> None:
        self._lots: dict[int, trio.lowlevel.ParkingLot] = {}
        self._txids: list[int] = []  # a heap of the keys of _lots

    async def wait(self, txid: int) -> None:
        """Return after a call of ``reached`` with ``txid`` or more."""
        lot = self._lots.get(txid)
        if lot is None:
            lot = self._lots[txid] = trio.lowlevel.ParkingLot()
            heappush(self._txids, txid)
        try:
            await lot.park()
        finally:
            if not lot and self._lots.get(txid) is lot:
                # The last one gave up.
                del self._lots[txid]
                self._txids.remove(txid)
                heapify(self._txids)

    def reached(self, txid: int) -> None:
        """Wake who waits for ``txid`` or less. A comparison when nobody does."""
        while self._txids and self._txids[0] <= txid:
            self._lots.pop(heappop(self._txids)).unpark_all()
