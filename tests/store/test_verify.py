"""Verification of a database's file: right while applications go on, and damage is found."""

import os
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litereplica.errors import Corrupt, Unavailable
from litereplica.store.direct import CHUNK_BYTES, DirectFile
from litereplica.store.disk import Disk
from litereplica.store.judge import page_checksums
from litereplica.store.store import Store
from litereplica.store.verify import FileCheck, Verification, Verified
from tests.store.application import NAME, Application, open_store

PAGES = 3000  # of 512 bytes: two chunks


@asynccontextmanager
async def application(root: Path, pages: int = PAGES) -> AsyncIterator[Application]:
    """A database whose file is complete, and after that one transaction that only the log has."""
    store = open_store(root, segment_bytes=1 << 20)
    try:
        app = Application(store, seed=5)
        app.start()
        app.commit({pgno: app.page() for pgno in range(1, pages + 1)})
        await app.checkpoint()
        app.commit({1: app.page(), 7: app.page()})
        await app.sync()
        yield app
    finally:
        store.close()


async def verify(app: Application, limit_s: float = 20.0) -> Verified:
    verification = Verification(app.database, "test")
    try:
        with trio.fail_after(limit_s):
            while verification.result is None:
                await verification.step()
        return verification.result
    finally:
        verification.close()
        assert not app.database.log._pins


def flip(app: Application, pgno: int, at: int = 100) -> None:
    with app.database.file_path.open("r+b") as file:
        file.seek((pgno - 1) * app.page_size + at)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte ^ 0x10,)))


