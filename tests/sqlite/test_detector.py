import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.sqlite.detector import CommitDetector, Rewind
from litereplica.sqlite.frames import HELD_BYTES
from litereplica.sqlite.wal import WalHeader, encode_frames
from tests.sqlite.following import Followed, scan
from tests.sqlite.recording import Recorded, Recorder, open_recorded

_numbers = itertools.count()


def workload(path: Path, page_size: int) -> list[Recorded]:
    """Small, spilled, rolled-back and restarted transactions of one real connection."""
    name = f"recorder{next(_numbers)}"
    recorder = Recorder(name)
    connection = open_recorded(path, recorder, name, page_size)
    run = connection.execute
    blob = page_size // 3
    run("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
    for i in range(6):
        run("INSERT INTO t VALUES(?, randomblob(?))", (i, blob))
    run("PRAGMA cache_size=5")
    run("BEGIN")
    for i in range(100, 140):
        run("INSERT INTO t VALUES(?, randomblob(?))", (i, blob))
    for step in (1, 3):  # pages that were spilled already are written again, in place
        run("UPDATE t SET v=randomblob(?) WHERE id % ? = 0", (blob, step))
    run("COMMIT")
    run("BEGIN")
    run("UPDATE t SET v=randomblob(?)", (blob,))
    run("ROLLBACK")
    run("INSERT INTO t VALUES(7, 'after the rollback')")
    run("BEGIN")
    run("INSERT INTO t VALUES(8, randomblob(?))", (blob,))
    run("SAVEPOINT s")
    run("UPDATE t SET v=randomblob(?)", (blob,))
    run("ROLLBACK TO s")
    run("DELETE FROM t WHERE id > 120")
    run("UPDATE t SET v=randomblob(?)", (blob,))
    run("COMMIT")
    for _ in range(2):
        run("PRAGMA wal_checkpoint(RESTART)")
        for i in range(4):
            run("UPDATE t SET v=randomblob(?) WHERE id=?", (blob, i))
    run("PRAGMA wal_checkpoint(TRUNCATE)")
    run("UPDATE t SET v=1")
    run("PRAGMA journal_size_limit=1000")
    run("PRAGMA wal_checkpoint(RESTART)")
    run("UPDATE t SET v=2 WHERE id=1")
    run("UPDATE t SET v=3 WHERE id=1")
    connection.close()
    return recorder.log


@pytest.fixture(scope="module", params=[512, 4096, 65536])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Recorded]:
    return workload(tmp_path_factory.mktemp("recorded") / "app.db", request.param)


def split_at(offset: int, data: bytes, boundary: int) -> Iterator[tuple[int, bytes]]:
    while data:
        size = boundary - offset % boundary
        yield offset, data[:size]
        offset, data = offset + len(data[:size]), data[size:]


def replay(recorded: list[Recorded], followed: Followed, boundary: int | None) -> None:
    for kind, offset, data in recorded:
        if kind == "truncate":
            followed.truncate(offset)
        elif boundary is None:
            followed.write(offset, data)
        else:
            for piece in split_at(offset, data, boundary):
                followed.write(*piece)


@pytest.mark.parametrize("boundary", [None, 4096])
@pytest.mark.parametrize("refuse_first", [False, True])
def test_every_commit_of_real_sqlite_is_found_at_the_write_that_completes_it(
    recorded: list[Recorded], boundary: int | None, refuse_first: bool
) -> None:
    followed = Followed(refuse_first=refuse_first)
    replay(recorded, followed, boundary)
    assert followed.rewinds == 0
    # 1 table, 6 rows, 3 long transactions and one after a rollback, 2 x 4 after restarts, 3 at the end
    assert len(followed.commits) >= 20
    assert followed.restarts == 5


