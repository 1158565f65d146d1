"""Applications that try again at once: they neither keep the applier away, nor does what it gave up keep them away."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from litereplica.applier.in_line import MOST_WAITING
from litereplica.applier.protocol import Close, Closed, CommitRefused, HoldRefused, Release, Released
from tests.applier.applications import application
from tests.applier.forwarding import answer_to, forwarded
from tests.applier.support import Child, Primary, assert_equal_files
from tests.applier.test_commit import made
from tests.applier.test_hold import hold

pytestmark = pytest.mark.timeout(60)

# A commit that is refused after a millisecond and begins again: the lock is free for some microseconds.
_RETRYING = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
connection.create_function("commit_refused", 0, lambda: time.sleep(0.001))
print("up", flush=True)
connection.executescript("BEGIN IMMEDIATE; SELECT commit_refused(); ROLLBACK;" * 100_000)
"""


@pytest.fixture
def primary(tmp_path: Path, child: Child) -> Primary:
    """A primary whose first transactions the child has applied."""
    built = Primary(tmp_path)
    child.apply(built.change("CREATE TABLE t (n)"), built.change("INSERT INTO t VALUES (1)"))
    return built


@pytest.fixture
def retrying(child: Child, primary: Primary) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", _RETRYING, str(child.mount / "app.db")], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    yield
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("retrying")
def test_an_application_that_tries_again_at_once_keeps_nothing_away_for_long(child: Child, primary: Primary) -> None:
    took = []
    for _ in range(50):
        started = time.monotonic()
        child.apply(primary.change("INSERT INTO t VALUES (2)"))
        took.append(time.monotonic() - started)
    # On a machine that is busy with something else some of them take long.
    assert sorted(took)[25] < 0.1
    assert sum(took) < 10


def test_waiting_for_an_open_transaction_costs_next_to_nothing(child: Child, primary: Primary) -> None:
    with application(child.mount / "app.db") as app:
        assert app.run("BEGIN IMMEDIATE") == []
        child.send(primary.change("INSERT INTO t VALUES (2)"))
        time.sleep(1)
        spent = processor_s(child.process.pid)
        time.sleep(2)
        assert processor_s(child.process.pid) - spent < 0.1
        assert app.run("ROLLBACK") == []
        child.expect_applied(primary.txid)
    spent = processor_s(child.process.pid)
    time.sleep(2)
    assert processor_s(child.process.pid) - spent < 0.03


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize("way", ["commit", "hold", "close", "release"])
def test_what_was_given_up_takes_no_lock_later(child: Child, tmp_path: Path, way: str) -> None:
    path = made(child, "wal")
    wanted = forwarded(path, "INSERT INTO t (v) VALUES (1)", limit_ms=200 if way == "commit" else 20_000)
    with application(path) as app:
        for _ in range(3):
            assert app.run("BEGIN IMMEDIATE") == []
            if way == "hold":
                assert isinstance(hold(child, limit_ms=200), HoldRefused)
            elif way == "commit":
                refused = answer_to(child, wanted)
                assert isinstance(refused, CommitRefused)
                assert refused.busy
            else:
                child.send(wanted)
                time.sleep(0.05)
                child.send(Release("app.db") if way == "release" else Close("app.db"))
                started = time.monotonic()
                child.expect(Released if way == "release" else Closed)
                assert time.monotonic() - started < 4
            assert app.run("ROLLBACK") == []
            for _ in range(20):
                assert app.run("INSERT INTO t (v) VALUES (1)") == []


def test_more_databases_wait_than_threads(child: Child, tmp_path: Path) -> None:
    primaries = [Primary(tmp_path, f"{number}.db") for number in range(MOST_WAITING + 4)]
    with ExitStack() as stack:
        apps = []
        for each in primaries:
            child.apply(each.change("CREATE TABLE t (n)"))
            app = stack.enter_context(application(child.mount / each.name))
            assert app.run("BEGIN IMMEDIATE") == []
            child.send(each.change("INSERT INTO t VALUES (1)"))
            apps.append(app)
        time.sleep(0.2)
        threads = len(list(Path(f"/proc/{child.process.pid}/task").iterdir()))
        assert threads <= MOST_WAITING + 2
        # The last come first: they have nobody who wakes them.
        for app, each in reversed(list(zip(apps, primaries, strict=True))):
            assert app.run("ROLLBACK") == []
            child.expect_applied(each.txid, each.name)
    for each in primaries:
        assert_equal_files(each, child.mount / each.name)
