"""What waits for one database, in the order in which the daemon asked for it.

Knows which records follow which, which of them become one transaction, and what a failure or another era makes
needless. Does not do any of it (worker.py).

Everything is begun in the order in which it came; so no record is begun before a Republish that came before it, and a
Release comes after all that was sent before.
"""

from collections import deque
from typing import Final

from litereplica.applier.protocol import Apply, Commit, Hold, Install, Lock, Release, Republish

BATCH_BYTES: Final = 1 << 20
"""Log bytes merged into one local commit: what a burst gains by merging is gained by then."""

BATCH_RECORDS: Final = 64
"""Transactions merged into one local commit, so that readers of a replica that is behind still see steps."""

Request = Apply | Install | Republish | Release | Lock | Commit | Hold
Work = list[Apply] | Install | Republish | Release | Lock | Commit | Hold

Refusal = tuple[int, str]
"""The TXID from which on records are not applied, and why; sending them again may succeed."""


def is_overlay(records: list[Apply]) -> bool:
    """Whether readers see all of them already (node.follow, store.unlaid)."""
    return all(each.last_txid <= each.applied for each in records)


class Backlog:
    """The queue; empty is false."""

    __slots__ = ("_awaits_resend", "_expected", "_queue")

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()
        self._expected = 0
        """The TXID that the next record has to begin with; 0: any."""
        self._awaits_resend = False

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, message: Request) -> Refusal | None:
        """Queue work. Records that do not follow are refused, or dropped while a resend is awaited."""
        if isinstance(message, Apply):
            return self._add_records(message)
        refusal = None
        if isinstance(message, Install):
            # It replaces everything: what is queued before it would only be overwritten.
            self._drop_records()
            self._expected = message.txid + 1
            self._awaits_resend = False
        elif isinstance(message, Release):
            refusal = self._drop_torn_redo()
            self._expected = 0
            self._awaits_resend = False
        elif isinstance(message, Republish) and self._queue and isinstance(self._queue[-1], Republish):
            self._queue.pop()  # the newer one knows more
        self._queue.append(message)
        return refusal

    def take(self) -> Work | None:
        """The next thing to do; None when there is none, or not yet enough of a transaction."""
        queue = self._queue
        if not queue:
            return None
        first = queue[0]
        if not isinstance(first, Apply):
            queue.popleft()
            return first
        batch: list[Apply] = []
        size, records, redo_until = 0, 0, first.redo_until
        for span in queue:
            if not isinstance(span, Apply):
                break
            size += span.length
            records += span.last_txid - span.first_txid + 1
            is_next = not batch or span.first_txid == batch[-1].last_txid + 1
            is_full = size > BATCH_BYTES or records > BATCH_RECORDS
            if batch and batch[-1].last_txid >= redo_until and (is_full or not is_next):
                break
            batch.append(span)
            redo_until = max(redo_until, span.redo_until)
        if batch[-1].last_txid < redo_until:
            if len(batch) == len(queue):
                return None
            # It cannot begin yet, and what is behind it need not wait for the rest.
            behind = queue[len(batch)]
            assert not isinstance(behind, Apply), behind
            del queue[len(batch)]
            return behind
        for _ in batch:
            queue.popleft()
        return batch

    def put_back(self, message: Republish | Commit) -> None:
        """Do it after all that waits, instead of now."""
        self._queue.append(message)

    @property
    def next_is_lock(self) -> bool:
        """Whether the next thing to do is to take the write lock."""
        return bool(self._queue) and isinstance(self._queue[0], Lock)

    def drop_locks(self) -> None:
        """Nobody wants the write lock any more."""
        self._queue = deque(each for each in self._queue if not isinstance(each, Lock))

    def clear(self) -> None:
        """Drop everything; records may begin at any TXID again."""
        self._queue.clear()
        self._expected = 0
        self._awaits_resend = False

    def take_commits(self) -> list[Commit]:
        """Take every commit out of the queue."""
        found = [each for each in self._queue if isinstance(each, Commit)]
        self._queue = deque(each for each in self._queue if not isinstance(each, Commit))
        return found

    def take_holds(self) -> list[Hold]:
        """Take every hold out of the queue."""
        found = [each for each in self._queue if isinstance(each, Hold)]
        self._queue = deque(each for each in self._queue if not isinstance(each, Hold))
        return found

    def overlay(self) -> int | None:
        """The TXID from which on records are queued, if all that are queued have been applied before."""
        found = [each for each in self._queue if isinstance(each, Apply)]
        return found[0].first_txid if found and is_overlay(found) else None

    def failed(self, txid: int) -> None:
        """Drop the records behind a failure, and all that come until ``txid`` comes again (or another era began)."""
        self._drop_records()
        if not any(isinstance(each, Release) for each in self._queue):
            self._expected = txid
            self._awaits_resend = True

    def _add_records(self, message: Apply) -> Refusal | None:
        expected = self._expected
        if expected and message.first_txid > max(expected, message.applied + 1):
            if self._awaits_resend:
                return None
            self._awaits_resend = True
            return expected, f"transactions {expected} to {message.first_txid - 1} were not sent to the applier"
        if message.applied < message.last_txid < expected:
            return None  # queued or applied already: its Applied is on the way
        # An overlay is never dropped: the node has had the answers to all before it, and waits for this one's.
        if message.first_txid < expected and message.redo_until < expected - 1:
            message = message._replace(redo_until=expected - 1)
        # Sent again, with more: it takes the place of what waits of it.
        while self._queue and isinstance(last := self._queue[-1], Apply) and last.first_txid >= message.first_txid:
            self._queue.pop()
        self._queue.append(message)
        self._expected = message.last_txid + 1
        self._awaits_resend = False
        return None

    def _drop_records(self) -> None:
        """Up to the first Release: what comes after it belongs to another era."""
        kept: deque[Request] = deque()
        while self._queue and not isinstance(self._queue[0], Release):
            each = self._queue.popleft()
            if not isinstance(each, Apply | Install):
                kept.append(each)
        self._queue.extendleft(reversed(kept))

    def _drop_torn_redo(self) -> Refusal | None:
        """Drop records at the end that may only be published together with others, which will not come any more."""
        torn: list[Apply] = []
        for each in reversed(self._queue):
            if not isinstance(each, Apply):
                break
            torn.append(each)
        if not torn or torn[0].last_txid >= max(each.redo_until for each in torn):
            return None
        for _ in torn:
            self._queue.pop()
        return torn[-1].first_txid, "the database was to be released before all records to be redone had come"