def test_a_spilled_transaction_rewrites_frames_in_place(recorded: list[Recorded]) -> None:
    # The workload is only worth its name if SQLite took the paths that it is meant to take.
    size, rewritten, headers_only = 0, 0, 0
    for kind, offset, data in recorded:
        if kind == "write":
            rewritten += offset + len(data) <= size and len(data) > 32
            headers_only += offset + len(data) <= size and len(data) == 24
            size = max(size, offset + len(data))
    assert rewritten > 5
    assert headers_only > 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_writes_split_and_merged_at_any_place_give_the_same_commits(small_recording: list[Recorded], seed: int) -> None:
    chance = random.Random(seed)
    followed = Followed(refuse_first=chance.random() < 0.3)
    waiting: tuple[int, bytes] | None = None

    def flush() -> None:
        nonlocal waiting
        if waiting is None:
            return
        offset, data = waiting
        waiting = None
        while data:
            size = chance.choice((len(data), chance.randint(1, len(data)), min(24, len(data))))
            followed.write(offset, data[:size])
            offset, data = offset + size, data[size:]

    for kind, offset, data in small_recording:
        if kind == "truncate":
            flush()
            followed.truncate(offset)
            continue
        # A restart is one write of the header and what follows, as long as commits are in the file.
        alone = offset < 32 or waiting is None or waiting[0] + len(waiting[1]) != offset or chance.random() < 0.5
        if alone:
            flush()
            if offset < 32:
                followed.write(offset, data)
            else:
                waiting = (offset, data)
        else:
            assert waiting is not None
            waiting = (waiting[0], waiting[1] + data)
    flush()
    assert followed.rewinds == 0
    assert scan(followed.file).committed == followed.detector.committed_frames


@pytest.fixture(scope="module")
def small_recording(tmp_path_factory: pytest.TempPathFactory) -> list[Recorded]:
    return workload(tmp_path_factory.mktemp("recorded") / "app.db", 512)


# ------------------------------------------------------------------------------------------------ synthetic WALs


def make_header(generation: int = 0, *, big_endian: bool = False, page_size: int = 512) -> WalHeader:
    return WalHeader.build(
        page_size=page_size, checkpoint_sequence=generation, salt1=10 + generation, salt2=99, big_endian=big_endian
    )


def make_wal(header: WalHeader, transactions: list[list[int]], fill: int = 0) -> bytes:
    """A WAL whose transactions hold these page numbers; pages are of few different contents, so that bytes recur."""
    s0, s1 = header.s0, header.s1
    parts = [header.encode()]
    for number, pgnos in enumerate(transactions):
        pages = [(pgno, bytes([(pgno + number * fill) % 251]) * header.page_size) for pgno in pgnos]
        part, s0, s1 = encode_frames(header, s0, s1, pages, 10 + number)
        parts.append(part)
    return b"".join(parts)


