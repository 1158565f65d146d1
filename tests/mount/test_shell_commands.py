"""What people do to database files with cp and rm while applications have them open."""

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pyfuse3
import pytest

from litereplica.mount.access import FOR_EVER, Access
from litereplica.mount.operations import Operations
from litereplica.store.disk import Disk
from tests.mount.refusing import SIZE, Writer, adopted
from tests.store.application import Application, open_store
from tests.store.named_calls import NamedCalls
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, integrity, run_sql

LARGE_BYTES = 120_000_000


@pytest.mark.parametrize("has_reader", [False, True])
def test_a_copy_over_a_database_is_refused_also_when_all_its_pages_are_in_the_wal(
    node: Node, tmp_path: Path, has_reader: bool
) -> None:
    """They are folded, and SQLite reads what is folded from the file."""
    name = f"copied-{has_reader}.db"
    path, other = node.path(name), tmp_path / "other.db"
    run_sql(other, "CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'another');")
    with Session(path) as session, Session(path) as reader:
        session.run("PRAGMA journal_mode=WAL")
        session.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        session.run("INSERT INTO t VALUES (1, 'mine')")
        if has_reader:
            reader.run("BEGIN")
            reader.run("SELECT * FROM t")
        assert session.run("PRAGMA wal_checkpoint")[0][0] == 0
        before = node.position(name)
        copied = subprocess.run(["cp", other, path], capture_output=True, check=False, timeout=20)
        assert copied.returncode == 1
        assert node.position(name) == before
        with Session(path) as late:
            assert late.run("SELECT * FROM t") == [(1, "mine")]
            late.run("INSERT INTO t VALUES (2, 'after')")
        assert session.run("SELECT * FROM t") == [(1, "mine"), (2, "after")]
    assert integrity(path) == "ok"
    assert node.log_lines("truncate_refused")


def test_a_file_that_is_removed_while_its_copy_is_logged_is_dropped(nodes: Nodes, tmp_path: Path) -> None:
    """It was a database without a file, with which no start went well."""
    node = nodes.standalone()
    source, path = tmp_path / "large.db", node.path("large.db")
    with closing(sqlite3.connect(source)) as made:
        made.execute("CREATE TABLE t (v)")
        made.execute("INSERT INTO t VALUES (zeroblob(?))", (LARGE_BYTES,))
        made.commit()
    copying = subprocess.Popen(["cp", source, path])
    while not path.exists() or path.stat().st_size < LARGE_BYTES:
        assert copying.poll() is None
    subprocess.run(["rm", path], check=True, timeout=60)
    copying.wait(60)
    assert not path.exists()
    node.kill()
    node.start()
    assert not path.exists()
    run_sql(path, "CREATE TABLE t (v); INSERT INTO t VALUES (1);")
    assert run_sql(path, "SELECT v FROM t") == [(1,)]


@pytest.mark.parametrize(("before", "after", "pages"), [(4096, 65536, 17), (1024, 4096, 257)])
def test_vacuum_to_larger_pages_whose_last_run_is_one_page(node: Node, before: int, after: int, pages: int) -> None:
    path = node.path(f"pages{after}.db")
    with Session(path) as session:
        session.run(f"PRAGMA page_size={before}")
        session.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        rows = 0
        while session.run("PRAGMA page_count")[0][0] * before < pages * after - 3 * after // 2:
            session.run("INSERT INTO t (v) VALUES (zeroblob(900))", times=20)
            rows += 20
        for _ in range(80):
            session.run(f"PRAGMA page_size={after}")
            session.run("VACUUM")
            if (found := session.run("PRAGMA page_count")[0][0]) == pages:
                break
            assert found < pages, "it was passed over"
            session.run(f"PRAGMA page_size={before}")
            session.run("VACUUM")
            session.run("INSERT INTO t (v) VALUES (zeroblob(900))", times=2)
            rows += 2
        assert session.run("PRAGMA page_size") == [(after,)]
        assert session.run("SELECT count(*) FROM t") == [(rows,)]
    assert integrity(path) == "ok"


