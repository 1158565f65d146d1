"""Which pages of a database file a live rollback journal protects: they may still become what they were.

Knows page numbers only. Does not know the journal, nor what the pages hold.
"""

from typing import Final

import trio

# Beyond this many, every page of the file counts as changed: they are compared at the end anyhow, and a set of numbers
# for a database of many GB would cost hundreds of MB.
REMEMBERED_LIMIT: Final = 100_000


class OpenPages:
    """The pages of one database that the transaction under its live journal has written.

    ``rollbacks`` rises when a journal has ended and some of its pages were put back: what was read of them meanwhile
    is of no transaction.
    """

    __slots__ = ("_closed", "_everything", "_kept", "_pages", "is_open", "rollbacks")

    def __init__(self) -> None:
        self.is_open = False
        self.rollbacks = 0
        self._closed = trio.Event()
        self._forget()

    def _forget(self) -> None:
        self._pages: set[int] = set()
        self._everything = False
        # The file was cut to so many pages meanwhile; None when it was not.
        self._kept: int | None = None

    def _open(self) -> None:
        if not self.is_open:
            self.is_open = True
            self._closed = trio.Event()

    def add(self, first_pgno: int, last_pgno: int) -> None:
        """These pages are about to be written."""
        self._open()
        if last_pgno == first_pgno:
            self._pages.add(first_pgno)
        else:
            self._pages.update(range(first_pgno, last_pgno + 1))
        if len(self._pages) > REMEMBERED_LIMIT:
            self._everything = True
            self._pages = set()

    def cut(self, page_count: int) -> None:
        """The file is about to be cut to ``page_count`` pages."""
        self._open()
        self._kept = page_count if self._kept is None else min(self._kept, page_count)

    def changed(self, page_count: int, known_pages: int) -> list[int]:
        """Numbers, ascending, of pages that may differ from what they were.

        ``page_count`` pages are there now, ``known_pages`` were there before: pages beyond those belong to the
        transaction even if nothing was written to them.
        """
        kept = min(known_pages, page_count if self._kept is None else self._kept)
        if self._everything:
            return list(range(1, page_count + 1))
        found = self._pages.union(range(kept + 1, page_count + 1))
        return sorted(pgno for pgno in found if pgno <= page_count)

    def intersects(self, first_pgno: int, count: int) -> bool:
        """Whether a live journal protects changes to some of the pages."""
        if not self.is_open:
            return False
        last = first_pgno + count - 1
        if self._everything or (self._kept is not None and last > self._kept):
            return True
        if len(self._pages) < count:
            return any(first_pgno <= pgno <= last for pgno in self._pages)
        return not self._pages.isdisjoint(range(first_pgno, last + 1))

    def close(self, *, rolled_back: bool) -> None:
        """The journal has ended."""
        if rolled_back:
            self.rollbacks += 1
        self._forget()
        self.is_open = False
        self._closed.set()

    async def wait_closed(self) -> None:
        """Return when the journal has ended under which pages were written; another may live by then."""
        if self.is_open:
            await self._closed.wait()
