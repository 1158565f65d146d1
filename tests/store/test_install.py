"""A snapshot becomes a database's content, whatever it had before and wherever it is cut."""

import errno
import random
from array import array
from pathlib import Path

import numpy as np
import pytest

from litereplica.errors import Corrupt
from litereplica.ltx.checksum import page_checksum
from litereplica.ltx.decode import decode_record
from litereplica.ltx.encode import encode_record
from litereplica.ltx.format import RecordHeader
from litereplica.ltx.position import Position
from litereplica.store.database import Counted, Database
from litereplica.store.disk import Disk
from litereplica.store.install import end_install
from litereplica.store.log import Trimmed
from litereplica.store.store import Store
from tests.store.application import NAME, Application, Content, assert_file_is, open_store, rolling
from tests.store.faulty_disk import FaultyDisk, Stopped

SNAPSHOT: Content = {pgno: random.Random(pgno).randbytes(512) for pgno in range(1, 12)}
AT = Position(50, rolling(SNAPSHOT))


def install(
    store: Store, content: Content = SNAPSHOT, at: Position = AT, page_size: int = 512, *, apart: bool = False
) -> Database:
    disk = store.disk
    path = store.incoming / "pages"
    descriptor = disk.open(path, 0o102)
    disk.pwrite(descriptor, b"".join(content[pgno] for pgno in sorted(content)), 0)
    disk.fdatasync(descriptor)
    disk.close(descriptor)
    checksums = array("Q", [page_checksum(pgno, content[pgno]) for pgno in sorted(content)])
    return store.install(NAME, path, page_size, len(content), at, checksums, 1, 1234, apart=apart)


def waiting(database: Database) -> list[Path]:
    """The contents that lie beside the database file."""
    return sorted(database.directory.glob("install-*"))


def with_history(store: Store, commits: int) -> Application:
    app = Application(store)
    app.start()
    for _ in range(commits):
        app.commit()
    return app


def check(database: Database, content: Content, at: Position) -> None:
    assert database.position == at
    assert database.page_count == len(content)
    table = database.checksums.table
    assert list(table[: len(content)]) == [page_checksum(pgno, content[pgno]) for pgno in sorted(content)]
    assert not any(table[len(content) :])
    assert_file_is(database.file_path, content)


def take_record(database: Database, changes: Content, commit: int) -> None:
    """What replication does with the next record."""
    table = database.checksums.table
    after = database.position.checksum
    for pgno, page in changes.items():
        after ^= page_checksum(pgno, page) ^ table[pgno - 1]
    txid = database.position.txid + 1
    header = RecordHeader(
        NAME, 512, commit, len(changes), txid, txid, 1, "node-0", 99, database.position.checksum, "none"
    )
    data = encode_record(header, sorted(changes.items()), after)
    trailer = decode_record(data).trailer
    database.append_bytes(data)
    entries = [(pgno, page_checksum(pgno, page)) for pgno, page in sorted(changes.items())]
    database.count_records([Counted(header, trailer, len(data), entries)])


def test_a_new_database_is_in_place_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    database = install(store)
    assert (database.applied, database.base, database.pending_install) == (50, AT, None)
    check(database, SNAPSHOT, AT)
    assert database.log.checksum_at(50) == AT.checksum
    change = {3: bytes(512)}
    take_record(database, change, 11)
    assert database.position.txid == 51
    store.close()
    store = open_store(tmp_path / "data")
    content = {**SNAPSHOT, **change}
    check(store.databases[NAME], content, Position(51, rolling(content)))
    store.close()


def test_numpy_checksums_are_taken_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    path = store.incoming / "pages"
    path.write_bytes(SNAPSHOT[1])
    entry = page_checksum(1, SNAPSHOT[1])
    checksums = np.array([entry], dtype=np.uint64)
    check(
        store.install(NAME, path, 512, 1, Position(5, entry), checksums.data, 1, 0),
        {1: SNAPSHOT[1]},
        Position(5, entry),
    )
    store.close()


