"""A replica whose disk cannot be read for a moment goes on with what it was told, and with what it has to send."""

import errno
import os
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import structlog
import trio
import trio.testing

from litereplica.applier.backlog import Backlog
from litereplica.applier.protocol import Apply, Release
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.position import Position
from litereplica.mount.access import Access
from litereplica.mount.database_file import DatabaseFile
from litereplica.mount.operations import Operations
from litereplica.mount.wal_file import WalFile
from litereplica.node.follow import Follower
from litereplica.store.disk import Disk
from litereplica.store.page_checksums import xor_of
from litereplica.store.segment import INDEX_SUFFIX
from tests.store.application import NAME, Application, open_store


class UnreadableDisk(Disk):
    """Reads fail, and nothing can be removed, while it is ``broken``."""

    __slots__ = ("broken",)

    def __init__(self) -> None:
        self.broken = False

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(descriptor, size, offset)

    def unlink(self, path: Path) -> None:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().unlink(path)


class TwinLink:
    """Takes what an applier would, and does nothing with it."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int]] = []

    def close_database(self, _name: str) -> None:
        """It has nothing open."""

    @property
    def pid(self) -> None:
        """It is no process."""

    def apply(
        self, _name: str, _path: Path, _offset: int, _length: int, first_txid: int, last_txid: int, **_more: Any
    ) -> None:
        self.given.append((first_txid, last_txid))


@pytest.fixture
def disk() -> UnreadableDisk:
    return UnreadableDisk()


@pytest.fixture
def app(tmp_path: Path, disk: UnreadableDisk) -> Application:
    """A database of 20 transactions."""
    app = Application(open_store(tmp_path / "data", disk, segment_bytes=4096))
    app.start()
    for _ in range(20):
        app.commit()
    # A start makes the file.
    app.store.close()
    app.go_on(open_store(tmp_path / "data", disk, segment_bytes=4096))
    return app


async def test_a_checkpoint_that_cannot_be_looked_up_does_not_count_and_the_next_one_does(
    app: Application, disk: UnreadableDisk
) -> None:
    follower = Follower(app.store, Operations(app.store, Access()), TwinLink())  # type: ignore[arg-type]
    before = app.database.base.txid
    for _ in range(5):
        app.commit()
    disk.broken = True
    with structlog.testing.capture_logs() as lines:
        follower.checkpointed(NAME, 22)
    assert [(line["event"], line["database"]) for line in lines] == [("log_unreadable", NAME)]
    assert app.database.base.txid == before
    disk.broken = False
    follower.checkpointed(NAME, 23)
    assert app.database.base.txid == 23
    app.store.close()


async def test_records_that_cannot_be_looked_up_are_given_to_the_applier_later(
    app: Application, disk: UnreadableDisk
) -> None:
    link = TwinLink()
    follower = Follower(app.store, Operations(app.store, Access()), link)  # type: ignore[arg-type]
    app.database.applied = 5
    # Where its records are has to be read again.
    for segment in app.database.log.segments():
        segment.path.with_suffix(INDEX_SUFFIX).unlink(missing_ok=True)
        segment.starts = None
    disk.broken = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        with trio.move_on_after(5), structlog.testing.capture_logs() as lines:
            while not lines:
                await trio.sleep(0.01)
        assert [(line["event"], line["txid"], line["retry"]) for line in lines] == [
            ("apply_failed", "0000000000000006", True)
        ]
        assert link.given == []
        disk.broken = False
        with trio.fail_after(20):
            while not link.given:
                await trio.sleep(0.01)
        assert link.given[0][0] == 6
        nursery.cancel_scope.cancel()
    app.store.close()


async def test_the_newest_transaction_that_cannot_be_looked_up_is_given_to_a_new_applier_later(
    app: Application, disk: UnreadableDisk
) -> None:
    link = TwinLink()
    follower = Follower(app.store, Operations(app.store, Access()), link)  # type: ignore[arg-type]
    newest = app.database.position.txid
    app.database.applied = newest - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        with trio.fail_after(20):
            while not link.given:
                await trio.sleep(0.01)
        follower.applied(NAME, newest)
        link.given.clear()
        # It rests, and where its newest record is has to be read again.
        for segment in app.database.log.segments():
            segment.path.with_suffix(INDEX_SUFFIX).unlink(missing_ok=True)
            segment.starts = None
        # The file has all up to there only.
        app.database.base = Position(newest - 1, 0)
        disk.broken = True
        with trio.move_on_after(5), structlog.testing.capture_logs() as lines:
            follower.restarted()
            while not lines:
                await trio.sleep(0.01)
        assert [(line["event"], line["txid"], line["retry"]) for line in lines] == [
            ("apply_failed", f"{newest:016x}", True)
        ]
        assert link.given == []
        disk.broken = False
        with trio.fail_after(20):
            while not link.given:
                await trio.sleep(0.01)
        assert link.given == [(newest, newest)]
        nursery.cancel_scope.cancel()
    app.store.close()


async def test_the_file_of_a_dropped_database_that_cannot_be_removed_is_removed_later(
    app: Application, disk: UnreadableDisk
) -> None:
    follower = Follower(app.store, Operations(app.store, Access()), TwinLink())  # type: ignore[arg-type]
    app.database.drop()
    app.database.applied = app.database.position.txid - 1
    await app.database.log.sync()
    disk.broken = True
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(5), structlog.testing.capture_logs() as lines:
            nursery.start_soon(follower.run)
            while not lines:
                await trio.sleep(0.01)
        assert [(line["event"], line["database"]) for line in lines] == [("apply_failed", NAME)]
        assert app.database.file_path.exists()
        disk.broken = False
        with trio.fail_after(20):
            while app.database.applied < app.database.position.txid:
                await trio.sleep(0.01)
        assert not app.database.file_path.exists()
        nursery.cancel_scope.cancel()
    app.store.close()


class QueueLink(TwinLink):
    """What it is given waits as in the applier, until ``turn``."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.installed: list[int] = []
        self.closes = False

    @property
    def pid(self) -> int | None:  # type: ignore[override]
        """Whether it will say that it has closed a database."""
        return 1 if self.closes else None

    def close_database(self, _name: str) -> None:
        self.backlog.clear()

    def apply(  # type: ignore[override]
        self, name: str, path: Path, offset: int, length: int, first_txid: int, last_txid: int, *, applied: int
    ) -> None:
        super().apply(name, path, offset, length, first_txid, last_txid)
        assert self.backlog.add(Apply(name, str(path), offset, length, first_txid, last_txid, 0, applied)) is None

    def install(self, _name: str, _path: Path, _page_size: int, _page_count: int, txid: int) -> None:
        self.installed.append(txid)

    def turn(self, follower: Follower) -> None:
        while (work := self.backlog.take()) is not None:
            if isinstance(work, list):
                follower.applied(NAME, work[-1].last_txid)


