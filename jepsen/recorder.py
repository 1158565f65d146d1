"""The history of a run as it is made: indexes and times in one order, whoever says something.

Does not know what is said.
"""

import threading
from collections.abc import Callable
from typing import TextIO

from jepsen.description import Description
from jepsen.ending import Ending
from jepsen.history import NEMESIS, OBSERVER, Operation, Type
from jepsen.lines import Record, Writer


class Recorder:
    """``clock_ns``: since the start of the run. Everything is in ``stream`` at once, and kept for the judge."""

    def __init__(self, stream: TextIO, clock_ns: Callable[[], int], description: Description) -> None:
        self._writer = Writer(stream)
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._operations: list[Operation] = []
        self._description = description
        self._writer.describe(description)

    def note(
        self,
        process: int | str,
        type_: Type,
        f: str,
        value: object = None,
        node: str = "",
        error: str = "",
    ) -> int:
        """The index."""
        with self._lock:
            one = Operation(len(self._operations), self._clock_ns(), process, type_, f, value, node, error)
            self._operations.append(one)
            self._writer.write(one)
            return one.index

    def nemesis(self, f: str, value: object) -> None:
        """A half of what a nemesis does."""
        self.note(NEMESIS, "info", f, value)

    def observed(self, f: str, value: object) -> None:
        self.note(OBSERVER, "info", f, value)

    def end(self, ending: Ending) -> Record:
        """All of it."""
        with self._lock:
            self._writer.end(ending)
            return Record(tuple(self._operations), self._description, ending)

    @property
    def count(self) -> int:
        return len(self._operations)