async def test_a_sound_database_adds_up_to_its_position(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        found = await verify(app)
        assert found.sound
        assert found.position == app.database.position
        assert found.recomputed == found.table == found.logged == found.position.checksum
        assert (found.page_count, found.page_size, found.log_pages, found.damaged) == (PAGES, 512, 2, ())


@pytest.mark.parametrize("pgno", [2, 2047, 2048, 2049, PAGES])
async def test_one_flipped_bit_is_found_in_any_page(tmp_path: Path, pgno: int) -> None:
    async with application(tmp_path) as app:
        flip(app, pgno)
        found = await verify(app)
        assert found.damaged == (pgno,)
        assert not found.sound
        assert found.recomputed != found.position.checksum
        assert found.table == found.position.checksum


async def test_a_page_that_the_log_has_newer_is_taken_from_there(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        flip(app, 7)
        assert (await verify(app)).sound
        await app.checkpoint()
        flip(app, 7)
        assert (await verify(app)).damaged == (7,)


async def test_pages_that_are_missing_at_the_end_of_the_file_are_damaged(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        os.truncate(app.database.file_path, (PAGES - 2) * 512)
        assert (await verify(app)).damaged == (PAGES - 1, PAGES)


async def test_a_database_that_has_grown_in_the_log_only_is_sound(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        app.commit({pgno: app.page() for pgno in range(PAGES + 1, PAGES + 3000)})
        found = await verify(app)
        assert found.sound
        assert found.page_count == PAGES + 2999


async def test_a_wrong_table_of_page_checksums_is_not_sound(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        app.database.checksums.table[41] ^= 1
        found = await verify(app)
        assert not found.sound
        assert found.recomputed == found.position.checksum != found.table


async def test_damage_in_the_log_is_said(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        segment = max((tmp_path / "db").glob("*/*.ltx"))
        data = segment.read_bytes().rstrip(b"\x00")
        segment.write_bytes(data[:-300] + b"\xff" + data[-299:])
        with pytest.raises(Corrupt):
            await verify(app)


async def test_it_is_right_while_transactions_checkpoints_and_shrinking_go_on(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        for round_number in range(30):
            verification = Verification(app.database, "test")
            try:
                while verification.result is None:
                    if app.random.random() < 0.5:
                        app.commit()
                    if app.random.random() < 0.3:
                        await app.checkpoint(whole=app.random.random() < 0.6)
                    if app.random.random() < 0.1:
                        app.commit({1: app.page()}, commit=max(2, len(app.oracle[app.acknowledged]) - 40))
                    await verification.step()
            finally:
                verification.close()
            assert verification.result.sound, (round_number, verification.result)
            await app.checkpoint()


async def test_a_page_under_a_live_journal_is_waited_for(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        pages = app.database.open_pages
        original = app.database.file_path.read_bytes()
        pages.add(9, 9)
        flip(app, 9)
        verification = Verification(app.database, "test")
        try:
            for _ in range(2):
                with trio.move_on_after(0.05):
                    await verification.step()
            assert verification.pages_done == 0
            app.database.file_path.write_bytes(original)
            pages.close(rolled_back=True)
            while verification.result is None:
                await verification.step()
            assert verification.result.sound
        finally:
            verification.close()


async def test_a_page_read_while_a_journal_was_rolled_back_is_read_again(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        original = app.database.file_path.read_bytes()

        class RollingBack(DirectFile):
            """The application rolls back between our read and our look at what is open."""

            def read(self, offset: int) -> memoryview:
                data = super().read(offset)
                if app.database.file_path.read_bytes() != original:
                    app.database.file_path.write_bytes(original)
                    trio.from_thread.run_sync(lambda: app.database.open_pages.close(rolled_back=True))
                return data

        app.database.open_pages.add(9, 9)
        flip(app, 9)
        check = FileCheck(app.database)
        check._file.close()
        check._file = RollingBack(Disk(), app.database.file_path)
        verification = Verification(app.database, "test")
        assert verification._check is not None
        verification._check.close()
        verification._check = check
        try:
            while verification.result is None:
                await verification.step()
            assert verification.result.sound
        finally:
            verification.close()


async def test_a_database_that_is_dropped_meanwhile_is_unavailable(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        verification = Verification(app.database, "test")
        try:
            await verification.step()
            app.drop()
            with pytest.raises(Unavailable):
                await verification.step()
        finally:
            verification.close()


async def test_a_database_that_a_snapshot_replaces_meanwhile_is_read_from_the_beginning(tmp_path: Path) -> None:
    async with application(tmp_path) as app, application(tmp_path / "other", PAGES + 50) as other:
        await other.checkpoint()
        content = other.database.file_path.read_bytes()
        verification = Verification(app.database, "test")
        try:
            await verification.step()
            pages = tmp_path / "incoming" / "pages"
            pages.write_bytes(content)
            install(app.store, pages, other, page_checksums(content, 1, 512, 0))
            with pytest.raises(Unavailable):
                # The applier has not written it into the file yet.
                await verification.step()
        finally:
            verification.close()
        app.database.file_path.write_bytes(content)
        app.database.installed()
        app.database.checkpointed(app.database.position.txid)
        app.oracle = other.oracle
        app.acknowledged = other.acknowledged
        found = await verify(app)
        assert found.sound
        assert found.page_count == PAGES + 50


def install(store: Store, pages: Path, other: Application, checksums: "array[int]") -> None:
    at = other.database
    store.install(NAME, pages, 512, at.page_count, at.position, checksums, at.epoch, at.timestamp_ms)


@pytest.mark.parametrize("size", [0, 1, 511, 4096, CHUNK_BYTES, CHUNK_BYTES + 513, 2 * CHUNK_BYTES + 4097])
def test_a_direct_file_has_what_was_just_written(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    content = os.urandom(size)
    path.write_bytes(content)
    file = DirectFile(Disk(), path)
    try:
        found = b"".join(bytes(file.read(offset)) for offset in range(0, size + 1, CHUNK_BYTES))
    finally:
        file.close()
    assert found == content
    assert file.size if size else True


class NoDirect(Disk):
    """A file system without O_DIRECT."""

    def open(self, path: Path, flags: int = os.O_RDWR, mode: int = 0o644) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return super().open(path, flags, mode)


def test_where_the_page_cache_cannot_be_passed_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    file = DirectFile(NoDirect(), path)
    try:
        assert not file.is_direct
        assert bytes(file.read(0)) == b"x" * 5000
    finally:
        file.close()