transactions_of_pages = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    generations=st.lists(transactions_of_pages, min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    big_endian=st.booleans(),
    page_sizes=st.lists(st.sampled_from([512, 1024]), min_size=3, max_size=3),
)
def test_pieces_in_any_order_commit_exactly_when_recovery_would_find_them(
    generations: list[list[list[int]]], seed: int, big_endian: bool, page_sizes: list[int]
) -> None:
    chance = random.Random(seed)
    followed = Followed(refuse_first=chance.random() < 0.5)
    for number, transactions in enumerate(generations):
        header = make_header(number, big_endian=big_endian, page_size=page_sizes[number])
        wal = make_wal(header, transactions, fill=chance.choice((0, 0, 1)))
        followed.write(0, wal[:32])
        size = 24 + header.page_size
        cuts = {32, len(wal)}
        for start in range(32, len(wal), size):
            cuts |= {start, start + 24}
            cuts.add(start + chance.randrange(1, size))
        pieces = [(start, wal[start:end]) for start, end in itertools.pairwise(sorted(cuts))]
        if chance.random() < 0.7:
            # In order within a distance, as far as a cache spill may go, or wholly at random.
            distance = chance.choice((2, 4, 1000))
            pieces.sort(key=lambda piece: piece[0] // size + chance.random() * distance)
        for offset, data in pieces:
            followed.write(offset, data)
            if chance.random() < 0.1:
                followed.write(offset, data)
        assert followed.rewinds == 0
        assert followed.detector.committed_frames == sum(map(len, transactions))


@settings(max_examples=150, deadline=None)
@given(transactions=transactions_of_pages, seed=st.integers(0, 2**32))
def test_damaged_and_repeated_bytes_never_make_a_commit_that_recovery_would_not_find(
    transactions: list[list[int]], seed: int
) -> None:
    chance = random.Random(seed)
    followed = Followed(refuse_first=chance.random() < 0.3)
    wal = make_wal(make_header(), transactions)
    for _ in range(chance.randint(5, 60)):
        start = chance.choice((0, 32, chance.randrange(len(wal)), len(followed.file)))
        data = bytearray(wal[start : start + chance.choice((1, 8, 24, 32, 512, 536, 2000))])
        if data and chance.random() < 0.2:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        action = chance.random()
        if action < 0.05:
            followed.truncate(chance.choice((0, len(followed.file), chance.randrange(len(wal) * 2))))
        elif action < 0.1:
            committed = followed.detector.committed_frames
            if followed.detector.header is not None and start >= 32 + committed * 536:
                try_to_fail(followed, start, bytes(data), chance.randint(0, len(data)))
        elif not followed.detector.unsettled or chance.random() < 0.5:
            followed.write(start, bytes(data))
    # Whatever happened: what is written whole again is found, or was committed in another form already.
    rewinds = followed.rewinds
    followed.write(0, wal)
    assert followed.rewinds > rewinds or followed.detector.committed_frames == sum(map(len, transactions))


def try_to_fail(followed: Followed, offset: int, data: bytes, applied: int) -> None:
    if followed.detector.examine(offset, data, followed.read) is None:
        followed.fail(offset, data, applied)
    else:
        followed.detector.refuse()


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_one_write_may_carry_a_whole_wal(page_size: int, big_endian: bool) -> None:
    followed = Followed(refuse_first=True)
    followed.write(0, make_wal(make_header(page_size=page_size, big_endian=big_endian), [[1, 2], [2], [3, 1, 3]]))
    assert followed.commits == [(1, 10), (2, 11), (5, 12)]
    assert followed.restarts == 1


def test_the_header_may_come_in_pieces_while_nothing_is_committed() -> None:
    followed = Followed()
    wal = make_wal(make_header(), [[1]])
    for place in range(len(wal)):
        followed.write(place, wal[place : place + 1])
    assert followed.commits == [(0, 10)]


def test_frames_may_come_before_the_header() -> None:
    followed = Followed()
    wal = make_wal(make_header(), [[1], [2]])
    followed.write(32, wal[32:])
    assert followed.commits == []
    followed.write(0, wal[:32])
    assert followed.commits == [(0, 10), (1, 11)]


def test_old_frames_after_a_restart_are_not_taken_for_valid() -> None:
    followed = Followed()
    followed.write(0, make_wal(make_header(), [[1], [2], [3]]))
    followed.write(0, make_header(1).encode())
    assert followed.detector.committed_frames == 0
    followed.write(32, make_wal(make_header(1), [[7]])[32:])
    assert followed.detector.committed_frames == 1
    assert followed.detector.verified_frames == 1


def test_a_return_to_an_older_header_finds_the_old_frames_again() -> None:
    followed = Followed()
    wal = make_wal(make_header(), [[1], [2], [3]])
    followed.write(0, wal)
    followed.write(0, make_wal(make_header(1), [[4]]))
    followed.write(0, wal[: 32 + 536])
    assert followed.detector.committed_frames == 3


def test_identical_bytes_below_the_committed_end_are_harmless_and_others_a_rewind() -> None:
    followed = Followed()
    wal = make_wal(make_header(), [[1], [2]])
    followed.write(0, wal)
    followed.write(40, wal[40:700])
    followed.write(0, wal[:32])
    assert followed.rewinds == 0
    followed.write(40, b"\xff" + wal[41:700])
    followed.write(12, b"\xff")
    followed.truncate(100)
    assert followed.rewinds == 3
    followed.write(32, wal[32:] + make_wal(make_header(), [[1], [2], [3]])[len(wal) :])
    assert followed.detector.committed_frames == 3


def test_a_header_with_the_same_salts_is_no_restart() -> None:
    followed = Followed()
    followed.write(0, make_wal(make_header(), [[1]]))
    header = WalHeader.build(page_size=512, checkpoint_sequence=5, salt1=10, salt2=99)
    with pytest.raises(Rewind):
        followed.detector.examine(0, header.encode(), followed.read)


def test_a_refused_commit_can_be_rolled_back_and_written_over() -> None:
    followed = Followed()
    first = make_wal(make_header(), [[1], [2, 3]])
    followed.write(0, first[:-512])
    assert followed.detector.committed_frames == 1
    assert followed.detector.examine(len(first) - 512, first[-512:], followed.read) is not None
    followed.detector.refuse()
    assert followed.detector.committed_frames == 1
    second = make_wal(make_header(), [[1], [4], [5]])
    followed.write(568, second[568:])
    assert followed.commits == [(0, 10), (1, 11), (2, 12)]


@pytest.mark.parametrize("applied", [0, 10, 512])
def test_bytes_of_a_failed_write_are_verified_again_from_the_file(applied: int) -> None:
    followed = Followed()
    wal = make_wal(make_header(), [[1], [2, 3, 4]])
    followed.write(0, wal[:568])
    followed.write(568, wal[568 : 568 + 24])
    assert followed.detector.examine(592, wal[592 : 592 + 512], followed.read) is None
    followed.fail(592, wal[592 : 592 + 512], applied)
    assert followed.detector.verified_frames == 1
    followed.write(568 + 536, wal[568 + 536 :])
    assert followed.detector.committed_frames == (4 if applied == 512 else 1)
    followed.write(568, wal[568 : 568 + 536])
    assert followed.detector.committed_frames == 4


def test_old_bytes_that_equal_the_missing_piece_are_reported_with_it_or_by_settle() -> None:
    followed = Followed()
    followed.write(0, make_wal(make_header(), [[1], [2]]))
    wal = make_wal(make_header(1), [[1], [2]])
    followed.write(0, wal[:32])
    followed.write(32, wal[32:56])  # the page behind it is still there from before
    assert followed.detector.unsettled
    assert followed.late == 1
    followed.write(56, wal[56:568])
    assert followed.commits[2:] == [(0, 10)]
    followed.write(568, wal[568 : 568 + 24])
    settled = followed.detector.settle(followed.read)
    assert settled is not None
    assert [transaction.last_frame for transaction in settled.transactions] == [1]
    followed.detector.accept()
    assert not followed.detector.unsettled
    followed.write(592, wal[592:])
    assert followed.rewinds == 0
    assert followed.detector.committed_frames == 2


def test_a_writer_that_died_within_a_frame_is_noticed_at_the_next_write_further_on() -> None:
    followed = Followed()
    followed.write(0, make_wal(make_header(), [[1], [2], [3]]))
    wal = make_wal(make_header(1), [[1], [2]])
    followed.write(0, wal[:56])
    assert followed.detector.committed_frames == 0
    followed.write(568, wal[568:])
    assert followed.commits[3:] == [(0, 10), (1, 11)]


def test_a_large_transaction_is_held_in_bounded_memory_and_read_back() -> None:
    page_size, count = 65536, 40
    header = make_header(page_size=page_size)
    part, _, _ = encode_frames(
        header, header.s0, header.s1, [(n, bytes([n]) * page_size) for n in range(1, count + 1)], count
    )
    file = bytearray(header.encode())
    detector = CommitDetector(page_size)

    def read(offset: int, size: int) -> bytes:
        return bytes(file[offset : offset + size])

    assert detector.examine(0, bytes(file), read) is not None
    detector.accept()
    examined = None
    for start in range(0, len(part), page_size + 24):
        for place, size in ((start, 24), (start + 24, page_size)):
            assert examined is None
            examined = detector.examine(32 + place, part[place : place + size], read)
            assert sum(map(len, detector._run.held)) <= HELD_BYTES
            if examined is None:
                file += part[place : place + size]
    assert examined is not None
    (transaction,) = examined.transactions
    assert transaction.small_pages is None
    for pgno, frame in transaction.pages:
        assert detector.page(frame, read) == bytes([pgno]) * page_size
    assert len(transaction.pages) == count
    assert transaction.pages[3] == (4, 3)
    assert (4, 3) in transaction.pages
    assert (4, 4) not in transaction.pages


def test_emptying_the_file_forgets_everything() -> None:
    followed = Followed()
    followed.write(0, make_wal(make_header(), [[1], [2]]))
    followed.truncate(0)
    assert followed.detector.header is None
    assert followed.detector.committed_checksum == (0, 0)
    followed.write(0, make_wal(make_header(), [[5]]))
    assert followed.commits[2:] == [(0, 10)]


def test_zeros_that_a_growing_truncation_adds_may_be_the_page_of_a_frame() -> None:
    wal = make_wal(make_header(), [[251]])  # a page of zeros
    before = Followed()
    before.write(0, wal[:56])
    before.truncate(len(wal))
    assert before.detector.unsettled
    settled = before.detector.settle(before.read)
    assert settled is not None
    assert [transaction.commit for transaction in settled.transactions] == [10]
    after = Followed()
    after.write(0, wal[:32])
    after.truncate(len(wal))
    after.write(32, wal[32:56])
    assert after.commits == [(0, 10)]
    assert after.late == 0
