"""Records become transactions that ordinary readers see, whole and exact."""

import os
from pathlib import Path

import pytest

from litereplica.applier.protocol import Applied, Apply, Checkpointed, Close, Closed, Failed, Install
from tests.applier.support import Child, Primary, assert_equal_files, client, rows, together


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_files_are_byte_identical_after_inserts_deletes_and_vacuum(
    tmp_path: Path, child: Child, page_size: int
) -> None:
    primary = Primary(tmp_path, page_size=page_size)
    replica = child.mount / "app.db"
    spans = [primary.change("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")]
    for size in (10, 1000, 100_000, 3):
        spans += [primary.change("INSERT INTO t (data) VALUES (randomblob(?))", size) for _ in range(20)]
    spans.append(primary.change("DELETE FROM t WHERE id % 3"))
    spans.append(primary.change("VACUUM"))
    spans.append(primary.change("INSERT INTO t (data) VALUES (randomblob(50000))"))
    for span in spans:
        child.apply(span)
    assert rows(replica, "SELECT count(*), sum(length(data)) FROM t") == primary.execute(
        "SELECT count(*), sum(length(data)) FROM t"
    )
    assert_equal_files(primary, replica)


def test_records_of_a_burst_are_merged_and_the_newest_page_wins(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    spans = [primary.change("INSERT INTO t VALUES (?)", number) for number in range(500)]
    child.send(together(spans[:50]), *spans[50:])
    commits = 0
    while True:
        message = child.expect(Applied)
        commits += 1
        if message.txid == primary.txid:
            break
    assert commits < 450
    assert rows(child.mount / "app.db", "SELECT count(*), max(n) FROM t") == [(500, 499)]
    assert_equal_files(primary, child.mount / "app.db")


def test_a_merge_over_a_vacuum_leaves_no_page_beyond_the_end(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    spans = [
        primary.change("CREATE TABLE t (data)"),
        primary.change("INSERT INTO t VALUES (randomblob(300000))"),
        primary.change("DELETE FROM t"),
        primary.change("VACUUM"),
    ]
    child.apply(together(spans))
    assert_equal_files(primary, child.mount / "app.db")


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_the_text_encoding_of_a_new_database_is_the_primarys(tmp_path: Path, child: Child, encoding: str) -> None:
    primary = Primary(tmp_path, encoding=encoding)
    child.apply(primary.change("CREATE TABLE t (data)"), primary.change("INSERT INTO t VALUES ('ä€')"))
    assert child.expect(Checkpointed).txid == 2  # the applier's own connection can still use it
    assert rows(child.mount / "app.db", "SELECT data FROM t") == [("ä€",)]
    assert_equal_files(primary, child.mount / "app.db")


def test_schema_changes_reach_readers_that_are_open(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (a)"))
    with client(child.mount / "app.db") as reader:
        assert reader.run("SELECT * FROM t") == []
        child.apply(primary.change("ALTER TABLE t ADD COLUMN b"), primary.change("INSERT INTO t VALUES (1, 2)"))
        assert reader.run("SELECT b FROM t") == [(2,)]


def test_an_open_read_transaction_keeps_its_snapshot_through_a_burst(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    replica = child.mount / "app.db"
    child.apply(primary.change("CREATE TABLE t (n)"), primary.change("INSERT INTO t VALUES (-1)"))
    with client(replica) as old, client(replica) as new:
        old.run("BEGIN")
        assert old.run("SELECT count(*) FROM t") == [(1,)]
        for number in range(3000):
            child.send(primary.change("INSERT INTO t VALUES (?)", number))
            if number % 300 == 299:
                child.expect_applied(primary.txid)
                assert old.run("SELECT count(*) FROM t") == [(1,)]
                assert new.run("SELECT count(*), max(n) FROM t") == [(number + 2, number)]
        assert old.run("PRAGMA integrity_check") == [("ok",)]
        assert old.run("SELECT count(*) FROM t") == [(1,)]
        old.run("COMMIT")
        assert old.run("SELECT count(*) FROM t") == [(3001,)]
    assert_equal_files(primary, replica)


def test_databases_in_folders_do_not_meet(tmp_path: Path, child: Child) -> None:
    names = ["app.db", "a/app.db", "a/b/c.db"] + [f"many/{number}.db" for number in range(30)]
    primaries = [Primary(tmp_path, name) for name in names]
    for primary in primaries:
        child.send(primary.change("CREATE TABLE t (name)"), primary.change("INSERT INTO t VALUES (?)", primary.name))
    waiting = set(names)
    while waiting:
        message = child.expect(Applied)
        if message.txid == 2:
            waiting.remove(message.database)
    for primary in primaries:
        assert rows(child.mount / primary.name, "SELECT name FROM t") == [(primary.name,)]


def test_a_writer_in_another_process_delays_its_database_only(tmp_path: Path, child: Child) -> None:
    held, free = Primary(tmp_path, "held.db"), Primary(tmp_path, "free.db")
    for primary in (held, free):
        child.apply(primary.change("CREATE TABLE t (n)"))
    with client(child.mount / "held.db") as holder:
        holder.run("BEGIN IMMEDIATE")
        child.send(held.change("INSERT INTO t VALUES (1)"))
        for number in range(100):
            child.apply(free.change("INSERT INTO t VALUES (?)", number))
        assert holder.run("SELECT count(*) FROM t") == [(0,)]
        holder.run("ROLLBACK")
        child.expect_applied(2, "held.db")
    assert rows(child.mount / "held.db", "SELECT n FROM t") == [(1,)]


def test_a_lock_that_is_never_released_ends_as_a_failure_worth_a_retry(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    second, third = primary.change("INSERT INTO t VALUES (1)"), primary.change("INSERT INTO t VALUES (2)")
    with client(child.mount / "app.db") as holder:
        holder.run("BEGIN IMMEDIATE")
        child.send(second)
        failure = child.expect(Failed)
        assert (failure.txid, failure.retry) == (2, True)
        assert "write lock" in failure.reason
        assert "process" in failure.reason
        assert "(python" in failure.reason
        child.send(third)  # sent before the daemon had heard of the failure: not to be applied alone
        holder.run("ROLLBACK")
    child.apply(second, third)
    assert_equal_files(primary, child.mount / "app.db")


def test_missing_transactions_are_reported_and_a_resend_continues(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    spans = [primary.change("CREATE TABLE t (n)")]
    spans += [primary.change("INSERT INTO t VALUES (?)", number) for number in range(5)]
    child.apply(spans[0])
    child.send(*spans[3:])
    failure = child.expect(Failed)
    assert (failure.txid, failure.retry) == (2, True)
    child.apply(*spans[1:])
    child.send(*spans[:3])  # a resend of what is applied changes nothing
    child.apply(primary.change("INSERT INTO t VALUES (9)"))
    assert_equal_files(primary, child.mount / "app.db")


def test_a_damaged_record_is_never_visible(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    for size in (10, 5_000_000):
        span = primary.change("INSERT INTO t VALUES (randomblob(?))", size)
        with primary.segment.open("r+b") as segment:
            segment.seek(span.offset + span.length - 40)
            byte = segment.read(1)
            segment.seek(-1, os.SEEK_CUR)
            segment.write(bytes([byte[0] ^ 1]))
        child.send(span)
        failure = child.expect(Failed)
        assert (failure.txid, failure.retry) == (span.first_txid, False)
        assert "damaged" in failure.reason
        assert rows(child.mount / "app.db", "SELECT count(*) FROM t") == rows(
            child.mount / "app.db", "SELECT coalesce(max(rowid), 0) FROM t"
        )
        with primary.segment.open("r+b") as segment:
            segment.seek(span.offset + span.length - 40)
            segment.write(byte)
        child.apply(span)
    assert_equal_files(primary, child.mount / "app.db")


def test_records_that_a_wal_cannot_hold_are_refused_with_a_reason(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    pages = primary.file_pages()
    drop = primary.log({}, 0)
    child.send(drop)
    assert "drops" in child.expect(Failed).reason
    primary.txid = 1
    child.send(primary.log({1: pages[1][:18] + b"\x03\x03" + pages[1][20:]}, 2))
    assert "WAL mode" in child.expect(Failed).reason
    primary.txid, primary.page_size = 1, 8192
    child.send(primary.log({1: pages[1] + bytes(4096)}, 2))
    failure = child.expect(Failed)
    assert "8192" in failure.reason
    assert not failure.retry
    primary.txid, primary.page_size, primary.name = 1, 4096, "other.db"
    child.send(primary.log(pages, 2)._replace(database="app.db"))
    assert "other.db" in child.expect(Failed).reason
    assert rows(child.mount / "app.db", "SELECT count(*) FROM t") == [(0,)]


def test_a_torn_wal_index_is_recovered_by_sqlite_first(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"), primary.change("INSERT INTO t VALUES (1)"))
    shm = os.open(child.mount / "app.db-shm", os.O_RDWR)
    os.pwrite(shm, bytes(48), 0)
    os.close(shm)
    child.apply(primary.change("INSERT INTO t VALUES (2)"))
    assert rows(child.mount / "app.db", "SELECT n FROM t") == [(1,), (2,)]
    assert_equal_files(primary, child.mount / "app.db")


def test_frames_of_an_application_before_the_applier_are_kept(tmp_path: Path, child: Child) -> None:
    """A WAL with either byte order of checksums, left by others, is continued."""
    primary = Primary(tmp_path)
    replica = child.mount / "app.db"
    primary.execute("CREATE TABLE t (n)")
    primary.spans()
    for suffix in ("", "-wal"):
        Path(f"{replica}{suffix}").write_bytes(Path(f"{primary.path}{suffix}").read_bytes())
    child.apply(primary.change("INSERT INTO t VALUES (1)"))
    assert rows(replica, "SELECT n FROM t") == [(1,)]
    assert_equal_files(primary, replica)


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_install_replaces_everything_and_records_go_on_from_there(tmp_path: Path, child: Child, page_size: int) -> None:
    old, new = (Primary(tmp_path / side, page_size=page_size) for side in ("old", "new"))
    child.apply(old.change("CREATE TABLE old (data)"), old.change("INSERT INTO old VALUES (randomblob(9000000))"))
    new.execute("CREATE TABLE new (data)")
    new.execute("INSERT INTO new VALUES (randomblob(3000000))")
    new.spans()
    new.fold()
    with client(child.mount / "app.db") as reader:
        reader.run("BEGIN")
        reader.run("SELECT * FROM old LIMIT 0")
        pages = len(new.file_pages())
        child.send(Install("app.db", str(new.path), page_size, pages, new.txid))
        child.expect_applied(new.txid)
        assert reader.run("SELECT length(data) FROM old") == [(9_000_000,)]
    child.apply(new.change("INSERT INTO new VALUES (1)"))
    assert rows(child.mount / "app.db", "SELECT count(*) FROM new") == [(2,)]
    assert_equal_files(new, child.mount / "app.db")


def test_each_content_has_a_history_of_its_own(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    primary.fold()
    install = Install("app.db", str(primary.path), 4096, len(primary.file_pages()), primary.txid)
    child.send(install)
    told = child.expect(Applied)
    child.send(primary.change("INSERT INTO t VALUES (1)"))
    assert child.expect(Applied).history == told.history
    assert child.expect(Checkpointed).history == told.history
    child.send(install)
    assert child.expect(Applied).history > told.history


def test_install_of_a_file_that_is_too_short_changes_nothing(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"))
    primary.fold()
    child.send(Install("app.db", str(primary.path), 4096, 5000, 9))
    failure = child.expect(Failed)
    assert (failure.txid, failure.retry) == (9, False)
    assert rows(child.mount / "app.db", "SELECT count(*) FROM t") == [(0,)]


def close(child: Child) -> None:
    """From the answer on another file may have the name."""
    child.send(Close("app.db"))
    while isinstance(answer := child.receive(), Checkpointed):
        pass
    assert answer == Closed("app.db")


def test_close_leaves_the_files_alone_and_the_name_can_be_used_again(tmp_path: Path, child: Child) -> None:
    replica = child.mount / "app.db"
    first = Primary(tmp_path / "1")
    child.apply(first.change("CREATE TABLE first (n)"))
    close(child)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{replica}{suffix}").unlink()
    second = Primary(tmp_path / "2", page_size=1024)
    child.apply(second.change("CREATE TABLE second (n)"))
    assert rows(replica, "SELECT name FROM sqlite_schema") == [("second",)]
    close(child)
    third = Primary(tmp_path / "3", "c.db")
    child.apply(third.change("CREATE TABLE third (n)"))
    assert Path(f"{replica}-wal").stat().st_size > 0
    assert Path(f"{replica}-shm").exists()
    assert_equal_files(second, replica)


def test_a_record_without_a_page_is_applied(tmp_path: Path, child: Child) -> None:
    primary = Primary(tmp_path)
    child.apply(primary.change("CREATE TABLE t (n)"), primary.log({}, 2))
    child.apply(primary.change("INSERT INTO t VALUES (1)"))
    assert_equal_files(primary, child.mount / "app.db")


def test_a_segment_that_is_not_there_is_worth_a_retry(tmp_path: Path, child: Child) -> None:
    child.send(Apply("app.db", str(tmp_path / "none.ltx"), 0, 100, 1, 1))
    failure = child.expect(Failed)
    assert (failure.txid, failure.retry) == (1, True)
