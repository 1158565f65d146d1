"""Rollback journals as SQLite writes them, and as anything else may have left them."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.sqlite.journal import (
    JOURNAL_MAGIC,
    Read,
    encode_journal_header,
    encode_original,
    is_super_journal,
    original_pages,
    parse_journal_header,
    super_journal_name,
)
from litereplica.sqlite.pages import parse_database_header


def open_database(path: Path, page_size: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA page_size={page_size}")
    connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
        "INSERT INTO t (v) SELECT randomblob(700) FROM n"
    )
    return connection


def reading(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


def played_back(database: bytes, journal: bytes) -> bytes:
    header = parse_journal_header(journal[:28])
    if header is None:
        return database
    size = header.page_size
    data = bytearray(database[: header.page_count * size].ljust(header.page_count * size, b"\0"))
    for pgno, page in original_pages(header, reading(journal), len(journal)):
        data[(pgno - 1) * size : pgno * size] = page
    return bytes(data)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL", "FULL"])
@pytest.mark.parametrize("change", ["UPDATE t SET v = randomblob(900)", "DELETE FROM t WHERE k > 5", "DROP TABLE t"])
def test_a_hot_journal_is_played_back_as_sqlite_does(
    tmp_path: Path, page_size: int, synchronous: str, change: str
) -> None:
    path = tmp_path / "app.db"
    connection = open_database(path, page_size)
    before = path.read_bytes()
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("PRAGMA cache_size=5")
    connection.execute("BEGIN")
    connection.execute(change)
    # What a crash leaves: the files as they are in the middle of a transaction that has spilled.
    for suffix in ("", "-journal"):
        shutil.copy(f"{path}{suffix}", tmp_path / f"hot.db{suffix}")
    connection.execute("ROLLBACK")
    connection.close()
    hot = tmp_path / "hot.db"
    found = played_back(hot.read_bytes(), (tmp_path / "hot.db-journal").read_bytes())
    with sqlite3.connect(hot) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    reader.close()
    assert found == hot.read_bytes()
    header = parse_database_header(before)
    assert found[: header.page_count * page_size] == before


def test_the_name_of_a_super_journal_is_read_as_it_was_written() -> None:
    name = "/mnt/databases/größe.db-mj0123AB9CD".encode()
    signed = sum(byte - 256 * (byte > 127) for byte in name) & 0xFFFFFFFF
    for checksum, expected in ((sum(name), name.decode()), (signed, name.decode()), (sum(name) ^ 1, None)):
        data = bytes(1000) + name + len(name).to_bytes(4) + checksum.to_bytes(4) + JOURNAL_MAGIC
        assert super_journal_name(reading(data), len(data)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("app.db-mj0123AB9CD", True),
        ("dir/app.db-mjFFFFFF900", True),
        ("app.db-mj0123AB8CD", False),
        ("app.db-mj0123ab9cd", False),
        ("-mj0123AB9CD", False),
        ("app.db-mj", False),
        ("app.db", False),
    ],
)
def test_super_journals_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_super_journal(name) is expected


@given(st.binary(max_size=300), st.integers(0, 40_000), st.binary(min_size=1, max_size=8))
def test_damage_ends_a_journal_early_and_nothing_worse(start: bytes, place: int, damage: bytes) -> None:
    whole = _journal()
    data = bytearray(whole)
    data[: len(start)] = whole[: len(start) // 2] + start[len(start) // 2 :]
    data[place : place + len(damage)] = damage
    header = parse_journal_header(bytes(data[:28]))
    if header is not None:
        for pgno, page in original_pages(header, reading(bytes(data)), len(data)):
            assert 1 <= pgno <= header.page_count
            assert len(page) == header.page_size
    super_journal_name(reading(bytes(data)), len(data))


def _journal() -> bytes:
    page_size, nonce = 1024, 7
    page = bytes(range(256)) * 4
    checksum = nonce + sum(page[at] for at in range(page_size - 200, 0, -200))
    record = (3).to_bytes(4) + page + checksum.to_bytes(4)
    numbers = (10, nonce, 12, 512, page_size)
    header = JOURNAL_MAGIC + b"".join(number.to_bytes(4) for number in numbers)
    return header.ljust(512, b"\0") + 10 * record


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_a_journal_that_is_made_here_is_played_back_by_sqlite(tmp_path: Path, page_size: int, kept: float) -> None:
    path = tmp_path / "app.db"
    open_database(path, page_size).close()
    before = path.read_bytes()
    pages = {pgno: before[(pgno - 1) * page_size : pgno * page_size] for pgno in range(1, len(before) // page_size + 1)}
    nonce = 0xFFFFFFF0
    journal = encode_journal_header(len(pages), page_size, nonce)
    journal += b"".join(encode_original(pgno, page, nonce) for pgno, page in pages.items())
    header = parse_journal_header(journal[:28])
    assert header is not None
    assert dict(original_pages(header, reading(journal), len(journal))) == pages
    # Torn while it was written: what it has is put back, and the rest was not changed yet.
    journal = journal[: int(len(journal) * kept)]
    found = dict(original_pages(header, reading(journal), len(journal)))
    changed = b"".join(bytes(page_size) if pgno in found else page for pgno, page in pages.items()) + bytes(page_size)
    path.write_bytes(changed)
    Path(f"{path}-journal").write_bytes(journal)
    with sqlite3.connect(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    reader.close()
    assert path.read_bytes() == before
