"""A primary's store and a replica's, joined by nothing but the bytes of the log."""

from pathlib import Path

from litereplica.ltx.format import Origin
from litereplica.ltx.position import Position
from litereplica.store.awaited import Awaited
from litereplica.store.database import Database, Pages
from litereplica.store.disk import Disk
from litereplica.store.local import LocalTransaction, record_local
from litereplica.store.receive import LogReceiver
from litereplica.store.store import Store
from tests.store.application import NAME, Application, Content, open_store

ORIGIN = Origin("node-2", 77)


class Pair:
    """``application`` writes on the primary; what it logs comes to ``replica`` when ``deliver`` is called."""

    def __init__(self, root: Path, disk: Disk | None = None, page_size: int = 512, seed: int = 1) -> None:
        self.primary = open_store(root / "primary")
        self.application = Application(self.primary, page_size, seed)
        self.replica = open_store(root / "replica", disk)
        self.receiver: LogReceiver | None = None
        self._sent = 0

    def close(self) -> None:
        self.primary.close()
        self.replica.close()

    @property
    def database(self) -> Database:
        """The replica's."""
        return self.replica.get(NAME) or self.replica.create(NAME)

    def undelivered(self) -> bytes:
        """What the log has that the replica was not sent; it counts as sent from now on."""
        log = self.application.database.log
        cursor = log.cursor(self._sent)
        data = b""
        while piece := cursor.read(1 << 20):
            data += piece
        self._sent = log.last_txid
        return data

    def deliver(self, data: bytes | None = None) -> None:
        if self.receiver is None:
            self.receiver = LogReceiver(self.database)
        self.receiver.feed(self.undelivered() if data is None else data, self.primary.epoch)

    def applied(self) -> None:
        """What the applier tells once it has brought in all that there is."""
        self.database.set_applied(self.database.position.txid)

    def start(self, transactions: int = 3) -> None:
        """Both have the same content."""
        self.application.start()
        for _ in range(transactions):
            self.application.commit()
        self.deliver()
        self.applied()

    @property
    def content(self) -> Content:
        return self.application.oracle[self.application.acknowledged]

    def change(self) -> Pages:
        """Pages that an application on the replica writes."""
        return [(1, self.application.page()), (len(self.content), self.application.page())]

    async def record(self, pages: Pages, origin: Origin = ORIGIN) -> LocalTransaction:
        pages = sorted(dict(pages).items())
        size = self.application.page_size
        return await record_local(
            self.database, [pgno for pgno, _ in pages], len(self.content), size, lambda i, j: pages[i:j], origin
        )

    def commit(self, pages: Pages, origin: Origin = ORIGIN) -> Position:
        """On the primary, for the replica."""
        application, database = self.application, self.application.database
        changes = dict(pages)
        commit = len(self.content)
        application._next(changes, commit)
        application.origins[application.in_flight] = origin
        database.commit(sorted(changes.items()), commit, lambda: None, origin)
        application.acknowledged = application.in_flight
        return database.position


class Held:
    """The bytes of an application that are held until their transaction is committed."""

    def __init__(self, database: Database, failure: OSError | None = None) -> None:
        self.database = database
        self.failure = failure
        self.completed_at: list[Position] = []

    def complete(self) -> None:
        self.completed_at.append(self.database.position)
        if self.failure is not None:
            raise self.failure

    def awaited(self, transaction: LocalTransaction, post_checksum: int | None = None) -> Awaited:
        promised = transaction.post_checksum if post_checksum is None else post_checksum
        return Awaited(
            transaction.origin,
            transaction.base,
            promised,
            self.complete,
            transaction.first_page,
            transaction.changed,
        )


def file_names(store: Store) -> list[str]:
    return sorted(each.name for each in store.forwarded.iterdir())
