"""forget-page: of every third transaction of several pages the log lacks the last page.

Position and rolling checksums are those of what is logged, so no node misses anything: only the bytes of the primary
are other than its position says, and those of its replicas other than the primary's.
"""

from collections.abc import Callable
from itertools import count
from typing import Final

from jepsen.mutations.replacing import replace_function
from litereplica.ltx.format import Origin
from litereplica.store.database import Database, Pages

EVERY: Final = 3
LEAST_PAGES: Final = 3
_numbers = count(1)


def put_in_place() -> None:
    replace_function(Database, "commit", _commit)


def _commit(
    right: Callable[..., None],
    self: Database,
    pages: Pages,
    commit: int,
    write: Callable[[], object],
    origin: Origin | None = None,
) -> None:
    if len(pages) >= LEAST_PAGES and not next(_numbers) % EVERY:
        pages = pages[:-1]
    right(self, pages, commit, write, origin)
