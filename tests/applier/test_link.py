"""The daemon's end: the child is started, restarted and stopped, and a death is never visible to a reader."""

import contextlib
import errno
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litereplica.applier import link as link_module
from litereplica.applier.protocol import (
    Applied,
    Apply,
    Checkpointed,
    CommitRefused,
    Committed,
    Held,
    HoldRefused,
    Locked,
    LockRefused,
    Released,
    Reported,
)
from litereplica.errors import Unavailable
from tests.applier.forwarding import forwarded
from tests.applier.link_node import Node
from tests.applier.support import Primary, assert_equal_files, client, memory_kib, rows, shown_end

# Asks without a pause for what holds in every state that the primary ever had.
_WATCHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
seen = 0
print("up", flush=True)
while True:
    try:
        total, number = connection.execute("SELECT sum(balance), max(number) FROM account").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            continue
        raise
    assert total == 0, total
    assert number >= seen, (number, seen)
    seen = number
"""

_TRANSFER = "UPDATE account SET number = ?, balance = balance + CASE id WHEN ? THEN ? ELSE ? END WHERE id IN (?, ?)"


def watching(replica: Path) -> "subprocess.Popen[bytes]":
    """A reader that goes on until it sees what it must not."""
    watcher = subprocess.Popen([sys.executable, "-c", _WATCHER, str(replica)], stdout=subprocess.PIPE)
    assert watcher.stdout
    with watcher.stdout as output:
        assert output.readline() == b"up\n"
    return watcher


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    async with trio.open_nursery() as nursery:
        await nursery.start(node.link.run)
        try:
            yield node
        finally:
            with trio.CancelScope(shield=True):
                await node.link.stop(10)
    assert node.link.pid is None


async def test_records_are_applied_and_folded_at_the_stop(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    async with running(Node(tmp_path)) as node:
        node.add(primary.change("CREATE TABLE t (n)"))
        for number in range(100):
            node.add(primary.change("INSERT INTO t VALUES (?)", number))
        await node.wait_applied(101)
        assert node.reports == 101  # one for each span, however many made one transaction
        assert rows(tmp_path / "mount/app.db", "SELECT count(*) FROM t") == [(100,)]
    assert node.checkpointed[-1] == (101, True)
    assert node.failures == []
    assert node.restarts == 0
    assert_equal_files(primary, tmp_path / "mount/app.db")


@pytest.mark.parametrize("seed", range(2))
async def test_a_child_killed_at_any_moment_shows_no_reader_a_mixed_state(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    primary = Primary(tmp_path)
    replica = tmp_path / "mount/app.db"
    primary.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance, number, padding)")
    primary.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) "
        "INSERT INTO account SELECT i, 0, 0, zeroblob(3000) FROM n"
    )
    async with running(Node(tmp_path)) as node:
        for span in primary.spans():
            node.add(span)
        await node.wait_applied(2)
        watcher = watching(replica)
        number = 0
        for _ in range(5):
            for _ in range(chance.randrange(20, 200)):
                number += 1
                one, other = chance.sample(range(1, 41), 2)
                amount = chance.randrange(100)
                values = (number, one, amount, -amount, one, other)
                node.add(primary.change(_TRANSFER, *values))
                if not number % 8:
                    await trio.sleep(chance.random() * 0.002)
            restarts = node.restarts
            if node.link.pid is not None:
                os.kill(node.link.pid, signal.SIGKILL)
                with trio.fail_after(30):
                    while node.restarts == restarts:
                        await trio.sleep(0.01)
        await node.wait_applied(primary.txid)
        assert watcher.poll() is None, "the watcher saw what it must not"
        watcher.kill()
        watcher.wait()
        assert node.restarts >= 4
    assert node.failures == []
    assert_equal_files(primary, replica)


async def test_after_a_death_all_that_was_sent_is_one_transaction(tmp_path: Path) -> None:
    """The commit frame of the dead may be in the file: what follows must not show a part of it."""
    primary = Primary(tmp_path)
    async with running(Node(tmp_path)) as node:
        node.add(primary.change("CREATE TABLE t (n)"))
        await node.wait_applied(1)
        assert node.link.pid is not None
        os.kill(node.link.pid, signal.SIGSTOP)
        for _ in range(6):  # together too long for one commit, if it were not a redo
            node.add(primary.change("INSERT INTO t VALUES (randomblob(400000))"))
        os.kill(node.link.pid, signal.SIGKILL)
        with client(tmp_path / "mount/app.db") as reader:
            counts = set()
            while node.applied < 7:
                counts.add(reader.run("SELECT count(*) FROM t")[0][0])
                await trio.sleep(0.001)
            assert counts <= {0, 6}
        node.add(primary.change("INSERT INTO t VALUES (6)"))
        await node.wait_applied(8)
    assert_equal_files(primary, tmp_path / "mount/app.db")


async def test_a_failure_is_reported_and_a_resend_heals_it(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    async with running(Node(tmp_path)) as node:
        node.add(primary.change("CREATE TABLE t (n)"))
        await node.wait_applied(1)
        away = primary.segment.rename(tmp_path / "away")
        segment, primary.segment = primary.segment, away
        span = primary.change("INSERT INTO t VALUES (1)")
        node.add(span._replace(path=str(segment)))
        with trio.fail_after(10):
            while not node.failures:
                await node.changed.wait()
        assert node.failures[0][0] == 2
        assert node.failures[0][2]
        away.rename(segment)
        node.resend()
        await node.wait_applied(2)
    assert_equal_files(primary, tmp_path / "mount/app.db")


@pytest.mark.timeout(60)
async def test_a_change_of_role_and_back_goes_through_the_link(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    path = tmp_path / "mount/app.db"
    async with running(Node(tmp_path)) as node:
        node.add(primary.change("CREATE TABLE t (n)"))
        await node.wait_applied(1)
        node.link.release("app.db")
        released = await node.answer()
        assert isinstance(released, Released)
        assert released.frames > 0
        with client(path) as app:
            assert app.run("INSERT INTO t VALUES (1)") == []
            node.link.lock("app.db", 1)
            assert await node.answer() == Locked("app.db")
            assert "locked" in app.run("INSERT INTO t VALUES (2)")
            node.link.unlock("app.db")
            while "locked" in str(app.run("BEGIN IMMEDIATE")):
                await trio.sleep(0.001)
            node.link.lock("app.db", 0.1)
            refused = await node.answer()
            assert isinstance(refused, LockRefused)
            assert "process" in refused.holder
            app.run("ROLLBACK")
            node.link.republish("app.db", released.salt1, released.salt2, released.frames)
            primary.change("INSERT INTO t VALUES (1)")  # as the application did here
            span = primary.change("INSERT INTO t VALUES (3)")
            node.link.apply(span.database, Path(span.path), span.offset, span.length, 3, 3)
            await node.wait_applied(3)
            assert app.run("SELECT n FROM t") == [(1,), (3,)]
        assert node.failures == []
        assert_equal_files(primary, path)


@pytest.mark.timeout(60)
async def test_a_lock_is_gone_with_the_child_that_held_it(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    async with running(Node(tmp_path)) as node:
        node.add(primary.change("CREATE TABLE t (n)"))
        await node.wait_applied(1)
        node.link.lock("app.db", 1)
        assert await node.answer() == Locked("app.db")
        assert node.link.pid is not None
        with client(tmp_path / "mount/app.db") as app:
            assert "locked" in app.run("BEGIN IMMEDIATE")
            os.kill(node.link.pid, signal.SIGKILL)
            with trio.fail_after(30):
                while node.restarts == 0:
                    await node.changed.wait()
            assert app.run("BEGIN IMMEDIATE") == []
            assert app.run("ROLLBACK") == []
        node.link.lock("app.db", 1)
        assert await node.answer() == Locked("app.db")


async def test_signals_to_the_group_do_not_end_the_child(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    async with running(Node(tmp_path)) as node:
        assert node.link.pid is not None
        os.kill(node.link.pid, signal.SIGINT)
        os.kill(node.link.pid, signal.SIGTERM)
        node.add(primary.change("CREATE TABLE t (n)"))
        await node.wait_applied(1)
        assert node.restarts == 0


async def test_a_child_that_does_not_end_is_killed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.link.run)
        assert node.link.pid is not None
        os.kill(node.link.pid, signal.SIGSTOP)
        with trio.fail_after(10):
            await node.link.stop(0.2)
    assert node.link.pid is None


async def test_cancelling_the_task_leaves_no_process(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.link.run)
        pid = node.link.pid
        assert pid is not None
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_sender_is_never_blocked_by_a_child_that_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path)
    async with running(node):
        assert node.link.pid is not None
        os.kill(node.link.pid, signal.SIGSTOP)
        for _ in range(20_000):
            node.link.warm("none.db", 1)
        monkeypatch.setattr(link_module, "OUTBOX_LIMIT_BYTES", 100)
        with pytest.raises(Unavailable):
            node.link.warm("none.db", 1)
        os.kill(node.link.pid, signal.SIGCONT)
        primary = Primary(tmp_path)
        monkeypatch.undo()
        node.add(primary.change("CREATE TABLE t (n)"))
        await node.wait_applied(1)


async def test_an_answer_to_an_earlier_release_or_close_is_not_taken_for_that_to_a_later_one(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    node = Node(tmp_path)
    async with running(node):
        for number in range(3):
            node.add(primary.change(f"CREATE TABLE t{number} (n)"))
        await node.wait_applied(3)
        assert node.link.pid is not None
        os.kill(node.link.pid, signal.SIGSTOP)
        # As when a promotion has waited for too long, and the next one begins.
        node.link.release("app.db")
        node.add(primary.change("CREATE TABLE t3 (n)"))
        node.link.release("app.db")
        node.link.report("app.db", 1)
        os.kill(node.link.pid, signal.SIGCONT)
        answers = [await node.answer(), await node.answer()]
        (released,) = [each for each in answers if isinstance(each, Released)]
        assert released[1:4] == shown_end(tmp_path / "mount" / "app.db")
        assert node.applied == 4
        os.kill(node.link.pid, signal.SIGSTOP)
        for _ in range(3):
            node.link.close_database("app.db")
        node.link.report("app.db", 2)
        os.kill(node.link.pid, signal.SIGCONT)
        assert await node.answer() == Reported("app.db", 2)
        assert node.closed == 1
        node.link.close_database("app.db")
        node.link.report("app.db", 3)
        assert await node.answer() == Reported("app.db", 3)
        assert node.closed == 2


async def test_what_gives_something_back_is_sent_however_much_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path)
    path = tmp_path / "mount" / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (n)")
    async with running(node):
        assert node.link.pid is not None
        node.link.hold("app.db", 1, 1.0)
        assert await node.answer() == Held("app.db", 1)
        os.kill(node.link.pid, signal.SIGSTOP)
        for _ in range(20_000):
            node.link.warm("none.db", 1)
        monkeypatch.setattr(link_module, "OUTBOX_LIMIT_BYTES", 100)
        with pytest.raises(Unavailable):
            node.link.hold("app.db", 2, 1.0)
        node.link.unhold("app.db")
        node.link.unlock("app.db")
        node.link.republish("app.db", 1, 2, 0)
        node.link.release("app.db")
        monkeypatch.undo()
        os.kill(node.link.pid, signal.SIGCONT)
        assert isinstance(await node.answer(), Released)
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection, connection:
            connection.execute("INSERT INTO t (n) VALUES (1)")


async def test_a_first_child_that_cannot_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ExceptionGroup) as raised:
        async with trio.open_nursery() as nursery:
            await nursery.start(Node(tmp_path).link.run)
    assert raised.group_contains(Unavailable, match="cannot be started")


def test_a_child_ends_with_its_daemon(tmp_path: Path) -> None:
    """Killed outright, the daemon says nothing to anybody."""
    program = """