def test_over_a_database_that_is_read_the_applier_has_the_last_word(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    with_history(store, 60)
    old_log = b"".join(each.path.read_bytes() for each in store.databases[NAME].log.segments())
    database = install(store)
    assert database.applied == 0  # 60 was of another history
    assert database.pending_install is not None
    assert database.pending_install.read_bytes() == b"".join(SNAPSHOT.values())
    [kept] = store.diverged.iterdir()
    assert b"".join(path.read_bytes() for path in sorted(kept.iterdir())) == old_log
    database.installed()
    database.set_applied(50)
    assert database.applied == 50
    store.close()
    # It was only in the applier's WAL, which is not trusted.
    store = open_store(tmp_path / "data")
    check(store.databases[NAME], SNAPSHOT, AT)
    store.close()


@pytest.mark.parametrize("apart", [False, True])
def test_a_commit_in_the_wal_of_the_old_content_is_forgotten(tmp_path: Path, apart: bool) -> None:
    """Its writer may have died before it published it; the applier writes the new content over its frames."""
    store = open_store(tmp_path / "data")
    database = with_history(store, 3).database
    database.claim = (1, 2, 3)
    install(store, apart=apart)
    assert database.claim is None
    store.close()


async def test_the_installed_pages_go_when_the_file_holds_them_durably(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = with_history(store, 10)
    await app.checkpoint()
    database = install(store)
    await store.advance_base(database)
    pending = database.pending_install
    assert pending is not None
    database.installed()
    await store.advance_base(database)
    assert pending.exists()
    database.file_path.write_bytes(b"".join(SNAPSHOT.values()))
    database.checkpointed(50)
    await store.advance_base(database)
    assert not pending.exists()
    store.close()
    store = open_store(tmp_path / "data")
    check(store.databases[NAME], SNAPSHOT, AT)
    store.close()


@pytest.mark.parametrize("at", [AT, Position(51, AT.checksum)])
async def test_the_pages_of_an_install_stay_when_the_one_before_it_was_folded_just_then(
    tmp_path: Path, at: Position
) -> None:
    store = open_store(tmp_path / "data")
    app = with_history(store, 10)
    await app.checkpoint()
    database = install(store)
    database.installed()
    database.file_path.write_bytes(b"".join(SNAPSHOT.values()))
    database.checkpointed(50)
    # Nobody has made it durable yet that the file has it, and the node goes back once more.
    install(store, at=at)
    pending = database.pending_install
    assert pending is not None
    await store.advance_base(database)
    assert waiting(database) == [pending]
    database.installed()
    await store.advance_base(database)
    assert waiting(database) == [pending]
    store.close()
    store = open_store(tmp_path / "data")
    check(store.databases[NAME], SNAPSHOT, at)
    store.close()


@pytest.mark.parametrize("how", ["over it", "apart", "dropped"])
async def test_a_content_that_is_replaced_before_it_is_in_the_file_leaves_nothing_on_the_disk(
    tmp_path: Path, how: str
) -> None:
    store = open_store(tmp_path / "data")
    app = with_history(store, 10)
    await app.checkpoint()
    database = install(store, {1: bytes(512)}, Position(40, page_checksum(1, bytes(512))))
    if how == "dropped":
        install(store, {}, Position(50, 0), page_size=0)
    else:
        install(store, apart=how == "apart")
    assert waiting(database) == ([database.pending_install] if how == "over it" else [])
    store.close()


def test_the_disk_may_refuse_to_remove_a_content_that_is_replaced(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    store = open_store(root, disk)
    database = with_history(store, 10).database
    install(store, {1: bytes(512)}, Position(40, page_checksum(1, bytes(512))))
    older = database.pending_install
    assert older is not None
    disk.fail["unlink"] = (0, errno.EIO)
    install(store)
    del disk.fail["unlink"]
    newer = database.pending_install
    assert newer is not None
    assert newer != older
    assert waiting(database) == [older, newer]
    store.close()
    store = open_store(root, disk)
    check(store.databases[NAME], SNAPSHOT, AT)
    assert waiting(store.databases[NAME]) == []
    store.close()


@pytest.mark.parametrize("keep", [None, "nothing", "everything", "random"])
def test_stopped_after_any_step_of_a_second_install_it_is_the_first_content_or_the_second(
    tmp_path: Path, keep: str | None
) -> None:
    first = {pgno: random.Random(100 + pgno).randbytes(512) for pgno in range(1, 8)}
    first_at = Position(40, rolling(first))
    for step in range(200):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk)
        with_history(store, 8)
        install(store, first, first_at)
        disk.stop_after = disk.steps + step
        try:
            install(store)
        except Stopped:
            done = False
        else:
            done = True
        store.close()
        disk.revive()
        if keep is not None:
            disk.lose_power(keep, step)
        store = open_store(root, disk)
        database = store.databases[NAME]
        if database.position == AT:
            check(database, SNAPSHOT, AT)
        else:
            assert not done
            check(database, first, first_at)
        assert waiting(database) == []
        store.close()
        if done:
            assert step > 10
            return
    pytest.fail("it does not end")


@pytest.mark.parametrize("commits", [0, 3, 60])
def test_a_snapshot_of_a_dropped_database(tmp_path: Path, commits: int) -> None:
    store = open_store(tmp_path / "data")
    if commits:
        with_history(store, commits)
        store.file_path(NAME).parent.mkdir(exist_ok=True)
        store.file_path(NAME).write_bytes(b"old")
    database = install(store, {}, Position(50, 0), page_size=0)
    assert (database.position, database.exists) == (Position(50, 0), False)
    # The follower unlinks the file: the kernel and the applier have it open.
    assert database.dropped_txid == (50 if commits else 0)
    assert (database.applied < 50) == bool(commits)
    assert database.log.checksum_at(50) == 0
    store.close()
    store = open_store(tmp_path / "data")
    assert not store.file_path(NAME).exists()
    assert (store.databases[NAME].position, store.databases[NAME].exists) == (Position(50, 0), False)
    store.close()


def test_a_cursor_on_the_old_history_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    app = with_history(store, 10)
    cursor = app.database.log.cursor(2)
    cursor.read(10)
    install(store)
    with pytest.raises(Trimmed, match="replaced by a snapshot"):
        cursor.read(10)
    store.close()


@pytest.mark.parametrize("keep", [None, "nothing", "everything", "random"])
@pytest.mark.parametrize("commits", [0, 8, 60])
def test_stopped_after_any_step_it_is_the_old_content_or_the_new_one(
    tmp_path: Path, commits: int, keep: str | None
) -> None:
    for step in range(200):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk)
        app = with_history(store, commits) if commits else None
        if app is not None:
            app.database.log.sync_blocking()
        disk.stop_after = disk.steps + step
        try:
            install(store)
        except Stopped:
            done = False
        else:
            done = True
        store.close()
        disk.revive()
        if keep is not None:
            disk.lose_power(keep, step)
        store = open_store(root, disk)
        database = store.get(NAME)
        if database is not None and database.position.txid == 50 and commits != 50:
            check(database, SNAPSHOT, AT)
        elif app is not None:
            app.go_on(store)
            assert app.acknowledged == commits
            app.check()
        else:
            assert database is None or not database.exists
        assert not done or (database is not None and database.position == AT)
        store.close()
        if done:
            assert step > 10
            return
    pytest.fail("it does not end")


@pytest.mark.parametrize("keep", [None, "nothing", "everything", "random"])
def test_stopped_after_any_step_of_what_the_disk_had_refused_it_is_the_new_content(
    tmp_path: Path, keep: str | None
) -> None:
    for step in range(200):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk)
        with_history(store, 60).database.log.sync_blocking()
        # After the pages, the meta file and one segment.
        disk.fail["rename"] = (3, errno.EIO)
        database = install(store)
        assert (database.position, database.page_count) == (AT, len(SNAPSHOT))
        with pytest.raises(OSError, match="Input/output"):
            take_record(database, {3: bytes(512)}, 11)
        database.cut_uncounted()
        with pytest.raises(OSError, match="Input/output"):
            end_install(database)
        del disk.fail["rename"]
        disk.stop_after = disk.steps + step
        try:
            end_install(database)
            take_record(database, {3: bytes(512)}, 11)
        except Stopped:
            done = False
        else:
            done = True
        store.close()
        disk.revive()
        if keep is not None:
            disk.lose_power(keep, step)
        store = open_store(root, disk)
        database = store.databases[NAME]
        if database.position == AT:
            check(database, SNAPSHOT, AT)
            assert not (done and keep is None)
        else:
            assert database.position.txid == AT.txid + 1
            check(database, {**SNAPSHOT, 3: bytes(512)}, database.position)
        assert waiting(database) == []
        store.close()
        if done:
            assert step > 5
            return
    pytest.fail("it does not end")