@asynccontextmanager
async def after_a_failed_promotion(app: Application) -> AsyncIterator[tuple[Follower, QueueLink]]:
    """The newest transaction was applied, and is sent again because this node has not become the primary.

    The database was not released: a COMMIT is held there.
    """
    for _ in range(3):
        app.commit()
    database = app.database
    link = QueueLink()
    follower = Follower(app.store, Operations(app.store, Access()), link)  # type: ignore[arg-type]
    database.applied = database.position.txid - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        link.turn(follower)
        assert not database.is_behind
        follower.let_go()
        follower.restarted()
        await trio.testing.wait_all_tasks_blocked()
        assert database.unlaid.laying == database.position.txid
        yield follower, link
        nursery.cancel_scope.cancel()
    app.store.close()


def go_back(app: Application, follower: Follower, to: int) -> None:
    """A content at ``to`` is to be written over this one."""
    database = app.database
    database.pending_install = app.store.root / "pages"
    header = b"SQLite format 3\0" + (512).to_bytes(2) + b"\2\2\0\x40\x20\x20"
    database.pending_install.write_bytes(header.ljust(512, b"\0"))
    database.applied, database.base = 0, Position(to, 0)
    follower.replaced(database)


async def test_what_is_sent_again_after_a_failed_promotion_is_answered(app: Application) -> None:
    async with after_a_failed_promotion(app) as (follower, link):
        link.turn(follower)
        unlaid = app.database.unlaid
        assert not unlaid.laying
        # The next promotion succeeds: the applier may write for other nodes.
        unlaid.overtake()
        link.backlog.add(Release(NAME))
        assert not unlaid.is_overtaken


