"""A replica that is stopped, or whose disk refuses, while it takes records in."""

import errno
from itertools import count, pairwise
from pathlib import Path

import pytest

from litereplica.ltx.decode import decode_record
from litereplica.store.dropped import keep_dropped
from litereplica.store.receive import LogReceiver
from litereplica.store.store import Store
from tests.store.application import NAME, Application, assert_file_is, open_store
from tests.store.faulty_disk import FaultyDisk, Stopped
from tests.store.pair import Pair

UNKNOWN = b"SQLite format 3\0the only copy"


class Sent:
    """What a primary has logged, and what each position holds."""

    def __init__(self, root: Path, commits: int, *, drops: bool = False) -> None:
        store = open_store(root)
        app = Application(store)
        app.start()
        for _ in range(commits):
            app.commit({1: app.page(), 2: app.page()}, 2)
        if drops:
            app.drop()
        self.data = b"".join(each.path.read_bytes()[: each.length] for each in app.database.log.segments())
        self.oracle = app.oracle
        store.close()
        self.ends = [0]
        while self.ends[-1] < len(self.data):
            self.ends.append(self.ends[-1] + decode_record(self.data, self.ends[-1]).length)

    def feed(self, store: Store, piece: int, upto: int | None = None) -> None:
        database = store.get(NAME) or store.create(NAME)
        receiver = LogReceiver(database)
        end = len(self.data) if upto is None else upto
        for offset in range(self.ends[database.position.txid], end, piece):
            receiver.feed(self.data[offset : min(offset + piece, end)], 1)


def fed_until(store: Store, disk: FaultyDisk, sent: Sent, piece: int, step: int) -> bool:
    """Whether it was stopped."""
    disk.stop_after = disk.steps + step
    try:
        sent.feed(store, piece)
    except Stopped:
        return True
    else:
        return False
    finally:
        store.close()
        disk.revive()


@pytest.mark.parametrize("piece", [1 << 20, 700])
def test_stopped_after_any_step_a_file_that_no_log_knows_is_kept(tmp_path: Path, piece: int) -> None:
    sent = Sent(tmp_path / "primary", 2)
    for step in count():
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk)
        path = store.file_path(NAME)
        path.parent.mkdir(parents=True)
        path.write_bytes(UNKNOWN)
        stopped = fed_until(store, disk, sent, piece, step)
        for _ in range(2):
            store = open_store(root, disk)
            places = [path, *(root / "unknown").rglob(path.name)]
            assert UNKNOWN in [each.read_bytes() for each in places if each.exists()], step
            sent.feed(store, piece)
            assert store.databases[NAME].position.txid == 2
            store.close()
        if not stopped:
            break
    assert step > 5


@pytest.mark.parametrize("piece", [1 << 20, 50])
def test_stopped_after_any_step_the_file_goes_if_the_log_has_its_drop(tmp_path: Path, piece: int) -> None:
    sent = Sent(tmp_path / "primary", 2, drops=True)
    outcomes = set()
    for step in count():
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk)
        sent.feed(store, 1 << 20, sent.ends[2])
        store.stop()
        store.close()
        store = open_store(root, disk)
        assert_file_is(store.file_path(NAME), sent.oracle[2])
        stopped = fed_until(store, disk, sent, piece, step)
        store = open_store(root, disk)
        txid = store.databases[NAME].position.txid
        assert_file_is(store.file_path(NAME), sent.oracle[txid])
        assert not (store.databases[NAME].directory / "dropped").exists() or txid == 2
        outcomes.add(txid)
        store.close()
        if not stopped:
            break
    assert outcomes == {2, 3}


def test_a_mark_that_a_crash_has_left_is_not_of_the_file_that_makes_way(tmp_path: Path) -> None:
    """A record with which the name began, and its drop, were lost; the file of that name is in no log then."""
    pair = Pair(tmp_path)
    path = pair.replica.file_path(NAME)
    path.parent.mkdir(parents=True)
    path.write_bytes(UNKNOWN)
    keep_dropped(pair.replica.disk, path, pair.database.directory)
    pair.application.start()
    pair.application.commit()
    pair.deliver()
    pair.replica.close()
    pair.replica = open_store(tmp_path / "replica")
    assert_file_is(path, pair.content)
    assert [each.read_bytes() for each in (pair.replica.root / "unknown").rglob(path.name)] == [UNKNOWN]
    pair.close()


