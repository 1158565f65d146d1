"""What a start trusts, what it refuses, what it leaves alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from litereplica.errors import Corrupt, Refused
from litereplica.store.disk import OPEN_FLAGS, Disk
from litereplica.store.meta import META_NAME, load_meta
from litereplica.store.store import Store
from tests.store.application import NAME, Application, assert_file_is, open_store
from tests.store.directory import COMMITS, folder, make, snapshot_of


class ReadingDisk(Disk):
    """Remembers what was opened and how much of it was read."""

    __slots__ = ("opened", "read_bytes")

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.read_bytes = 0

    def open(self, path: Path, flags: int = OPEN_FLAGS, mode: int = 0o644) -> int:
        self.opened.append(path.name)
        return super().open(path, flags, mode)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        data = super().pread(descriptor, size, offset)
        self.read_bytes += len(data)
        return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_after_a_clean_stop_the_file_is_not_opened_and_the_log_not_read(root: Path) -> None:
    app = await make(root, clean=True)
    assert_file_is(root / "files" / NAME, app.oracle[COMMITS])
    assert not (root / "files" / f"{NAME}-wal").exists()
    disk = ReadingDisk()
    before = snapshot_of(root)
    store = open_store(root, disk)
    assert snapshot_of(root) == before
    assert "app.db" not in disk.opened
    assert disk.read_bytes == 0
    app.go_on(store)
    app.check()
    store.stop()
    assert snapshot_of(root) == before
    store.close()


async def test_the_first_change_after_a_clean_start_takes_the_clean_mark_away_first(root: Path) -> None:
    app = await make(root, clean=True)
    store = open_store(root)
    app.go_on(store)
    assert load_meta(folder(root)).clean
    app.commit()
    assert not load_meta(folder(root)).clean
    store.close()
    store = open_store(root)
    app.go_on(store)
    app.check()
    store.close()


def test_a_newer_data_directory_is_refused(root: Path) -> None:
    open_store(root).close()
    (root / "format").write_text("litereplica data directory, format 2\n")
    with pytest.raises(Refused, match="newer version"):
        open_store(root)
    (root / "format").write_text("something else\n")
    with pytest.raises(Corrupt):
        open_store(root)
    (root / "format").unlink()
    with pytest.raises(Corrupt, match="is missing"):
        open_store(root)


def test_a_directory_in_use_is_refused(root: Path) -> None:
    store = open_store(root)
    code = (
        "import sys; from pathlib import Path; from litereplica.store.disk import Disk\n"
        "from litereplica.store.store import Store; from litereplica.errors import Refused\n"
        "try: Store.open(Path(sys.argv[1]), Disk(), 'n')\n"
        "except Refused as error: print(error.message)"
    )
    answer = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
    assert f"is in use by process {os.getpid()}" in answer.stdout
    store.close()
    open_store(root).close()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"data\.dir"):
        open_store(tmp_path / "file" / "data")


async def test_unknown_folders_and_files_are_left_alone(root: Path) -> None:
    app = await make(root, clean=True)
    kept = [
        root / "db" / "mine" / "notes",
        root / "db" / "readme",
        root / "files" / "text",
        root / "other",
        root / "incoming" / "x",
    ]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("not ours")
    (root / "files" / "empty").write_text("")
    unfinished = root / "db" / "unfinished"
    unfinished.mkdir()
    (unfinished / "checksums").write_bytes(b"")
    store = open_store(root)
    assert [path.read_text() for path in kept] == ["not ours"] * len(kept)
    assert not (root / "files" / "empty").exists()
    assert not unfinished.exists()
    app.go_on(store)
    app.check()
    store.close()


async def test_a_copied_folder_is_refused(root: Path) -> None:
    await make(root, clean=True)
    copy = root / "db" / "copy"
    copy.mkdir()
    (copy / META_NAME).write_bytes((folder(root) / META_NAME).read_bytes())
    with pytest.raises(Corrupt, match="give it that name"):
        open_store(root)


@pytest.mark.parametrize(
    "name", ["", "/a", "a/../b", "a-wal", "a-shm", "a-journal", ".fuse_hidden1", "a\0b", "x" * 1025]
)
def test_a_name_that_cannot_be_a_databases_is_refused(root: Path, name: str) -> None:
    store = open_store(root)
    with pytest.raises(Refused):
        store.create(name)
    store.close()


def test_long_and_strange_names_have_folders_of_their_own(root: Path) -> None:
    names = ["ä b%c.db", "a/b", "a%2Fb", "x" * 250, "x" * 249 + "y", "ü" * 100]
    store = open_store(root)
    for name in names:
        store.create(name)
    store.close()
    store = open_store(root)
    assert sorted(store.databases) == sorted(names)
    store.close()


def test_a_database_that_never_got_a_transaction_or_a_page_size_opens_again(root: Path) -> None:
    store = open_store(root)
    store.create("a.db")
    store.create("b.db", 512)
    store.stop()
    store.close()
    store = open_store(root)
    assert not any(database.exists for database in store.databases.values())
    store.close()


def test_the_hidden_journal_and_wal_of_a_known_database_go_after_redo(root: Path) -> None:
    store = open_store(root)
    app = Application(store)
    app.start()
    app.commit()
    store.close()
    path = root / "files" / NAME
    path.parent.mkdir(parents=True)
    for suffix in ("", "-wal", "-journal"):
        path.with_name(path.name + suffix).write_bytes(b"left behind")
    store = open_store(root)
    app.go_on(store)
    app.check()
    assert sorted(each.name for each in path.parent.iterdir()) == ["app.db"]
    store.close()


def test_a_failed_start_gives_the_directory_back(root: Path) -> None:
    Store.open(root, Disk(), "n").close()
    (root / "format").write_text("x")
    for _ in range(2):
        with pytest.raises(Corrupt):
            open_store(root)
