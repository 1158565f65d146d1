"""The primary's answers to replicas that look for the last position that both have.

Knows which samples are in the history of a database, as far as its log goes back. Does not know who may ask (sender.py)
or what a replica does with the answer.
"""

from collections import deque
from typing import Final

import structlog
import trio

from litereplica.cluster.encoding import encode
from litereplica.cluster.messages import Found, Search
from litereplica.errors import LitereplicaError
from litereplica.replication.channel import Channel
from litereplica.replication.feed import Feed
from litereplica.replication.wake import Wake

log = structlog.get_logger(__name__)

LOOKS_IN_A_TURN: Final = 8
"""Samples that are looked up (two small reads each) before other tasks have their turn."""


class SearchQueue:
    """Searches of one replica, answered in their order. It has at most one per database under way."""

    def __init__(self, channel: Channel, epoch: int, key: str) -> None:
        """``key``: of the replica's pins; records after what was found are kept for it."""
        self._channel = channel
        self._epoch = epoch
        self._key = key
        self._queue: deque[tuple[Feed, Search]] = deque()
        self._wake = Wake()

    def add(self, feed: Feed, search: Search) -> None:
        """Answer ``search`` soon; a second one for a database takes the place of the first."""
        for number, (other, _) in enumerate(self._queue):
            if other is feed:
                self._queue[number] = (feed, search)
                return
        self._queue.append((feed, search))
        self._wake.set()

    async def run(self) -> None:
        """Answer, for ever."""
        while True:
            while self._queue:
                feed, search = self._queue.popleft()
                txid = await self._newest_common(feed, search)
                if txid:
                    feed.database.log.pin(self._key, txid)
                await self._channel.send(encode(Found(self._epoch, search.database, txid)))
            await self._wake.wait()

    @staticmethod
    async def _newest_common(feed: Feed, search: Search) -> int:
        records = feed.database.log
        for number, sample in enumerate(reversed(search.samples), 1):
            if number % LOOKS_IN_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            try:
                point = records.point_at(sample.txid)
                if point is not None and point.is_common(sample):
                    return sample.txid
            except (LitereplicaError, OSError) as error:
                log.warning(
                    "log_unreadable", database=search.database, reason=str(error), then="nothing older is found"
                )
                break
        return 0
