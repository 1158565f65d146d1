"""A database file that was stopped cleanly and is another one at the next start: judged before it is changed."""

import os
import shutil
from pathlib import Path

import pytest

from litereplica.errors import Corrupt
from litereplica.sqlite.wal import WalHeader, encode_frames
from litereplica.store.roll_back import journal_of
from litereplica.store.sides import sides_of
from tests.store.application import NAME, Application, open_store
from tests.store.directory import damage, make, snapshot_of
from tests.store.journals import OpenTransaction, write_journal

SIZE = 512


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def stopped(root: Path) -> tuple[Application, Path]:
    app = await make(root, clean=True)
    return app, root / "files" / NAME


def write_wal(path: Path, pages: list[tuple[int, bytes]], commit: int, page_size: int = SIZE) -> Path:
    """A WAL with one transaction; ``commit`` 0: one that was not committed."""
    header = WalHeader.build(page_size=page_size, checkpoint_sequence=0, salt1=1, salt2=2)
    frames, _, _ = encode_frames(header, header.s0, header.s1, pages, commit or 1)
    if not commit:
        frames = frames[:-8]
    wal = sides_of(path)[0]
    wal.write_bytes(header.encode() + frames)
    return wal


def refused(root: Path, match: str) -> None:
    """Nothing is changed, however often it is tried."""
    before = snapshot_of(root)
    for _ in range(2):
        with pytest.raises(Corrupt, match=match):
            open_store(root)
        assert snapshot_of(root) == before


def starts(root: Path, app: Application) -> None:
    for _ in range(2):
        store = open_store(root)
        app.go_on(store)
        app.check()
        assert not any(side.exists() for side in sides_of(app.database.file_path))
        store.stop()
        store.close()
    store = open_store(root)
    app.go_on(store)
    app.commit()
    store.close()
    store = open_store(root)
    app.go_on(store)
    app.check()
    store.close()


@pytest.mark.parametrize("change", ["page", "grown", "cut"])
@pytest.mark.parametrize("checksums", [True, False])
async def test_a_file_that_was_written_to_meanwhile_is_refused_as_it_is(
    root: Path, change: str, *, checksums: bool
) -> None:
    _, path = await stopped(root)
    if change == "page":
        damage(path, 2 * SIZE)
    elif change == "grown":
        with path.open("ab") as file:
            file.write(b"more" * SIZE)
    else:
        os.truncate(path, path.stat().st_size - SIZE)
    if not checksums:
        next((root / "db").rglob("checksums")).unlink()
    refused(root, "changed after this node had stopped")


async def test_a_file_that_grew_and_was_committed_to_in_its_wal_keeps_both(root: Path) -> None:
    _, path = await stopped(root)
    pages = path.stat().st_size // SIZE
    with path.open("ab") as file:
        file.write(b"more" * SIZE)
    write_wal(path, [(1, b"w" * SIZE)], pages + 4)
    refused(root, "changed after this node had stopped")


@pytest.mark.parametrize("page_size", [SIZE, 2 * SIZE])
async def test_a_wal_of_somebody_else_with_a_commit_is_refused_as_it_is(root: Path, page_size: int) -> None:
    app, path = await stopped(root)
    pages = path.stat().st_size // SIZE
    wal = write_wal(path, [(1, b"w" * page_size)], pages, page_size)
    refused(root, f"move {wal} elsewhere")
    wal.unlink()
    starts(root, app)


@pytest.mark.parametrize("originals", [{1: b"j" * SIZE}, {}])
async def test_a_live_journal_of_something_else_is_refused_as_it_is(root: Path, originals: dict[int, bytes]) -> None:
    app, path = await stopped(root)
    journal = write_journal(path, path.stat().st_size // SIZE - 1, originals)
    refused(root, f"move {journal} elsewhere")
    journal.unlink()
    starts(root, app)


@pytest.mark.parametrize("change", ["touched", "copied", "restored", "room", "no checksums"])
async def test_the_same_content_starts(root: Path, change: str) -> None:
    app, path = await stopped(root)
    if change == "touched":
        os.utime(path)
    elif change == "copied":
        shutil.copytree(root, root.with_name("copy"), copy_function=shutil.copyfile)
        shutil.rmtree(root)
        root.with_name("copy").rename(root)
    elif change == "restored":
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    elif change == "room":
        os.truncate(path, path.stat().st_size + 3 * SIZE)
    else:
        next((root / "db").rglob("checksums")).unlink()
        os.utime(path)
    starts(root, app)


@pytest.mark.parametrize("grows", [True, False])
async def test_a_transaction_that_was_open_when_its_node_was_killed_is_undone(root: Path, *, grows: bool) -> None:
    app, path = await stopped(root)
    store = open_store(root)
    database = store.databases[NAME]
    assert database.settled
    pages = [1, 2] if database.page_count > 1 else [1]
    OpenTransaction(database, pages, grows=grows)
    store.close()
    assert journal_of(path).exists()
    starts(root, app)


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_wal_that_changes_nothing_is_let_go(root: Path, *, is_committed: bool) -> None:
    app, path = await stopped(root)
    first, pages = path.read_bytes()[:SIZE], path.stat().st_size // SIZE
    if is_committed:
        write_wal(path, [(1, first)], pages)
    else:
        write_wal(path, [(1, b"w" * SIZE), (2, b"w" * SIZE)], 0)
    starts(root, app)