import sys, trio
from pathlib import Path
from tests.applier.link_node import Node
async def main():
    node = Node(Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(node.link.run)
        print(node.link.pid, flush=True)
trio.run(main)
"""
    daemon = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert daemon.stdout
    pid = int(daemon.stdout.readline())
    pidfd = os.pidfd_open(pid)
    assert memory_kib(pid) > 0
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    trio.run(_readable, pidfd)
    os.close(pidfd)


async def _readable(descriptor: int) -> None:
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(descriptor)


@pytest.mark.parametrize("in_memory", [True, False])
async def test_commits_holds_and_reports_are_answered_by_number(tmp_path: Path, in_memory: bool) -> None:
    async with running(Node(tmp_path)) as node:
        path = tmp_path / "mount/app.db"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE t (n)")
        wanted = forwarded(path, "INSERT INTO t VALUES (1)")
        file = Path(wanted.path)
        record = file.read_bytes() if in_memory else file  # noqa: ASYNC240  a few pages of the plain disk
        node.link.hold("app.db", 4, 1)
        assert await node.answer() == Held("app.db", 4)
        node.link.commit("app.db", 5, record, wanted.length, 1)
        assert await node.answer() == Committed("app.db", 5)
        node.link.unhold("app.db")
        node.link.report("app.db", 6)
        assert await node.answer() == Reported("app.db", 6)
        assert rows(path, "SELECT n FROM t") == [(1,)]
        with client(path) as app:
            assert app.run("BEGIN IMMEDIATE") == []
            node.link.commit("app.db", 7, Path(wanted.path), wanted.length, 0.1)
            refused = await node.answer()
            assert isinstance(refused, CommitRefused)
            assert (refused.number, refused.busy) == (7, True)
            node.link.hold("app.db", 8, 0.1)
            refusal = await node.answer()
            assert isinstance(refusal, HoldRefused)
            assert refusal.number == 8


def test_a_checkpoint_of_what_an_install_has_replaced_is_not_told(tmp_path: Path) -> None:
    """The checkpoint thread may say so late: the node would take the old history's TXID for one of the new."""
    node = Node(tmp_path)
    node.spans.append(Apply("app.db", "", 0, 1, 1, 5))
    tell = node.link._dispatch
    tell(Applied("app.db", 5, history=1))
    tell(Checkpointed("app.db", 5, truncated=False, history=1))
    assert node.checkpointed == [(5, False)]
    node.link.install("app.db", tmp_path / "content", 4096, 1, 3)
    tell(Checkpointed("app.db", 5, truncated=False, history=1))
    tell(Applied("app.db", 3, history=2))
    tell(Checkpointed("app.db", 5, truncated=False, history=1))
    assert node.checkpointed == [(5, False)]
    tell(Checkpointed("app.db", 3, truncated=True, history=2))
    assert node.checkpointed == [(5, False), (3, True)]
    node.link.close_database("app.db")
    tell(Checkpointed("app.db", 3, truncated=True, history=2))
    assert len(node.checkpointed) == 2


@pytest.mark.parametrize(("module", "name"), [(socket, "socketpair"), (os, "pidfd_open")])
async def test_a_child_that_cannot_be_made_for_want_of_a_descriptor_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    primary = Primary(tmp_path)
    refused = 0

    def refuse(*_: object) -> None:
        nonlocal refused
        refused += 1
        if refused == 2:
            monkeypatch.undo()
        raise OSError(errno.EMFILE, "Too many open files")

    async with running(Node(tmp_path)) as node:
        node.add(primary.change("CREATE TABLE t (n)"))
        await node.wait_applied(1)
        assert node.link.pid is not None
        monkeypatch.setattr(module, name, refuse)
        os.kill(node.link.pid, signal.SIGKILL)
        with trio.fail_after(30):
            while not node.restarts:
                await trio.sleep(0.01)
        node.add(primary.change("INSERT INTO t VALUES (1)"))
        await node.wait_applied(2)
    assert refused == 2
