"""What the mount and SQLite do to a store, and an oracle of what every transaction left behind."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.format import Origin
from litereplica.sqlite.pages import lock_page
from litereplica.store.database import Database
from litereplica.store.disk import Disk
from litereplica.store.store import Store

NAME = "dir/app.db"
SEGMENT = 6000
Content = dict[int, bytes]


def open_store(root: Path, disk: Disk | None = None, compression: str = "none", segment_bytes: int = SEGMENT) -> Store:
    return Store.open(root, disk or Disk(), "node-1", compression, segment_bytes)


def rolling(content: Content, page_size: int = 512) -> int:
    checksum = 0
    for pgno, page in content.items():
        if pgno != lock_page(page_size):
            checksum ^= page_checksum(pgno, page)
    return checksum


def assert_file_is(path: Path, content: Content) -> None:
    if not content:
        assert not path.exists()
        return
    expected = b"".join(content[pgno] for pgno in range(1, len(content) + 1))
    assert path.read_bytes() == expected


class Application:
    """One database's writer. ``oracle[txid]``: the pages after that transaction.

    Every second transaction is one that another node's application has made: ``origins[txid]``.
    """

    def __init__(self, store: Store, page_size: int = 512, seed: int = 0, name: str = NAME) -> None:
        self.store = store
        self.name = name
        self.page_size = page_size
        self.random = random.Random(seed)
        self.oracle: dict[int, Content] = {0: {}}
        self.origins: dict[int, Origin | None] = {}
        self.acknowledged = 0
        self.synced = 0
        self.in_flight = 0

    @property
    def database(self) -> Database:
        return self.store.databases[self.name]

    def go_on(self, store: Store) -> None:
        """The next process."""
        self.store = store
        found = self.store.get(self.name)
        self.acknowledged = found.position.txid if found is not None else 0
        for txid in [each for each in self.oracle if each > self.acknowledged]:
            del self.oracle[txid]

    def page(self) -> bytes:
        return self.random.randbytes(8) * (self.page_size // 8)

    def start(self) -> None:
        database = self.store.get(self.name) or self.store.create(self.name)
        database.set_page_size(self.page_size)

    def _next(self, changes: Content, commit: int) -> Origin | None:
        content = {**self.oracle[self.acknowledged], **changes}
        self.in_flight = self.acknowledged + 1
        self.oracle[self.in_flight] = {pgno: page for pgno, page in content.items() if pgno <= commit}
        origin = Origin("node-2", 1000 + self.in_flight) if self.in_flight % 2 == 0 else None
        self.origins[self.in_flight] = origin
        return origin

    def commit(
        self, changes: Content | None = None, commit: int | None = None, write: Callable[[], object] = lambda: None
    ) -> None:
        changes, commit = self._changes(changes, commit)
        origin = self._next(changes, commit)
        self.database.commit(sorted(changes.items()), commit, write, origin)
        self.acknowledged = self.in_flight

    async def commit_stream(
        self, changes: Content | None = None, commit: int | None = None, write: Callable[[], object] = lambda: None
    ) -> None:
        changes, commit = self._changes(changes, commit)
        pages = sorted((pgno, page) for pgno, page in changes.items() if pgno <= commit)
        origin = self._next(changes, commit)
        await self.database.commit_stream([pgno for pgno, _ in pages], commit, lambda i, j: pages[i:j], write, origin)
        self.acknowledged = self.in_flight

    def _changes(self, changes: Content | None, commit: int | None) -> tuple[Content, int]:
        before = len(self.oracle[self.acknowledged])
        if commit is None:
            commit = max(1, before + self.random.choice([0, 0, 1, 3, -2])) if changes is None else max(before, *changes)
        if changes is None:
            chosen = {self.random.randint(1, commit) for _ in range(self.random.randint(1, 4))}
            changes = {pgno: self.page() for pgno in chosen | set(range(before + 1, commit + 1)) | {1}}
        return changes, commit

    async def checkpoint(self, *, whole: bool = True) -> None:
        """SQLite's checkpoint as the mount sees it; ``whole``: and then the WAL begins again."""
        await self.sync()
        content = self.oracle[self.acknowledged]
        disk = self.store.disk
        path = self.store.file_path(self.name)
        disk.make_directories(path.parent)
        descriptor = disk.open(path, os.O_RDWR | os.O_CREAT)
        try:
            for pgno, page in content.items():
                if whole or self.random.random() < 0.5:
                    disk.pwrite(descriptor, page, (pgno - 1) * self.page_size)
            if whole:
                disk.truncate(descriptor, len(content) * self.page_size)
                self.database.file_complete()
        finally:
            disk.close(descriptor)

    async def sync(self) -> None:
        at = self.acknowledged
        await self.database.log.sync()
        self.synced = max(self.synced, at)

    def drop(self) -> None:
        self.in_flight = self.acknowledged + 1
        self.oracle[self.in_flight] = {}
        self.origins[self.in_flight] = None
        self.database.drop()
        self.acknowledged = self.in_flight
        if self.store.file_path(self.name).exists():
            self.store.disk.unlink(self.store.file_path(self.name))

    def check(self, *, file: bool = True) -> None:
        """Everything that the store says is what the oracle has."""
        database = self.database
        content = self.oracle[self.acknowledged]
        assert database.position.txid == self.acknowledged
        assert database.page_count == len(content)
        assert database.position.checksum == rolling(content, self.page_size)
        table = database.checksums.table
        assert [table[pgno - 1] for pgno in range(1, len(content) + 1)] == [
            page_checksum(pgno, content[pgno]) for pgno in range(1, len(content) + 1)
        ]
        assert not any(table[len(content) :])
        for txid in range(database.log.first_txid, database.log.last_txid + 1):
            assert database.origin_at(txid) == self.origins.get(txid)
        if file:
            assert_file_is(database.file_path, content)
