"""Transactions of a replica's applications under rollback journals, new databases, and DB-halt."""

import contextlib
import signal
import subprocess
import sys

import pytest

from litereplica.sqlite.journal import JOURNAL_MAGIC, is_live_journal
from tests.mount.test_forwarding_wal import assert_sound, ids, txid
from tests.mount.twin_node import TwinNode
from tests.support.nodes import Nodes
from tests.support.sql import Session, SqlError, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(110)
MODES = ("DELETE", "TRUNCATE", "PERSIST")


@pytest.fixture
def node(twin_node: TwinNode) -> TwinNode:
    return twin_node


def make(node: TwinNode, mode: str, name: str | None = None, page_size: int = 4096) -> None:
    script = f"PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, v);"
    run_sql(node.path(name), script)


@pytest.mark.parametrize("mode", [*MODES, "WAL"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_new_database_is_made_elsewhere(node: TwinNode, mode: str, page_size: int) -> None:
    make(node, mode, page_size=page_size)
    with Session(node.path()) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        for number in range(5):
            session.run("INSERT INTO t VALUES (?, randomblob(3000))", number)
    assert ids(node) == [0, 1, 2, 3, 4]
    assert_sound(node)


def test_a_new_database_that_is_refused_leaves_an_empty_file(node: TwinNode) -> None:
    node.answer("refuse")
    with pytest.raises(SqlError):
        make(node, "DELETE")
    assert node.position() == f"{0:016x}/{0:016x}"
    node.answer("commit")
    make(node, "DELETE")
    with Session(node.path()) as session:
        session.run("INSERT INTO t VALUES (1, 'x')")
    assert ids(node) == [1]
    assert_sound(node)


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("stays_open", [False, True])
def test_a_database_of_that_name_that_another_node_makes_first_takes_its_place(
    node: TwinNode, mode: str, stays_open: bool
) -> None:
    node.answer("other")
    session = Session(node.path())
    with contextlib.suppress(SqlError):
        session.run(f"PRAGMA journal_mode={mode}")
    with contextlib.suppress(SqlError):
        session.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    if not stays_open:
        session.close()
    node.wait_applied()
    node.answer("commit")
    run_sql(node.path(), "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'x');")
    assert ids(node) == [1]
    session.close()
    assert_sound(node)
    # It was refused, and so nobody's.
    assert not (node.data / "unknown").exists()


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 1500])
def test_a_connection_in_a_rollback_mode_from_when_this_node_was_primary(node: TwinNode, mode: str, rows: int) -> None:
    """1,500 rows of 4 KB: more than is held in memory."""
    node.lead()
    make(node, mode)
    with Session(node.path()) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("PRAGMA cache_size=10")
        session.run("INSERT INTO t VALUES (1, 'here')")
        session.run("BEGIN")
        session.run("INSERT INTO t VALUES (2, 'begun here')")
        node.demote()
        session.run("COMMIT")
        for how in ("refuse", "commit"):
            node.answer(how)
            session.run("BEGIN")
            for number in range(rows):
                session.run("INSERT INTO t VALUES (?, randomblob(4000))", 100 + number)
            if how == "refuse":
                with pytest.raises(SqlError):
                    session.run("COMMIT")
                with contextlib.suppress(SqlError):
                    session.run("ROLLBACK")
                assert session.run("SELECT id FROM t") == [(1,), (2,)]
            else:
                session.run("COMMIT")
        assert ["begin", node.database] in node.seen()
    assert ids(node) == [1, 2, *range(100, 100 + rows)]
    assert_sound(node)


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 1500])
def test_a_commit_that_is_not_known_to_be_on_the_primarys_disk_is_no_success(
    node: TwinNode, mode: str, rows: int
) -> None:
    node.lead()
    make(node, mode)
    journal = node.path(f"{node.database}-journal")
    with Session(node.path()) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("PRAGMA cache_size=10")
        session.run("INSERT INTO t VALUES (1, 'here')")
        node.demote()
        node.answer("hold")
        before = txid(node)
        session.run("BEGIN")
        for number in range(rows):
            session.run("INSERT INTO t VALUES (?, randomblob(4000))", 100 + number)
        session.send("COMMIT")
        node.wait_seen("commit")
        if mode == "TRUNCATE":
            # Now the kernel has the journal as it is before its end.
            assert journal.read_bytes().startswith(JOURNAL_MAGIC)
        node.go("undurable")
        with pytest.raises(SqlError) as error:
            session.receive()
        assert error.value.code.startswith("SQLITE_IOERR")
        assert not journal.exists() if mode == "DELETE" else not is_live_journal(journal.read_bytes())
        assert len(node.log_lines("commit_unknown")) == 1
        assert txid(node) == before + 1
        node.answer("commit")
        assert session.run("SELECT count(*) FROM t") == [(1 + rows,)]
        assert session.run("PRAGMA integrity_check") == [("ok",)]
        session.run("INSERT INTO t VALUES (2, 'after')")
        assert txid(node) == before + 2
    assert ids(node) == [1, 2, *range(100, 100 + rows)]
    assert_sound(node)


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize(("mode", "rows"), [("DELETE", 1), *((mode, 1500) for mode in MODES)])
@pytest.mark.parametrize("ender", ["its writer", "the next reader", "the applier"])
def test_a_stale_transaction_is_rolled_back_by_whoever_comes_first(
    node: TwinNode, mode: str, rows: int, ender: str
) -> None:
    """1,500 rows of 4 KB: more than is held in memory."""
    node.lead()
    make(node, mode)
    session = Session(node.path())
    session.run(f"PRAGMA journal_mode={mode}")
    session.run("PRAGMA cache_size=10")
    session.run("INSERT INTO t VALUES (1, 'here')")
    node.demote()
    before = txid(node)
    session.run("BEGIN")
    for number in range(rows):
        session.run("INSERT INTO t VALUES (?, randomblob(4000))", 100 + number)
    session.run("UPDATE t SET v = 'changed' WHERE id = 1")
    node.arrive()
    if ender == "its writer":
        with pytest.raises(SqlError):
            session.run("COMMIT")
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
        assert session.run("SELECT id, v FROM t") == [(1, "here")]
    else:
        session.kill()
    if ender == "the next reader":
        assert run_sql(node.path(), "SELECT id, v FROM t") == [(1, "here")]
    node.wait_applied()
    assert txid(node) == before + 1
    run_sql(node.path(), "INSERT INTO t VALUES (2, 'after')")
    assert ids(node) == [1, 2]
    session.close()
    assert_sound(node)


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize("mode", MODES)
def test_a_transaction_that_is_overtaken_at_its_end_is_rolled_back(node: TwinNode, mode: str) -> None:
    node.lead()
    make(node, mode)
    with Session(node.path()) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("INSERT INTO t VALUES (1, 'here')")
        node.demote()
        session.run("BEGIN")
        session.run("INSERT INTO t VALUES (2, 'of both')")
        node.answer("other")
        with pytest.raises(SqlError):
            session.run("COMMIT")
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
        node.answer("commit")
        node.wait_applied()
        session.run("INSERT INTO t VALUES (3, 'after')")
    assert ids(node) == [1, 2, 3]
    assert_sound(node)


