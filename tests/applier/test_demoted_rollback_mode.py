"""A node that was the primary: its applications still use a database in rollback mode when records come for it."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from litereplica.applier.protocol import Applied, Apply, Failed
from tests.applier.applications import Application, application
from tests.applier.modes import AnyPrimary
from tests.applier.support import Child, Primary, rows, until

pytestmark = pytest.mark.timeout(90)

MODES = ("DELETE", "TRUNCATE", "PERSIST")

# Reads without a pause, each time for some milliseconds: somebody has the database open at any instant.
_READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
print("up", flush=True)
while True:
    connection.execute("WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 20000) "
                       "SELECT count(*), (SELECT count(*) FROM t) FROM i").fetchall()
"""


class Old:
    """What the node has from its time as the primary, and the new primary that goes on from there."""

    def __init__(self, folder: Path, child: Child, mode: str, name: str = "app.db") -> None:
        self.primary = AnyPrimary(folder, name, mode=mode)
        self.primary.change("CREATE TABLE t (n)", "INSERT INTO t VALUES (1)")
        self.path = child.mount / name
        self.path.write_bytes(self.primary.path.read_bytes())

    def is_exact(self) -> bool:
        return self.path.read_bytes() == self.primary.path.read_bytes()


@pytest.fixture(params=MODES)
def old(tmp_path: Path, child: Child, request: pytest.FixtureRequest) -> Old:
    return Old(tmp_path, child, request.param)


@pytest.fixture
def each(tmp_path: Path, child: Child) -> list[Old]:
    """One in each mode: what takes the applier seconds to say, it says of all of them at once."""
    return [Old(tmp_path, child, mode, f"{mode}.db") for mode in MODES]


def failures(child: Child, count: int) -> dict[str, Failed]:
    """Wait until the applier has given up so many databases, and applied to none; by database."""
    found: dict[str, Failed] = {}
    while len(found) < count:
        message = child.receive()
        assert not isinstance(message, Applied), message
        if isinstance(message, Failed):
            assert message.database not in found
            found[message.database] = message
    return found


@contextlib.contextmanager
def busy_readers(path: Path, count: int) -> Iterator[None]:
    processes = [
        subprocess.Popen([sys.executable, "-c", _READER, str(path)], stdout=subprocess.PIPE) for _ in range(count)
    ]
    try:
        for each in processes:
            assert each.stdout
            assert each.stdout.readline() == b"up\n"
        yield
        assert [each.poll() for each in processes] == [None] * count, "a reader met an error"
    finally:
        for each in processes:
            each.kill()
            each.wait()
            assert each.stdout
            each.stdout.close()


def test_an_application_in_a_transaction_is_waited_for_and_named(tmp_path: Path, child: Child) -> None:
    statements = {"reads": "SELECT * FROM t", "writes": "INSERT INTO t VALUES (7)"}
    with contextlib.ExitStack() as stack:
        olds: list[tuple[Old, Application, Apply]] = []
        for mode in MODES:
            for what, statement in statements.items():
                old = Old(tmp_path, child, mode, f"{mode}-{what}.db")
                idle = stack.enter_context(application(old.path))
                assert idle.run("SELECT n FROM t") == [(1,)]
                idle.run("BEGIN")
                idle.run(statement)
                olds.append((old, idle, old.primary.change("INSERT INTO t VALUES (2)")))
        child.send(*(span for _, _, span in olds))
        other = Primary(tmp_path, "other.db")
        child.apply(other.change("CREATE TABLE t (n)"))  # it is not stalled
        given_up = failures(child, len(olds))
        for old, idle, span in olds:
            failure = given_up[span.database]
            assert failure.retry
            assert idle.described in failure.reason
            assert not Path(f"{old.path}-wal").exists()
            with application(old.path) as reader:
                assert reader.run("SELECT n FROM t") == [(1,)]  # nobody is kept out meanwhile
                assert idle.run("ROLLBACK") == []
                child.apply(span)
                assert idle.run("SELECT n FROM t") == [(1,), (2,)]
                assert reader.run("SELECT n FROM t") == [(1,), (2,)]
        for old, _, _ in olds:
            until(old.is_exact)


def test_readers_that_come_and_go_do_not_keep_records_out(old: Old, child: Child) -> None:
    with busy_readers(old.path, 3):
        for number in range(2, 20):
            child.apply(old.primary.change(f"INSERT INTO t VALUES ({number})"))
    until(old.is_exact)


def test_an_application_that_is_alone_with_its_database_is_named(each: list[Old], child: Child) -> None:
    spans = [old.primary.change("INSERT INTO t VALUES (2)") for old in each]
    with contextlib.ExitStack() as stack:
        alone = [stack.enter_context(application(old.path)) for old in each]
        for app in alone:
            app.run("PRAGMA locking_mode=EXCLUSIVE")
            assert app.run("SELECT n FROM t") == [(1,)]
        child.send(*spans)
        given_up = failures(child, len(spans))
        for app, span in zip(alone, spans, strict=True):
            assert given_up[span.database].retry
            assert app.described in given_up[span.database].reason
    for old, span in zip(each, spans, strict=True):
        child.apply(span)
        until(old.is_exact)


@pytest.mark.parametrize("spilled", [True, False])
def test_what_a_dead_writer_left_half_done_is_undone_before_records_are_applied(
    old: Old, child: Child, spilled: bool
) -> None:
    before = old.path.read_bytes()
    with application(old.path) as dying:
        dying.run("PRAGMA cache_size=5" if spilled else "PRAGMA cache_size=10000")
        dying.run("BEGIN")
        dying.run(
            "WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 500) "
            "INSERT INTO t SELECT randomblob(900) FROM i"
        )
    journal = Path(f"{old.path}-journal")
    assert journal.exists()
    assert (old.path.read_bytes() != before) == spilled
    child.apply(old.primary.change("INSERT INTO t VALUES (2)"))
    assert rows(old.path, "SELECT n FROM t") == [(1,), (2,)]
    assert rows(old.path, "PRAGMA integrity_check") == [("ok",)]
    until(old.is_exact)
    assert not journal.exists() or not any(journal.read_bytes()[:8])


def test_a_journal_is_not_touched_while_its_writer_lives(each: list[Old], child: Child) -> None:
    spans = [old.primary.change("INSERT INTO t VALUES (2)") for old in each]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(application(old.path)) for old in each]
        for writer in writers:
            writer.run("PRAGMA cache_size=5")
            writer.run("BEGIN")
            writer.run(
                "WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 500) "
                "INSERT INTO t SELECT randomblob(900) FROM i"
            )
        journals = [Path(f"{old.path}-journal").read_bytes() for old in each]
        child.send(*spans)
        failures(child, len(spans))
        assert [Path(f"{old.path}-journal").read_bytes() for old in each] == journals
        for writer, span in zip(writers, spans, strict=True):
            assert writer.run("ROLLBACK") == []
            child.apply(span)
    for old in each:
        until(old.is_exact)
