"""Where one replica is in one database's log.

Knows the state of one stream. Does not know turns or messages: sender.py does.
"""

from litereplica.replication.lag import Marks
from litereplica.store.database import Database
from litereplica.store.log import LogCursor


class Feed:
    """What one replica gets of one database.

    Without a cursor a snapshot is due or on its way, or the replica is ``searching`` for a position that
    both have.
    """

    __slots__ = ("accepted_from", "cursor", "database", "failed", "marks", "resync_since", "searching")

    def __init__(self, database: Database) -> None:
        self.database = database
        self.cursor: LogCursor | None = None
        # What the replica acknowledges below this is about a history that a snapshot has replaced.
        self.accepted_from = 0
        self.marks = Marks()
        self.resync_since: float | None = None
        self.failed = False
        self.searching = False
