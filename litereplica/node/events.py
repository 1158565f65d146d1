"""What happens on this node, told to whoever listens, in the form that LiteFS's clients read.

Knows the events: ``init`` first, then ``tx`` for each transaction and ``primaryChange``. Does not know HTTP.

A listener that does not keep up is cut off and has to begin anew: nothing waits for it, and nothing grows.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import trio

from litereplica.ltx.position import format_txid
from litereplica.store.database import Database
from litereplica.store.store import Store

QUEUE_EVENTS: Final = 4096
"""Events that wait for one listener: some seconds of a busy primary."""
LISTENERS_LIMIT: Final = 64

Event = dict[str, Any]


class Events:
    """All listeners of one node."""

    def __init__(self, store: Store, primary: Callable[[], str | None], is_primary: Callable[[], bool]) -> None:
        """``primary``: the primary's name, None while it is not known."""
        self._store = store
        self._primary = primary
        self._is_primary = is_primary
        self._listeners: list[trio.MemorySendChannel[Event]] = []
        # The last TXID that was told, by database.
        self._told: dict[str, int] = {}

    def listen(self) -> "trio.MemoryReceiveChannel[Event] | None":
        """Events from now on, the first of which says what this node is; None when too many listen."""
        self._listeners = [each for each in self._listeners if each.statistics().open_receive_channels]
        if len(self._listeners) >= LISTENERS_LIMIT:
            return None
        if self._changed not in self._store.listeners:
            self._told = {name: each.applied for name, each in self._store.databases.items()}
            self._store.listeners.append(self._changed)
        send, receive = trio.open_memory_channel[Event](QUEUE_EVENTS)
        self._listeners.append(send)
        send.send_nowait({"type": "init", "data": {"isPrimary": self._is_primary(), "hostname": self._primary() or ""}})
        return receive

    def primary_changed(self, primary: str | None, reason: str, epoch: int) -> None:
        """Another node is primary, or none."""
        is_primary = self._is_primary()
        data = {"isPrimary": is_primary, "hostname": primary or "", "reason": reason, "epoch": epoch}
        self._tell({"type": "primaryChange", "data": data})

    def _changed(self, database: Database) -> None:
        """Tell of a transaction that readers see (a listener of the store)."""
        txid = database.applied
        if txid <= self._told.get(database.name, 0):
            return
        self._told[database.name] = txid
        at = database.position
        when = datetime.fromtimestamp(database.timestamp_ms / 1000, UTC)
        data = {
            "txID": format_txid(txid),
            "postApplyChecksum": f"{at.checksum:016x}" if at.txid == txid else "",
            "pageSize": database.page_size,
            "commit": database.page_count,
            "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        self._tell({"type": "tx", "db": database.name, "data": data})

    def _tell(self, event: Event) -> None:
        gone = []
        for listener in self._listeners:
            try:
                listener.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                gone.append(listener)
        for listener in gone:
            listener.close()
            self._listeners.remove(listener)
        if gone and not self._listeners and self._changed in self._store.listeners:
            self._store.listeners.remove(self._changed)
