"""Which SQLite and which files are warned about or refused."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.sqlite.version import has_wal_reset_bug, header_problem, name_problem, version_number, version_text

WAL_HEADER = b"SQLite format 3\x00\x10\x00\x02\x02\x00\x40\x20\x20" + bytes(72) + (3040001).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("version", "buggy"),
    [
        (0, False), (3006023, False), (3007000, True), (3040001, True), (3044005, True), (3044006, False),
        (3044007, True), (3050006, True), (3050007, False), (3051002, True), (3051003, False), (3052000, False),
    ],
)  # fmt: skip
def test_versions_with_the_wal_reset_bug(version: int, buggy: bool) -> None:
    assert has_wal_reset_bug(version) is buggy


@given(st.integers(0, 9), st.integers(0, 999), st.integers(0, 999))
def test_a_version_is_read_as_it_is_written(major: int, minor: int, patch: int) -> None:
    assert version_text(version_number((major, minor, patch))) == f"{major}.{minor}.{patch}"


def test_this_library_has_the_number_that_it_says() -> None:
    assert version_text(version_number(sqlite3.sqlite_version_info)) == sqlite3.sqlite_version


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_what_sqlite_writes_has_no_problem(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE t(x)")
    first = path.read_bytes()[:100]
    assert header_problem(first) is None
    assert int.from_bytes(first[96:], "big") == version_number(sqlite3.sqlite_version_info)


def changed(offset: int, data: bytes) -> bytes:
    return WAL_HEADER[:offset] + data + WAL_HEADER[offset + len(data) :]


@pytest.mark.parametrize(
    ("first", "word"),
    [
        (bytes(range(100)), "encrypted"),
        (b"PK\x03\x04" + bytes(96), "another kind of file"),
        (b"SQLite format 3\x00", "shorter"),
        (changed(18, b"\x03\x03"), "WAL2"),
        (changed(18, b"\x02\x03"), "WAL2"),
        (changed(18, b"\x04\x04"), "newer SQLite"),
        (changed(18, b"\x02\x01"), "format versions 2 and 1"),
        (changed(16, b"\x10\x01"), "cannot be"),
        (changed(21, b"\x00"), "cannot be"),
    ],
)
def test_headers_that_are_refused_say_why(first: bytes, word: str) -> None:
    problem = header_problem(first)
    assert problem is not None
    assert word in problem


def test_a_wal_header_of_every_page_size_has_no_problem() -> None:
    for size in (512, 1024, 4096, 32768, 1):
        assert header_problem(changed(16, size.to_bytes(2, "big"))) is None


def test_wal2_files_are_named_and_others_are_not() -> None:
    assert "WAL2" in str(name_problem("dir/app.db-wal2"))
    assert [name_problem(name) for name in ("app.db", "app.db-wal", "app.db-journal", "wal2")] == [None] * 4
