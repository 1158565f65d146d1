import fcntl
import itertools
import mmap
import os
import random
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.errors import Corrupt
from litereplica.sqlite.shm import (
    BLOCK_BYTES,
    FRAMES_IN_FIRST_BLOCK,
    READ_MARK_UNUSED,
    WRITE_LOCK,
    CheckpointInfo,
    WalIndexHeader,
    append_frames,
    block_of,
    invalidate_header,
    lookup,
    parse_header_copy,
    read_checkpoint_info,
    read_header,
    split_blocks,
    write_checkpoint_info,
    write_header,
)
from litereplica.sqlite.wal import encode_frames, parse_wal_header
from tests.sqlite.following import Scan, scan


def empty_index(frames: int) -> list[memoryview]:
    return split_blocks(memoryview(bytearray(BLOCK_BYTES * (block_of(frames) + 1))))


def header(max_frame: int = 1, page_size: int = 4096) -> WalIndexHeader:
    return WalIndexHeader(7, False, page_size, max_frame, 9, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("frame", "block"),
    [(1, 0), (FRAMES_IN_FIRST_BLOCK, 0), (FRAMES_IN_FIRST_BLOCK + 1, 1), (4062 + 4096, 1), (4062 + 4097, 2)],
)
def test_the_first_block_has_fewer_frames_because_the_header_is_in_it(frame: int, block: int) -> None:
    assert block_of(frame) == block


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 32768, 65536])
def test_a_header_is_read_back(page_size: int) -> None:
    (block,) = empty_index(1)
    assert read_header(block) is None
    write_header(block, header(page_size=page_size))
    assert read_header(block) == header(page_size=page_size)
    invalidate_header(block)
    assert read_header(block) is None


@given(place=st.integers(0, 95), bit=st.integers(0, 7))
def test_a_header_with_any_damaged_bit_is_not_believed(place: int, bit: int) -> None:
    (block,) = empty_index(1)
    write_header(block, header())
    block[place] ^= 1 << bit
    assert read_header(block) is None
    both = bytearray(header().encode())
    both[place % 48] ^= 1 << bit
    assert parse_header_copy(bytes(both)) is None


