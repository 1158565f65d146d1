"""Answers to one question that was asked about several databases.

Knows who has not answered. Does not know the question.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

import trio

Answer = TypeVar("Answer")


class Gathering(Generic[Answer]):
    """``found``: answers by name; ``missing``: names without one."""

    def __init__(self, names: Iterable[str]) -> None:
        self.missing = set(names)
        self.found: dict[str, Answer] = {}
        self._done = trio.Event()
        if not self.missing:
            self._done.set()

    def answer(self, name: str, value: Answer) -> None:
        """Somebody has answered; who was not asked, or has answered before, is not heard."""
        if name in self.missing:
            self.missing.discard(name)
            self.found[name] = value
            if not self.missing:
                self._done.set()

    def abandon(self) -> None:
        """Nobody will answer any more."""
        self._done.set()

    async def wait(self, limit_s: float) -> None:
        """Return when everybody has answered, nobody will any more, or the time is over."""
        with trio.move_on_after(limit_s):
            await self._done.wait()
