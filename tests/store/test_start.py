"""What a start trusts, what it refuses, what it leaves alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from litereplica.errors import Corrupt, Refused
from litereplica.store.disk import OPEN_FLAGS, Disk
from litereplica.store.meta import META_NAME, decode_meta, load_meta
from litereplica.store.store import Store, folder_name
from tests.store.application import NAME, Application, assert_file_is, open_store
from tests.store.faulty_disk import FaultyDisk

COMMITS = 30


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


def folder(root: Path) -> Path:
    return root / "db" / folder_name(NAME)


def segments(root: Path) -> list[Path]:
    return sorted(folder(root).glob("*.ltx"))


async def make(root: Path, *, clean: bool, checkpoint: bool = True, disk: Disk | None = None) -> Application:
    store = open_store(root, disk)
    app = Application(store)
    app.start()
    for number in range(COMMITS):
        app.commit()
        if number == COMMITS // 2 and checkpoint:
            await app.checkpoint()
            await store.advance_base(app.database)
    await app.sync()
    if clean:
        store.stop()
    store.close()
    return app


def snapshot_of(root: Path) -> dict[str, bytes]:
    # Locks and checksums are not history: opening them may change them.
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("lock", "checksums")
    }


def damage(path: Path, offset: int, data: bytes = b"\xff\x01\x02") -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


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


async def test_a_file_that_somebody_changed_while_the_node_was_stopped_is_refused(root: Path) -> None:
    await make(root, clean=True)
    damage(root / "files" / NAME, 700)
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match="does not hold what its log says"):
        open_store(root)
    assert snapshot_of(root) == before


async def test_a_missing_file_is_refused_and_not_made_anew(root: Path) -> None:
    await make(root, clean=True)
    (root / "files" / NAME).unlink()
    with pytest.raises(Corrupt, match="is missing"):
        open_store(root)
    assert not (root / "files" / NAME).exists()


@pytest.mark.parametrize("change", ["gone", "short", "long", "wrong", "foreign"])
@pytest.mark.parametrize("clean", [False, True])
async def test_page_checksums_are_made_anew_when_their_file_is_no_good(root: Path, change: str, clean: bool) -> None:
    app = await make(root, clean=clean)
    path = folder(root) / "checksums"
    if change == "gone":
        path.unlink()
    elif change == "short":
        os.truncate(path, 100)
    elif change == "long":
        with path.open("ab") as file:
            file.write(b"\7" * 100_000)
    elif change == "wrong":
        damage(path, 64, b"\7" * 8)
    else:
        path.write_bytes(b"what is this" * 10_000)
    store = open_store(root)
    app.go_on(store)
    app.check()
    app.commit()
    app.check(file=False)
    store.close()


async def test_a_torn_tail_is_dropped(root: Path) -> None:
    app = await make(root, clean=False)
    store = open_store(root)
    app.go_on(store)
    app.commit()
    start = app.database.log.bounds(app.database.log.segment_of(COMMITS + 1), COMMITS + 1)[0]
    store.close()
    os.truncate(segments(root)[-1], start + 200)
    store = open_store(root)
    app.go_on(store)
    assert app.acknowledged == COMMITS
    app.check()
    assert segments(root)[-1].stat().st_size == start
    store.close()


async def test_zeroes_written_ahead_are_no_damage(root: Path) -> None:
    app = await make(root, clean=False)
    with segments(root)[-1].open("ab") as file:
        file.write(bytes(600_000))
    store = open_store(root)
    app.go_on(store)
    app.check()
    store.close()


@pytest.mark.parametrize("data", [b"\xff\x01\x02", bytes(3000)])
@pytest.mark.parametrize("clean", [False, True])
async def test_damage_in_the_middle_is_refused_by_name_and_nothing_changes(
    root: Path, data: bytes, clean: bool
) -> None:
    app = await make(root, clean=clean)
    if clean:
        # The sidecar spares the scan after a clean stop: the damage is found when the records are read.
        segments(root)[-1].with_suffix(".idx").unlink()
    newest = segments(root)[-1]
    first = int(newest.stem, 16)
    assert first < COMMITS
    damage(newest, 0 if len(data) > 100 else 300, data)
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match=f"{first:016x}"):
        open_store(root)
    assert snapshot_of(root) == before
    del app


async def test_damage_that_was_durable_is_refused_also_at_the_very_end(root: Path) -> None:
    await make(root, clean=False)
    path = segments(root)[-1]
    os.truncate(path, path.stat().st_size - 50) if path.read_bytes()[-1] else damage(path, 400)
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match="durable"):
        open_store(root)
    assert snapshot_of(root) == before


async def test_after_a_power_loss_what_came_after_the_last_sync_may_be_torn_anywhere(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    app = await make(root, clean=False, disk=disk)
    disk.revive()
    store = open_store(root, disk, segment_bytes=1 << 20)
    app.go_on(store)
    await app.sync()
    for _ in range(10):
        app.commit()
    starts = [app.database.log.bounds(app.database.log.segment_of(txid), txid)[0] for txid in range(31, 41)]
    newest = segments(root)[-1]
    store.close()
    disk.lose_power("everything")
    damage(newest, starts[3] + 100)
    store = open_store(root, disk)
    app.go_on(store)
    assert app.acknowledged == COMMITS + 3
    app.check()
    store.close()


async def test_a_missing_segment_is_refused(root: Path) -> None:
    await make(root, clean=False, checkpoint=False)
    found = segments(root)
    assert len(found) > 3
    kept = found[2].read_bytes()
    found[2].unlink()
    before = snapshot_of(root)
    with pytest.raises(Corrupt, match=f"{int(found[2].stem, 16):016x}"):
        open_store(root)
    assert snapshot_of(root) == before
    found[2].write_bytes(kept)
    found[0].unlink()
    with pytest.raises(Corrupt, match="begins at"):
        open_store(root)


@pytest.mark.parametrize("clean", [False, True])
async def test_a_missing_newest_segment_is_refused(root: Path, clean: bool) -> None:
    await make(root, clean=clean)
    segments(root)[-1].unlink()
    with pytest.raises(Corrupt, match="durable"):
        open_store(root)


async def test_a_missing_sidecar_only_costs_time(root: Path) -> None:
    app = await make(root, clean=True)
    for path in folder(root).glob("*.idx"):
        path.unlink()
    store = open_store(root)
    app.go_on(store)
    app.check()
    assert app.database.log.checksum_at(1) is not None
    store.close()


async def test_any_damaged_byte_of_the_meta_file_is_noticed(root: Path) -> None:
    await make(root, clean=True)
    path = folder(root) / META_NAME
    good = path.read_bytes()
    for offset in range(len(good)):
        bad = good[:offset] + bytes([good[offset] ^ 0x41]) + good[offset + 1 :]
        with pytest.raises((Corrupt, Refused)):
            decode_meta(bad, path)
    for size in range(len(good)):
        with pytest.raises(Corrupt):
            decode_meta(good[:size], path)
    path.write_bytes(good[:-1])
    with pytest.raises(Corrupt, match="meta is damaged"):
        open_store(root)


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
