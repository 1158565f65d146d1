"""What one replica has, as it says, and who waits for that.

Knows acknowledgements and when one is about a history that is gone. Does not know what is sent (sender.py).
"""

import trio

from litereplica.cluster.messages import Ack, Acknowledged
from litereplica.replication.feed import Feed
from litereplica.store.store import Store


class Acknowledgements:
    """``by_database``: the last one of each; ``feeds``: what is sent (the caller's)."""

    def __init__(self, store: Store, feeds: dict[str, Feed], key: str) -> None:
        """``key``: of the replica's pins."""
        self.by_database: dict[str, Acknowledged] = {}
        self._store = store
        self._feeds = feeds
        self._key = key
        self._changed = trio.lowlevel.ParkingLot()
        self._ended = False

    def take(self, message: Ack) -> None:
        """The replica has acknowledged; what is older than its snapshot, or was never sent, is not heard."""
        for name, each in message.databases.items():
            feed = self._feeds.get(name)
            if feed is None or feed.cursor is None or not feed.accepted_from <= each.logged <= feed.cursor.txid:
                continue
            self.by_database[name] = each
            feed.database.log.pin(self._key, each.logged)
            feed.marks.passed(each.applied)
        if self._changed:
            self._changed.unpark_all()

    def forget(self, name: str) -> None:
        """What it has of a database gives way to a snapshot."""
        self.by_database.pop(name, None)

    def end(self) -> None:
        """It has left."""
        self._ended = True
        self._changed.unpark_all()

    async def logged(self) -> bool:
        """Return True when the replica has logged what is committed in this instant, False when it has left."""
        wanted = {name: each.position.txid for name, each in self._store.databases.items() if each.position.txid}
        while not self._ended:
            have = {name: self.by_database[name].logged for name in wanted if name in self.by_database}
            if all(have.get(name, 0) >= txid for name, txid in wanted.items()):
                return True
            await self._changed.park()
        return False

    async def drained(self, unsent: dict[str, float]) -> None:
        """Return when the replica has logged all that is committed, or has left; ``unsent``: what is to be sent yet."""
        while not self._ended and (unsent or self._is_behind()):
            await self._changed.park()

    def _is_behind(self) -> bool:
        for name, feed in self._feeds.items():
            acknowledged = self.by_database.get(name)
            txid = feed.database.position.txid
            if not feed.failed and txid and (acknowledged is None or acknowledged.logged < txid):
                return True
        return False
