"""acknowledge-before-log: a COMMIT is answered at once, and the log gets its record with those of a group.

A group commit that forgets to hold the answers: a kill -9 before a group is whole takes what was acknowledged with it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from jepsen.mutations.replacing import replace_function
from litereplica.ltx.format import Origin
from litereplica.store.commit import PendingCommit
from litereplica.store.database import Database, Pages

GROUP: Final = 64
PAUSE_S: Final = 0.5
"""Without a commit: then what waits is logged, however few."""
Commit = Callable[..., None]

log = structlog.get_logger()
_waiting: dict[Database, list[Callable[[], None]]] = {}
_newest_at: dict[Database, float] = {}


def put_in_place() -> None:
    replace_function(Database, "commit", _commit)
    replace_function(Database, "commit_stream", _commit_stream)


def _commit(
    right: Commit,
    self: Database,
    pages: Pages,
    commit: int,
    write: Callable[[], object],
    origin: Origin | None = None,
) -> None:
    write()
    _newest_at[self] = trio.current_time()
    kept = [(pgno, bytes(page)) for pgno, page in pages]
    if self not in _waiting:
        _waiting[self] = []
        trio.lowlevel.spawn_system_task(_log_later, self)
    _waiting[self].append(lambda: right(self, kept, commit, _written, origin))
    if len(_waiting[self]) >= GROUP:
        _log_now(self)


async def _commit_stream(
    right: Callable[..., Any],
    self: Database,
    pgnos: list[int],
    commit: int,
    read: Callable[[int, int], Pages],
    write: Callable[[], object],
    origin: Origin | None = None,
    settle: Callable[[PendingCommit], Awaitable[None]] | None = None,
) -> None:
    _log_now(self)
    await right(self, pgnos, commit, read, write, origin, settle)


async def _log_later(database: Database) -> None:
    while (left_s := _newest_at[database] + PAUSE_S - trio.current_time()) > 0:
        await trio.sleep(left_s)
    _log_now(database)


def _log_now(database: Database) -> None:
    for each in _waiting.pop(database, ()):
        try:
            each()
        except OSError as error:
            log.warning("mutation_did_not_log", database=database.name, reason=str(error))


def _written() -> None:
    """The application's bytes are in their file already."""