@pytest.mark.usefixtures("changes_role")
@pytest.mark.parametrize("mode", MODES)
def test_what_is_old_by_then_is_refused_before_a_page_is_changed(node: TwinNode, mode: str) -> None:
    """The journal's header becomes valid right before that (syncJournal)."""
    node.lead()
    make(node, mode)
    with Session(node.path()) as session:
        session.run(f"PRAGMA journal_mode={mode}")
        session.run("INSERT INTO t VALUES (1, 'here')")
        node.demote()
        session.run("BEGIN")
        session.run("INSERT INTO t VALUES (2, 'stale')")
        node.arrive()
        with pytest.raises(SqlError) as error:
            session.run("COMMIT")
        assert error.value.code == "SQLITE_IOERR_WRITE"
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
        assert node.seen() == []
        node.wait_applied()
        session.run("INSERT INTO t VALUES (2, 'again')")
    assert ids(node) == [1, 2]
    assert_sound(node)


@pytest.mark.usefixtures("changes_role")
def test_a_held_journal_end_is_committed_here_when_this_node_becomes_the_primary(node: TwinNode) -> None:
    make(node, "DELETE")
    with Session(node.path()) as session:
        node.seen()
        node.answer("hold")
        session.send("INSERT INTO t VALUES (1, 'x')")
        node.wait_seen("commit")
        before = txid(node)
        node.lead()
        session.receive()
        assert txid(node) == before + 1
        session.run("INSERT INTO t VALUES (2, 'x')")
    assert ids(node) == [1, 2]
    assert_sound(node)


