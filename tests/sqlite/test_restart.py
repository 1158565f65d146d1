"""A WAL begins again as SQLite itself lets it begin."""

import contextlib
import sqlite3
from pathlib import Path

from litereplica.sqlite.shm import (
    BLOCK_BYTES,
    INDEX_HEADER_BYTES,
    READ_MARK_UNUSED,
    read_checkpoint_info,
    read_header,
    restart,
)
from litereplica.sqlite.wal import first_wal


def test_a_restart_changes_what_sqlites_own_changes(tmp_path: Path) -> None:
    """PRAGMA wal_checkpoint(TRUNCATE) calls walRestartHdr; only the random half of the salt may differ."""
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (n)")
        with contextlib.closing(sqlite3.connect(path)) as reader:
            reader.execute("SELECT * FROM t").fetchall()
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(50)])
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        ours = bytearray(Path(f"{path}-shm").read_bytes()[:BLOCK_BYTES])
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        theirs = bytearray(Path(f"{path}-shm").read_bytes()[:BLOCK_BYTES])
    expected = read_header(memoryview(theirs))
    assert expected is not None
    before = read_header(memoryview(ours))
    assert before is not None
    assert before.max_frame > 0
    restart(memoryview(ours), expected.salt2)
    assert read_header(memoryview(ours)) == expected
    assert ours[:INDEX_HEADER_BYTES] == theirs[:INDEX_HEADER_BYTES]
    info = read_checkpoint_info(memoryview(ours))
    assert info.read_marks == (0, 0, READ_MARK_UNUSED, READ_MARK_UNUSED, READ_MARK_UNUSED)
    assert (info.backfilled, info.backfill_attempted) == (0, 0)


def test_a_database_in_rollback_mode_is_read_through_its_first_wal(tmp_path: Path) -> None:
    """SQLite opens a WAL that is there, whatever page 1 says, and finds the same database in it."""
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (n)")
        connection.execute("INSERT INTO t VALUES (1)")
    data = path.read_bytes()
    wal = first_wal(lambda offset, size: data[offset : offset + size], len(data), b"saltsalt")
    Path(f"{path}-wal").write_bytes(wal)
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(1,)]
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert path.read_bytes() == data
    assert Path(f"{path}-wal").read_bytes() == wal