def test_a_failure_of_the_log_from_before_an_install_stays(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    store = open_store(root, disk)
    database = with_history(store, 10).database
    failure = OSError(errno.EIO, "Input/output error")
    database.log.fail(failure)
    disk.fail["rename"] = (2, errno.ENOSPC)
    install(store)
    del disk.fail["rename"]
    end_install(database)
    assert database.install_failure is None
    assert database.log.failure is failure
    store.close()


def test_a_full_disk_refuses_an_install_before_anything_has_changed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    disk = FaultyDisk(root, tmp_path / "graves")
    store = open_store(root, disk)
    app = with_history(store, 10)
    content: Content = {pgno: bytes([pgno % 251]) * 512 for pgno in range(1, 9001)}
    disk.fail["allocate"] = (0, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        install(store, content, Position(50, rolling(content)))
    assert waiting(app.database) == []
    assert not any(store.diverged.iterdir())
    del disk.fail["allocate"]
    app.commit()
    store.close()
    store = open_store(root, disk)
    app.go_on(store)
    assert app.acknowledged == 11
    app.check()
    store.close()


def test_records_after_an_install_that_was_cut_in_the_middle_of_redo_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    store = open_store(root, Disk())
    with_history(store, 60)
    database = install(store)
    change = {2: bytes(512), 12: bytes([7]) * 512}
    take_record(database, change, 12)
    store.close()
    store = open_store(root)
    content = {**SNAPSHOT, **change}
    check(store.databases[NAME], content, Position(51, rolling(content)))
    store.close()


def test_a_received_record_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    database = install(store)
    database.checksums.table[4] ^= 1
    header = RecordHeader(NAME, 512, 11, 1, 51, 51, 1, "n", 9, AT.checksum, "none")
    good = AT.checksum ^ page_checksum(5, SNAPSHOT[5]) ^ page_checksum(5, bytes(512))
    data = encode_record(header, [(5, bytes(512))], good)
    database.append_bytes(data)
    entries = [(5, page_checksum(5, bytes(512)))]
    with pytest.raises(Corrupt, match="damaged pages"):
        database.count_records([Counted(header, decode_record(data).trailer, len(data), entries)])
    assert database.position == AT
    database.cut_uncounted()
    store.close()


async def installed(root: Path) -> Database:
    """A database whose install the applier has written, and nobody has folded."""
    app = with_history(open_store(root), 60)
    await app.checkpoint()
    database = install(app.store)
    database.installed()
    return database


def started_again(store: Store, *, stops: bool) -> Store:
    """The next process, after an ordinary stop or a kill."""
    if stops:
        store.stop()
    store.close()
    return open_store(store.root)


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("unknown", [b"", b"a file that no log knows"])
async def test_a_database_that_was_dropped_before_its_install_was_in_the_file_stays_dropped(
    tmp_path: Path, unknown: bytes, stops: bool
) -> None:
    database = await installed(tmp_path / "data")
    database.set_applied(50)
    database.drop()
    path = database.file_path
    path.unlink()
    if unknown:
        path.write_bytes(unknown)
    store = started_again(database.store, stops=stops)
    database = store.databases[NAME]
    assert (database.position, database.exists) == (Position(51, 0), False)
    assert (path.read_bytes() if path.exists() else b"") == unknown
    assert waiting(database) == []
    store.close()


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("in_file", ["nothing", "the old content", "the new one"])
async def test_a_database_that_was_made_again_before_an_install_was_in_the_file_comes_from_the_log(
    tmp_path: Path, in_file: str, stops: bool
) -> None:
    database = await installed(tmp_path / "data")
    database.drop()
    content: Content = {1: SNAPSHOT[2], 2: SNAPSHOT[3]}
    take_record(database, content, 2)
    if in_file == "nothing":
        database.file_path.unlink()
    elif in_file == "the new one":
        database.file_path.write_bytes(b"".join(content.values()))
    store = started_again(database.store, stops=stops)
    database = store.databases[NAME]
    check(database, content, Position(52, rolling(content)))
    assert waiting(database) == []
    store.close()


@pytest.mark.parametrize("keep", [None, "nothing", "everything", "random"])
@pytest.mark.parametrize("stops", [True, False])
def test_stopped_after_any_step_of_a_drop_over_an_install_it_is_the_content_or_none(
    tmp_path: Path, keep: str | None, stops: bool
) -> None:
    for step in range(200):
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk)
        with_history(store, 8)
        disk.make_directories(store.file_path(NAME).parent)
        disk.write_file(store.file_path(NAME), b"old")
        database = install(store)
        database.installed()
        disk.stop_after = disk.steps + step
        done = False
        try:
            database.drop()
            disk.unlink(database.file_path)
            if stops:
                store.stop()
            store.close()
            open_store(root, disk).close()
            done = True
        except Stopped:
            store.close()
        disk.revive()
        if keep is not None:
            disk.lose_power(keep, step)
        store = open_store(root, disk)
        database = store.databases[NAME]
        if database.exists:
            assert not done
            check(database, SNAPSHOT, AT)
        else:
            check(database, {}, Position(51, 0))
        assert waiting(database) == []
        store.close()
        if done:
            assert step > 10
            return
    pytest.fail("it does not end")