@pytest.mark.parametrize("mode", ["OFF", "MEMORY"])
def test_what_cannot_be_undone_is_refused(node: TwinNode, mode: str) -> None:
    with pytest.raises(SqlError):
        make(node, mode)
    assert node.log_lines("write_refused")


@pytest.mark.usefixtures("changes_role")
def test_a_transaction_over_several_databases_is_refused_with_a_reason(node: TwinNode) -> None:
    node.lead()
    make(node, "DELETE")
    make(node, "DELETE", other := f"other-{node.database}")
    with Session(node.path()) as session:
        session.run(f"ATTACH '{node.path(other)}' AS other")
        session.run("BEGIN")
        session.run("INSERT INTO main.t VALUES (1, 'x')")
        session.run("INSERT INTO other.t VALUES (1, 'x')")
        node.demote()
        with pytest.raises(SqlError):
            session.run("COMMIT")
        with contextlib.suppress(SqlError):
            session.run("ROLLBACK")
        assert session.run("SELECT (SELECT count(*) FROM main.t), (SELECT count(*) FROM other.t)") == [(0, 0)]
    assert any("over several databases" in line for line in node.log_lines("commit_refused"))


OPENER = "import os, sys; os.open(sys.argv[1], os.O_WRONLY); print('held', flush=True); sys.stdin.read()"


def opener(node: TwinNode) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", OPENER, str(node.path(f"{node.database}-halt"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_halt_is_held_from_open_to_close(node: TwinNode) -> None:
    make(node, "WAL")
    node.answer("hold")
    with opener(node) as process:
        node.wait_seen("hold")
        node.go()
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert node.seen() == []
        process.kill()
    assert node.wait_seen("released") == ["released", node.database]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_waits_for_halt_can_be_interrupted(node: TwinNode, number: int) -> None:
    make(node, "WAL")
    node.answer("hold")
    with opener(node) as process:
        node.wait_seen("hold")
        process.send_signal(number)
        assert process.wait(30) != 0
    assert node.seen() == []


def test_halt_is_opened_by_a_shell_too(node: TwinNode) -> None:
    make(node, "WAL")
    node.seen()
    command = f"exec 9>{node.path()}-halt; echo x >&9; exec 9>&-"
    subprocess.run(["sh", "-c", command], check=True, timeout=20)
    seen: list[object] = []

    def is_over() -> bool:
        seen.extend(each[0] for each in node.seen())
        return len(seen) == 2

    wait_until(is_over, "held and released")
    assert seen == ["hold", "released"]
    assert node.path(f"{node.database}-halt").stat().st_mode == node.path().stat().st_mode
    assert not node.path("none.db-halt").exists()


@pytest.mark.parametrize("exists", [False, True])
def test_a_crash_undoes_what_was_held_of_a_file_that_no_log_knows(nodes: Nodes, exists: bool) -> None:
    node = nodes.add(TwinNode(nodes.folder / "b", "b"))
    node.start()
    node.stop()
    path = node.data / "files" / "app.db"
    if exists:
        run_sql(path, "PRAGMA journal_mode=DELETE; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
    before = path.read_bytes() if exists else None
    node.start()
    # Then the application's own fsync makes the name of its journal durable, too.
    run_sql(node.path("other.db"), "SELECT count(*) FROM sqlite_schema")
    node.answer("hold")
    with Session(node.path()) as session:
        session.send("CREATE TABLE held (x)")
        node.wait_seen("commit")
        assert path.read_bytes() != before
        node.kill()
        session.kill()
    node.start()
    assert (path.read_bytes() if path.exists() else None) == before