@pytest.mark.parametrize("keep", [None, "nothing", "everything", "random"])
@pytest.mark.parametrize("piece", [9000, 1700, 3000])
def test_stopped_after_any_step_of_a_stream_the_log_is_found_again(
    tmp_path: Path, piece: int, keep: str | None
) -> None:
    sent = Sent(tmp_path / "primary", 20)
    for step in count():
        root = tmp_path / str(step)
        disk = FaultyDisk(root, tmp_path / f"graves-{step}")
        store = open_store(root, disk, segment_bytes=4000)
        store.create(NAME)
        stopped = fed_until(store, disk, sent, piece, step)
        if keep is not None:
            disk.lose_power(keep, seed=step)
        store = open_store(root, disk, segment_bytes=4000)
        sent.feed(store, piece)
        store.close()
        store = open_store(root, disk)
        assert store.databases[NAME].position.txid == 20
        assert_file_is(store.file_path(NAME), sent.oracle[20])
        log = store.databases[NAME].log
        assert len(list(log.segments())) > (2 if piece > 4000 else 3)
        store.close()
        if not stopped:
            break
    assert step > 10


def test_a_log_that_has_failed_takes_nothing_more_of_a_record_that_has_begun(tmp_path: Path) -> None:
    sent = Sent(tmp_path / "primary", 3)
    disk = FaultyDisk(tmp_path / "data", tmp_path / "graves")
    store = open_store(tmp_path / "data", disk)
    receiver = LogReceiver(store.create(NAME))
    database = store.databases[NAME]
    middle = sent.ends[1] + 100
    receiver.feed(sent.data[:middle], 1)
    disk.fail["fdatasync"] = (0, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        database.log.sync_blocking()
    disk.fail.clear()
    for _ in range(2):
        with pytest.raises(OSError, match="restart this node"):
            receiver.feed(sent.data[middle:], 1)
        assert (database.position.txid, database.log.last_txid, database.log.uncounted) == (1, 1, 0)
        middle = sent.ends[1]
    store.close()


def test_what_an_earlier_receiver_has_left_of_a_record_is_no_part_of_it(tmp_path: Path) -> None:
    """It was given up in the middle, and nobody told it so."""
    sent = Sent(tmp_path / "primary", 3)
    store = open_store(tmp_path / "replica")
    database = store.create(NAME)
    first = LogReceiver(database)
    first.feed(sent.data[: sent.ends[1] + 700], 1)
    assert database.log.uncounted == 700
    LogReceiver(database).feed(sent.data[sent.ends[1] :], 1)
    assert database.position.txid == 3
    assert not database.log.uncounted
    segments = list(database.log.segments())
    assert b"".join(each.path.read_bytes()[: each.length] for each in segments) == sent.data
    store.close()
    open_store(tmp_path / "replica").close()


class Unreadable(FaultyDisk):
    unreadable = False

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if self.unreadable:
            raise OSError(errno.EIO, "Input/output error")
        return super().pread(descriptor, size, offset)


@pytest.mark.parametrize("operation", ["pread", "open", "pwrite", "truncate"])
def test_a_disk_that_refuses_to_begin_the_next_segment_leaves_the_log_in_one_piece(
    tmp_path: Path, operation: str
) -> None:
    sent = Sent(tmp_path / "primary", 20)
    disk = Unreadable(tmp_path / "data", tmp_path / "graves")
    store = open_store(tmp_path / "data", disk, segment_bytes=4000)
    database = store.create(NAME)
    receiver = LogReceiver(database)
    refused = 0
    for start in (0, 5, 10, 15):
        # Five records, and the beginning of the next one in a segment that is full; then more of that.
        pieces = [sent.ends[start], sent.ends[start + 4] + 300, sent.ends[start + 4] + 400, sent.ends[start + 5]]
        for number, (offset, end) in enumerate(pairwise(pieces)):
            disk.unreadable = operation == "pread"
            if number == 1:
                disk.fail[operation] = (0, errno.EIO)
            try:
                receiver.feed(sent.data[offset:end], 1)
            except OSError:
                refused += 1
                assert (number, database.log.uncounted) == (1, 0)
                break
            finally:
                assert database.position.txid == database.log.last_txid == start + 4
        disk.unreadable = False
        disk.fail.clear()
        if operation == "truncate":
            # What lies behind its end is not known any more.
            assert database.log.failure is not None
            break
        receiver.feed(sent.data[sent.ends[start + 4] : sent.ends[start + 5]], 1)
    assert refused == (1 if operation == "truncate" else 4)
    store.close()
    store = open_store(tmp_path / "data", disk)
    txid = store.databases[NAME].position.txid
    assert txid == (4 if operation == "truncate" else 20)
    assert_file_is(store.file_path(NAME), sent.oracle[txid])
    store.close()
