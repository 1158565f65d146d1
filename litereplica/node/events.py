"""What happens on this node, told to whoever listens, in the form that LiteFS's clients read.

Knows the events: ``init`` first, then ``tx`` for each transaction, ``primaryChange``, and two that LiteFS does not have
(its clients read over them): ``halt`` when a lock begins or ends, and ``forward`` when transactions of applications
here were not committed by the primary. Does not know HTTP.

A listener that does not keep up is cut off and has to begin anew: nothing waits for it, and nothing grows.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import trio

from litereplica.ltx.position import format_txid
from litereplica.node.halting import HaltChange
from litereplica.store.database import Database
from litereplica.store.store import Store

QUEUE_EVENTS: Final = 4096
"""Events that wait for one listener: some seconds of a busy primary."""
LISTENERS_LIMIT: Final = 64

FORWARD_EVERY_S: Final = 1.0
"""From one ``forward`` of a database to the next: an application that tries again and again is one event a second."""

Event = dict[str, Any]


class Events:
    """All listeners of one node."""

    def __init__(
        self,
        store: Store,
        primary: Callable[[], str | None],
        is_primary: Callable[[], bool],
        is_shown: Callable[[str], bool],
    ) -> None:
        """``primary``: the primary's name, None while it is not known; both until a role was told.

        ``is_shown``: whether readers are known to see all that is applied of a database.
        """
        self._store = store
        self._is_shown = is_shown
        self._primary = primary
        self._is_primary = is_primary
        # The last that was told: a node that is about to be no primary any more has said so before it is none.
        self._role: Event | None = None
        self._listeners: list[trio.MemorySendChannel[Event]] = []
        # Those who do not want to hear of transactions.
        self._quiet: list[trio.MemorySendChannel[Event]] = []
        # The last TXID that was told, by database.
        self._told: dict[str, int] = {}
        # By database: when the last ``forward`` was told, and how many were not since.
        self._forwards: dict[str, tuple[float, int]] = {}

    def listen(self, *, transactions: bool = True) -> "trio.MemoryReceiveChannel[Event] | None":
        """Events from now on, the first of which says what this node is; None when too many listen.

        Without ``transactions`` a listener costs commits nothing.
        """
        for listeners in (self._listeners, self._quiet):
            listeners[:] = [each for each in listeners if each.statistics().open_receive_channels]
        if len(self._listeners) + len(self._quiet) >= LISTENERS_LIMIT:
            return None
        if transactions and self._changed not in self._store.listeners:
            self._told = {name: each.applied for name, each in self._store.databases.items()}
            self._store.listeners.append(self._changed)
        send, receive = trio.open_memory_channel[Event](QUEUE_EVENTS)
        (self._listeners if transactions else self._quiet).append(send)
        role = self._role or {"isPrimary": self._is_primary(), "hostname": self._primary() or ""}
        send.send_nowait({"type": "init", "data": role})
        return receive

    def primary_changed(self, primary: str | None, reason: str, epoch: int, *, leads: bool) -> None:
        """Another node is primary, or none; ``leads``: this one."""
        self._role = {"isPrimary": leads, "hostname": primary or ""}
        self._tell({"type": "primaryChange", "data": {**self._role, "reason": reason, "epoch": epoch}})

    def halted(self, change: HaltChange) -> None:
        """A node has the lock of a database, or has it no more."""
        data = {"node": change.node, "state": "ended" if change.ended else "held", "reason": change.reason}
        self._tell({"type": "halt", "db": change.database, "data": data})

    def not_forwarded(self, database: str, outcome: str, reason: str) -> None:
        """A transaction of an application here was not committed by the primary, or may not have been."""
        now = time.monotonic()
        told_at, untold = self._forwards.get(database, (-FORWARD_EVERY_S, 0))
        if now - told_at < FORWARD_EVERY_S:
            self._forwards[database] = told_at, untold + 1
            return
        self._forwards[database] = now, 0
        data = {"outcome": outcome, "reason": reason, "untold": untold}
        self._tell({"type": "forward", "db": database, "data": data})

    def _changed(self, database: Database) -> None:
        """Tell of a transaction that is applied (a listener of the store)."""
        txid = database.applied
        # Lower than before after a rewind: whoever listens has to learn that its history is another one now.
        if txid == self._told.get(database.name, 0):
            return
        self._told[database.name] = txid
        at = database.position
        when = datetime.fromtimestamp(database.timestamp_ms / 1000, UTC)
        data = {
            "txID": format_txid(txid),
            "postApplyChecksum": f"{at.checksum:016x}" if at.txid == txid else "",
            "pageSize": database.page_size,
            "commit": database.page_count,
            "shown": self._is_shown(database.name),
            "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        self._tell({"type": "tx", "db": database.name, "data": data})

    def _tell(self, event: Event) -> None:
        self._tell_each(self._listeners, event)
        if event["type"] != "tx":
            self._tell_each(self._quiet, event)
        if not self._listeners and self._changed in self._store.listeners:
            self._store.listeners.remove(self._changed)

    @staticmethod
    def _tell_each(listeners: list[trio.MemorySendChannel[Event]], event: Event) -> None:
        gone = []
        for listener in listeners:
            try:
                listener.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                gone.append(listener)
        for listener in gone:
            listener.close()
            listeners.remove(listener)
