"""apply-out-of-order: a replica brings a record into its files before the one that it follows.

Of two records that wait for the applier the newer is taken first. One that is alone is left waiting for a moment, as if
the machine were busy, so that there often are two. Each is applied by itself: where several become one transaction the
applier looks whether they follow each other.
"""

import time
from collections.abc import Callable
from typing import Final

from jepsen.mutations.replacing import replace_function, require
from litereplica.applier.backlog import Backlog, Work
from litereplica.applier.protocol import Apply
from litereplica.applier.worker import DatabaseWorker

MOMENT_S: Final = 0.2
OVERTAKEN: Final = -1
"""The record at the head of the queue was passed by the next one already."""
# By queue: since when its head waits (time.monotonic).
_waits_since: dict[int, float] = {}


def put_in_place() -> None:
    require(Backlog, ["_queue"])
    require(DatabaseWorker, ["_backlog", "_job"])
    replace_function(DatabaseWorker, "step", _step)
    replace_function(Backlog, "take", _take)


def _step(right: Callable[[DatabaseWorker], float | None], self: DatabaseWorker) -> float | None:
    backlog = self._backlog
    queue = backlog._queue
    if self._job is None and len(queue) == 1 and isinstance(queue[0], Apply):
        since = _waits_since.setdefault(id(backlog), time.monotonic())
        left_s = since + MOMENT_S - time.monotonic()
        if since != OVERTAKEN and left_s > 0:
            return left_s
    return right(self)


def _take(right: Callable[[Backlog], Work | None], self: Backlog) -> Work | None:
    queue = self._queue
    since = _waits_since.pop(id(self), 0.0)
    records = [each for each in queue if isinstance(each, Apply)]
    if len(records) < len(queue) or len(records) < 2 or any(each.redo_until for each in records):
        return right(self)
    if since == OVERTAKEN:
        queue.popleft()
        return [records[0]]
    del queue[1]
    _waits_since[id(self)] = OVERTAKEN
    return [records[1]]