def test_checkpoint_info_is_read_back_and_leaves_the_lock_bytes_alone() -> None:
    (block,) = empty_index(1)
    block[:136] = b"\xee" * 136
    info = CheckpointInfo(3, (0, 5, READ_MARK_UNUSED, 1, 2), 4)
    write_checkpoint_info(block, info)
    assert read_checkpoint_info(block) == info
    assert bytes(block[120:128]) == b"\xee" * 8
    assert bytes(block[:96]) == b"\xee" * 96


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_newest_frame_of_a_page_is_found_whatever_was_rolled_back(seed: int) -> None:
    chance = random.Random(seed)
    blocks = empty_index(9000)
    for block in blocks:
        block[:] = chance.randbytes(16) * (BLOCK_BYTES // 16)  # what an earlier WAL left behind
    frames: list[int] = []
    pages = chance.choice((3, 200, 100_000))
    while len(frames) < 8500:
        part = [chance.randint(1, pages) for _ in range(chance.choice((1, 5, 700, 4500)))][: 9000 - len(frames)]
        append_frames(blocks, len(frames) + 1, part)
        if chance.random() < 0.5 or not frames:
            frames += part  # committed; otherwise the next transaction is written over it
        if chance.random() < 0.1:
            break
    newest = {pgno: frame for frame, pgno in enumerate(frames, 1)}
    for pgno in chance.sample(sorted(newest), min(len(newest), 50)):
        assert lookup(blocks, pgno, len(frames)) == newest[pgno]
    half = len(frames) // 2
    older = {pgno: frame for frame, pgno in enumerate(frames[:half], 1)}
    for pgno in chance.sample(range(1, pages + 1), min(pages, 50)):
        assert lookup(blocks, pgno, half) == older.get(pgno)


def test_a_hash_without_a_free_slot_is_damage() -> None:
    (block,) = empty_index(1)
    append_frames([block], 1, [1])
    block[16384:] = b"\x01\x00" * 8192
    with pytest.raises(Corrupt):
        append_frames([block], 2, [5])
    assert lookup([block], 5, 1) is None


# --------------------------------------------------------------------------------------------- beside real SQLite


class Client:
    """A connection of real SQLite in another process, where its locks are its own."""

    def __init__(self, path: Path) -> None:
        code = (
            "import sqlite3, sys\n"
            "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "for line in sys.stdin:\n"
            "    print(connection.execute(line).fetchall(), flush=True)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, statement: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(statement, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate(timeout=30)


class MappedIndex:
    """The -shm file of a database, mapped as the applier maps it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(f"{path}-shm", os.O_RDWR)
        self.blocks: list[memoryview] = []
        self.map(0)

    def map(self, frame: int) -> None:
        size = max(os.fstat(self._file).st_size, BLOCK_BYTES * (block_of(frame) + 1))
        os.ftruncate(self._file, size)
        self.blocks = split_blocks(memoryview(mmap.mmap(self._file, size)))

    def lock(self, byte: int) -> None:
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, request)

    def unlock(self, byte: int) -> None:
        """Closing would not do: the lock lives as long as the open file, and the mapping keeps that open."""
        request = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, request)

    def close(self) -> None:
        os.close(self._file)


def rebuild(found: Scan, change: int) -> list[memoryview]:
    assert found.header is not None
    s0, s1 = found.sums
    blocks = empty_index(found.committed)
    append_frames(blocks, 1, found.pgnos)
    new = WalIndexHeader.of(
        found.header, change=change, max_frame=found.committed, page_count=found.commits[-1][1], s0=s0, s1=s1
    )
    write_header(blocks[0], new)
    return blocks


def fill(client: Client, page_size: int, rows: int) -> None:
    client.run(f"PRAGMA page_size={page_size}")
    assert client.run("PRAGMA journal_mode=WAL") == "[('wal',)]"
    client.run("PRAGMA wal_autocheckpoint=0")
    client.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
    client.run(
        f"WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows}) "
        f"INSERT INTO t SELECT i, randomblob({page_size}) FROM n"
    )
    client.run("UPDATE t SET v=v||'x' WHERE id % 3 = 0")


@pytest.mark.parametrize(("page_size", "rows"), [(512, 30), (512, 4200), (4096, 30), (65536, 20)])
def test_an_index_rebuilt_from_the_wal_is_the_one_that_sqlite_keeps(tmp_path: Path, page_size: int, rows: int) -> None:
    path = tmp_path / "app.db"
    with Client(path) as client:
        fill(client, page_size, rows)
        index = MappedIndex(path)
        real = index.blocks
        known = read_header(real[0])
        assert known is not None
        found = scan(Path(f"{path}-wal").read_bytes())
        mine = rebuild(found, known.change)
        assert bytes(mine[0][:96]) == bytes(real[0][:96])
        assert len(mine) == len(real)
        for pgno in range(known.page_count + 2):
            assert lookup(mine, pgno, known.max_frame) == lookup(real, pgno, known.max_frame)
        # Every reader uses one mark, and nothing was checkpointed.
        assert read_checkpoint_info(real[0]).backfilled == 0
        client.run("PRAGMA wal_checkpoint")
        assert read_checkpoint_info(real[0]).backfilled == known.max_frame
        index.close()


def image(path: Path, statement: str, folder: Path) -> list[bytes]:
    """The pages of a copy of the database after one more statement."""
    folder.mkdir()
    copy = folder / "app.db"
    copy.write_bytes(path.read_bytes())
    Path(f"{copy}-wal").write_bytes(Path(f"{path}-wal").read_bytes())
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute(statement)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = copy.read_bytes()
    size = struct.unpack_from(">H", data, 16)[0]
    size = 65536 if size == 1 else size
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize(("page_size", "rows"), [(512, 30), (512, 2020), (4096, 30), (65536, 10)])
def test_real_sqlite_reads_and_goes_on_after_frames_that_we_appended(tmp_path: Path, page_size: int, rows: int) -> None:
    path = tmp_path / "app.db"
    statements = [
        "INSERT INTO t(v) SELECT v FROM t LIMIT 40",
        "UPDATE t SET v='new' WHERE id < 20",
        "CREATE TABLE u AS SELECT id FROM t",
    ]
    with Client(path) as client, Client(path) as reader:
        fill(client, page_size, rows)
        reader.run("BEGIN")
        before = reader.run("SELECT count(*), sum(length(v)) FROM t")
        for number, statement in enumerate(statements):
            old = image(path, "SELECT 1", tmp_path / f"old{number}")
            new = image(path, statement, tmp_path / f"new{number}")
            pages = [
                (pgno, page)
                for pgno, (page, other) in enumerate(itertools.zip_longest(new, old), 1)
                if page is not None and page != other
            ]
            index = MappedIndex(path)
            index.lock(WRITE_LOCK)
            append_transaction(path, index, pages, len(new))
            index.unlock(WRITE_LOCK)
            index.close()
        assert reader.run("SELECT count(*), sum(length(v)) FROM t") == before
        reader.run("COMMIT")
        for each in (client, reader):
            assert each.run("SELECT count(*) FROM u") == f"[({rows + min(rows, 40)},)]"
            assert each.run("SELECT count(*) FROM t WHERE v='new'") == "[(19,)]"
            assert each.run("PRAGMA integrity_check") == "[('ok',)]"
        client.run("INSERT INTO u VALUES(-1)")
        assert reader.run("SELECT count(*) FROM u WHERE id=-1") == "[(1,)]"
        assert client.run("PRAGMA wal_checkpoint(TRUNCATE)") == "[(0, 0, 0)]"
        assert reader.run("PRAGMA integrity_check") == "[('ok',)]"


def append_transaction(path: Path, index: MappedIndex, pages: list[tuple[int, bytes]], commit: int) -> None:
    known = read_header(index.blocks[0])
    assert known is not None
    file = os.open(f"{path}-wal", os.O_RDWR)
    wal = parse_wal_header(os.pread(file, 32, 0))
    frames, s0, s1 = encode_frames(wal, known.s0, known.s1, pages, commit)
    os.pwrite(file, frames, 32 + known.max_frame * (24 + wal.page_size))
    os.close(file)
    last = known.max_frame + len(pages)
    index.map(last)
    append_frames(index.blocks, known.max_frame + 1, [pgno for pgno, _page in pages])
    shown = WalIndexHeader.of(wal, change=known.change + 1, max_frame=last, page_count=commit, s0=s0, s1=s1)
    write_header(index.blocks[0], shown)
