import random
import sqlite3
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import Corrupt
from litereplica.sqlite.checksum import WalChecksum, checksum_words
from litereplica.sqlite.pages import is_database, is_page_size, lock_page, parse_database_header
from litereplica.sqlite.wal import WalHeader, encode_frame_header, encode_frames, parse_wal_header

PAGE_SIZES = [512 << power for power in range(8)]


def recurrence(data: bytes, s0: int, s1: int, big_endian: bool) -> tuple[int, int]:
    words = struct.unpack((">" if big_endian else "<") + f"{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + first + s1) & 0xFFFFFFFF
        s1 = (s1 + second + s0) & 0xFFFFFFFF
    return s0, s1


@given(
    data=st.binary(max_size=4000).map(lambda data: data[: len(data) // 8 * 8]),
    s0=st.integers(0, 2**32 - 1),
    s1=st.integers(0, 2**32 - 1),
    big_endian=st.booleans(),
)
def test_the_dot_product_is_the_recurrence(data: bytes, s0: int, s1: int, big_endian: bool) -> None:
    assert checksum_words(data, s0, s1, big_endian) == recurrence(data, s0, s1, big_endian)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_frame_is_checked_over_its_first_eight_bytes_and_its_page(page_size: int, big_endian: bool) -> None:
    chance = random.Random(page_size)
    frame = chance.randbytes(24 + page_size)
    expected = recurrence(frame[:8] + frame[24:], 0xFFFFFFFF, 7, big_endian)
    checksum = WalChecksum(page_size, big_endian)
    assert checksum.frame(frame[:8], frame[24:], 0xFFFFFFFF, 7) == expected
    assert checksum.whole_frame(frame, 0xFFFFFFFF, 7) == expected
    assert checksum.whole_frame(memoryview(bytearray(b"x" + frame))[1:], 0xFFFFFFFF, 7) == expected


def test_input_longer_than_the_tables_is_taken_in_pieces() -> None:
    data = random.Random(1).randbytes(200_000)
    assert checksum_words(data, 1, 2, False) == recurrence(data, 1, 2, False)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_database_header_says_what_sqlite_wrote(tmp_path: Path, page_size: int, mode: str) -> None:
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA page_size={page_size}")
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("CREATE TABLE t(a)")
    connection.close()
    data = path.read_bytes()
    header = parse_database_header(data[:100])
    assert is_database(data)
    assert header.wal == (mode == "wal")
    assert (header.page_size, header.page_count) == (page_size, len(data) // page_size)
    assert header.change_counter == header.version_valid_for
    assert header.text_encoding == "UTF-8"
    assert header.sqlite_version == sqlite3.sqlite_version_info[0] * 1000000 + (
        sqlite3.sqlite_version_info[1] * 1000 + sqlite3.sqlite_version_info[2]
    )


@given(data=st.binary(max_size=120), place=st.integers(0, 99))
def test_any_bytes_are_a_database_header_or_corrupt(data: bytes, place: int) -> None:
    good = bytes.fromhex("53514c69746520666f726d6174203300100002020040202000000001") + bytes(72)
    parse_database_header(good)
    for candidate in (data, good[:place] + data[:1] + good[place + 1 :]):
        try:
            header = parse_database_header(candidate)
        except Corrupt:
            continue
        assert is_page_size(header.page_size)


def test_the_lock_page_holds_the_lock_byte() -> None:
    assert [lock_page(size) for size in (512, 4096, 65536)] == [2097153, 262145, 16385]
    assert [size for size in range(70_000) if is_page_size(size)] == PAGE_SIZES


@pytest.mark.parametrize("big_endian", [False, True])
def test_a_wal_header_is_read_back_and_every_damaged_byte_is_noticed(big_endian: bool) -> None:
    header = WalHeader.build(page_size=65536, checkpoint_sequence=3, salt1=4, salt2=5, big_endian=big_endian)
    data = header.encode()
    assert parse_wal_header(data) == header
    for place in range(32):
        damaged = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        with pytest.raises(Corrupt):
            parse_wal_header(damaged)
        with pytest.raises(Corrupt):
            parse_wal_header(data[:place])


def test_encoded_frames_are_what_real_sqlite_wrote(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t(a); CREATE TABLE u(a);")
    connection.executescript("BEGIN; INSERT INTO t VALUES(1); INSERT INTO u VALUES(2); COMMIT")
    wal = Path(f"{path}-wal").read_bytes()
    header = parse_wal_header(wal[:32])
    assert header.encode() == wal[:32]
    built, sums, pages = wal[:32], (header.s0, header.s1), []
    for start in range(32, len(wal), 24 + header.page_size):
        pgno, commit, *rest = struct.unpack_from(">6I", wal, start)
        assert encode_frame_header(pgno, commit, *rest) == wal[start : start + 24]
        pages.append((pgno, wal[start + 24 : start + 24 + header.page_size]))
        if commit:
            frames, *sums_list = encode_frames(header, *sums, pages, commit)
            built, sums, pages = built + frames, (sums_list[0], sums_list[1]), []
    assert built == wal
    connection.close()