@pytest.mark.parametrize("fails", [False, True])
async def test_a_node_goes_back_after_a_failed_promotion(app: Application, fails: bool) -> None:
    async with after_a_failed_promotion(app) as (follower, link):
        newest = app.database.position.txid
        go_back(app, follower, newest - 2)
        await trio.testing.wait_all_tasks_blocked()
        # Its report could be taken for the one of the new content.
        assert link.installed == []
        if fails:
            follower.failed(NAME, newest, "somebody keeps the lock", retry=True)
        else:
            link.turn(follower)
        await trio.testing.wait_all_tasks_blocked()
        assert link.installed == [newest - 2]
        assert not app.database.unlaid.laying


async def test_what_was_to_be_laid_over_when_the_applier_let_go_is_not_waited_for(app: Application) -> None:
    async with after_a_failed_promotion(app) as (follower, link):
        link.closes = True
        async with trio.open_nursery() as nursery:
            # Another file is about to take its place, and then does not.
            nursery.start_soon(follower.give_way, app.database)
            await trio.testing.wait_all_tasks_blocked()
            follower.closed(NAME)
        follower.go_on(app.database)
        assert not app.database.unlaid.laying


async def test_a_new_applier_is_not_given_a_history_that_is_about_to_be_replaced(app: Application) -> None:
    link = TwinLink()
    follower = Follower(app.store, Operations(app.store, Access()), link)  # type: ignore[arg-type]
    app.database.applied -= 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        assert link.given
        await follower.give_way(app.database)
        link.given.clear()
        follower.restarted()
        await trio.testing.wait_all_tasks_blocked()
        assert link.given == []
        follower.go_on(app.database)
        await trio.testing.wait_all_tasks_blocked()
        assert link.given
        nursery.cancel_scope.cancel()
    app.store.close()


async def test_the_applier_writes_nothing_of_a_lost_history_once_the_log_is_another(app: Application) -> None:
    """It reads the records where they were, and may find those of the new history there."""
    async with after_a_failed_promotion(app) as (follower, _):
        store, database, newest = app.store, app.database, app.database.position.txid
        access = Access()
        wal = WalFile(store, access, DatabaseFile(store, access, NAME), f"{NAME}-wal")
        store.file_path(f"{NAME}-wal").touch()
        wal.ensure_open()
        assert await wal.write_applied(0, bytes(32)) == 32
        header = b"SQLite format 3\0" + (512).to_bytes(2) + b"\2\2\0\x40\x20\x20"
        pages = [header.ljust(512, b"\0"), app.page(), app.page()]
        content = store.incoming / "pages"
        content.write_bytes(b"".join(pages))
        entries = array("Q", [page_checksum(pgno, page) for pgno, page in enumerate(pages, 1)])
        at = Position(newest - 2, xor_of(entries))
        store.install(NAME, content, database.page_size, len(pages), at, entries, 1, 1234)
        follower.replaced(database)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await wal.write_applied(0, bytes(32))
        assert refused.value.errno == errno.EIO
        with structlog.testing.capture_logs() as lines:
            follower.failed(NAME, newest, "applying failed: Input/output error", retry=True)
            await trio.testing.wait_all_tasks_blocked()
        # No error of anybody's: what it is given next is all that there is.
        assert [line["event"] for line in lines if line["log_level"] == "error"] == []
        assert await wal.write_applied(0, bytes(32)) == 32