@pytest.mark.parametrize("mode", ["PERSIST", "TRUNCATE"])
def test_a_copy_in_the_place_of_a_database_that_was_removed_without_its_journal(
    node: Node, tmp_path: Path, mode: str
) -> None:
    """The journal of before would go on to protect the old file, and nothing the new one."""
    path, other = node.path(f"again-{mode}.db"), tmp_path / "other.db"
    run_sql(other, "CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'another');")
    run_sql(
        path,
        f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'mine');",
    )
    assert Path(f"{path}-journal").exists()
    path.unlink()
    subprocess.run(["cp", other, path], check=True, timeout=20)
    with Session(path) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("INSERT INTO t VALUES (2, 'after')")
        session.run("INSERT INTO t VALUES (3, 'again')")
        assert session.run("SELECT v FROM t") == [("another",), ("after",), ("again",)]
    assert integrity(path) == "ok"


async def test_no_database_is_dropped_once_no_commit_is_accepted(tmp_path: Path) -> None:
    """In a handoff too: the next primary would not hear of it."""
    store = open_store(tmp_path / "data")
    app = Application(store, name="app.db")
    app.start()
    app.commit()
    store.close()
    store = open_store(tmp_path / "data")
    app.go_on(store)
    access = Access()
    access.primary = True
    operations = Operations(store, access)
    access.accepts_until = 0
    at = app.database.position
    with pytest.raises(pyfuse3.FUSEError):
        await operations.unlink(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(b"app.db"), pyfuse3.RequestContext())
    assert app.database.position == at
    store.close()


COPIED_BYTES = 5_000_000


def close_fence_at(disk: NamedCalls, call: str, access: Access) -> None:
    """No commit is accepted any more from the next ``call`` on that a log makes, which succeeds."""

    def look(made: str, path: Path) -> bool:
        if made == call and path.suffix == ".ltx":
            access.accepts_until = 0.0
            disk.well_again()
        return False

    disk.refuses = look


async def test_a_copy_that_is_still_being_logged_when_the_fence_closes_is_refused_and_may_be_tried_again(
    tmp_path: Path,
) -> None:
    """Whoever is primary next has not heard of it, and would have it dropped."""
    source, disk = tmp_path / "source.db", NamedCalls()
    with closing(sqlite3.connect(source)) as made:
        made.execute("CREATE TABLE t (v)")
        made.execute("INSERT INTO t VALUES (zeroblob(?))", (COPIED_BYTES,))
        made.commit()
    content = source.read_bytes()
    writer = Writer(tmp_path / "data", disk)
    operations = Operations(writer.store, writer.access)
    root, name, context = pyfuse3.ROOT_INODE, pyfuse3.FileNameT(b"app.db"), pyfuse3.RequestContext()
    info, _ = await operations.create(root, name, pyfuse3.ModeT(0o644), pyfuse3.FlagT(os.O_WRONLY), context)
    for at in range(0, len(content), 1 << 17):
        await operations.write(info.fh, at, content[at : at + (1 << 17)])
    for _ in range(2):
        writer.access.accepts_until = FOR_EVER
        close_fence_at(disk, "pwrite", writer.access)
        with pytest.raises(pyfuse3.FUSEError):
            await operations.flush(info.fh)
        database = writer.store.databases["app.db"]
        assert database.position.txid == 0
        assert (database.log.last_txid, database.log.uncounted) == (0, 0)
        assert writer.access.fenced is None
    writer.close()
    writer = Writer(tmp_path / "data", Disk())
    known = writer.store.get("app.db")
    assert known is None or known.position.txid == 0
    file = writer.open()
    file.importers = 1
    await file.copied()
    assert writer.store.databases["app.db"].position.txid == 1
    assert writer.exact() == content
    writer.close()


async def test_a_drop_during_whose_fsync_the_fence_closes_is_refused(tmp_path: Path) -> None:
    root, disk = tmp_path / "data", NamedCalls()
    writer, original = await adopted(root, disk)
    database = writer.store.databases["app.db"]
    at = database.position
    operations = Operations(writer.store, writer.access)
    close_fence_at(disk, "fdatasync", writer.access)
    with pytest.raises(pyfuse3.FUSEError):
        await operations.unlink(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(b"app.db"), pyfuse3.RequestContext())
    assert (database.position, database.log.last_txid) == (at, at.txid)
    assert writer.access.fenced is None
    writer.close()
    writer = Writer(root, Disk())
    assert writer.store.databases["app.db"].position == at
    assert writer.exact() == original
    journal = await writer.change(original, [1, 2])
    await writer.end(journal)
    assert writer.store.databases["app.db"].position.txid == at.txid + 1
    assert len(writer.exact()) == len(original) + SIZE
    writer.close()
