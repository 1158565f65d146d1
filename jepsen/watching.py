"""Threads that look on for as long as a block lasts.

Knows how they begin and end. Does not know what is looked at.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Self


class Watching:
    """Use it as a context. Each of ``watches`` has a thread, and returns soon after ``stopped`` is set."""

    def __init__(self, watches: Iterable[Callable[[], object]]) -> None:
        self.stopped = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in watches]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for each in self._threads:
            each.join()
