"""An applier that is killed at any moment of such applies: no reader ever sees a torn state."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litereplica.applier.protocol import Apply
from tests.applier.link_node import Node
from tests.applier.modes import LIBRARIES, AnyPrimary, header_mode
from tests.applier.support import Child, rows, until

# Asks without a pause for what holds in every state that the primary ever had.
_WATCHER = """
import sys
uri = "file:" + sys.argv[1] + "?mode=ro"
if sys.argv[2] == "apsw":
    import apsw
    Error = (apsw.BusyError, apsw.LockedError)
    def connect():
        connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        connection.set_busy_timeout(5000)
        return connection
else:
    import sqlite3
    Error = sqlite3.OperationalError
    def connect():
        return sqlite3.connect(uri, isolation_level=None, timeout=5, uri=True)
connection = connect()
seen = turn = 0
print("up", flush=True)
while True:
    turn += 1
    if turn % 5 == 0:
        connection.close()
        connection = connect()
    try:
        total, number, padding = connection.execute(
            "SELECT sum(balance), max(number), count(DISTINCT padding) FROM account"
        ).fetchone()
        if turn % 50 == 0:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except Error as error:
        if "locked" in str(error) or "busy" in str(error).lower():
            continue
        raise
    assert (total, padding) == (0, 1), (total, padding)
    assert number >= seen, (number, seen)
    seen = number
"""


def watching(replica: Path, library: str) -> "subprocess.Popen[bytes]":
    """A reader that goes on until it sees what it must not."""
    watcher = subprocess.Popen([sys.executable, "-c", _WATCHER, str(replica), library], stdout=subprocess.PIPE)
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


def wal_is_there(replica: Path) -> bool:
    return Path(f"{replica}-wal").stat().st_size > 0


def transfer(number: int, chance: random.Random) -> tuple[str, ...]:
    one, other = chance.sample(range(1, 41), 2)
    amount = chance.randrange(100)
    # Every row changes, so that a state made of two would show.
    return (
        "BEGIN",
        f"UPDATE account SET number = {number}, padding = zeroblob(1000 + {number})",
        f"UPDATE account SET balance = balance + {amount} WHERE id = {one}",
        f"UPDATE account SET balance = balance - {amount} WHERE id = {other}",
        "COMMIT",
    )


START = (
    "CREATE TABLE account (id INTEGER PRIMARY KEY, balance, number, padding)",
    "INSERT INTO account WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 40) "  # noqa: ISC004
    "SELECT i, 0, 0, zeroblob(1000) FROM n",
)


class Changes:
    """Random transactions, among them switches of the mode and of the page size."""

    def __init__(self, primary: AnyPrimary, chance: random.Random) -> None:
        self.primary = primary
        self.chance = chance
        self.mode = "DELETE"
        self.number = 0

    def next(self) -> list[Apply]:
        primary, chance = self.primary, self.chance
        self.number += 1
        action = chance.randrange(12)
        spans = []
        if action == 0:
            self.mode = chance.choice(("DELETE", "WAL", "TRUNCATE", "PERSIST"))
            primary.set_mode(self.mode)
        elif action == 1 and self.mode != "WAL":
            spans.append(primary.resize(chance.choice((512, 1024, 4096, 65536))))
        spans.append(primary.change(*transfer(self.number, chance)))
        return spans


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(2))
def test_deaths_within_milliseconds_of_the_work_show_no_reader_a_mixed_state(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    changes = Changes(primary := AnyPrimary(tmp_path), chance)
    replica = tmp_path / "mount/app.db"
    with Child(tmp_path / "mount") as first:
        first.apply(primary.change(*START))
        watchers = [watching(replica, library) for library in LIBRARIES]
    spans: list[Apply] = []
    for _ in range(int(os.environ.get("LITEREPLICA_KILLS", "8"))):
        handed = primary.txid if spans else 0
        for _ in range(chance.randrange(1, 12)):
            spans += changes.next()
        with Child(tmp_path / "mount") as child:
            child.send(*(span._replace(redo_until=handed) for span in spans))
            time.sleep(chance.random() * chance.choice((0.01, 0.03, 0.1, 0.5)))
            child.kill()
            # What it could still say is known; the rest is in doubt.
        if chance.random() < 0.3:
            with Child(tmp_path / "mount") as child:
                child.send(*(span._replace(redo_until=primary.txid) for span in spans))
                child.expect_applied(primary.txid)
                spans = []
                time.sleep(chance.random() * 1.5)  # it is folding
                child.kill()
    with Child(tmp_path / "mount") as child:
        child.send(*(span._replace(redo_until=primary.txid) for span in spans), *changes.next())
        child.expect_applied(primary.txid)
        assert rows(replica, "SELECT max(number) FROM account") == [(changes.number,)]
        for watcher in watchers:
            assert watcher.poll() is None, "the watcher saw what it must not"
            watcher.kill()
            watcher.wait()
        until(lambda: replica.read_bytes() == primary.path.read_bytes())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(2))
async def test_a_child_killed_at_any_moment_shows_no_reader_a_mixed_state(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    changes = Changes(primary := AnyPrimary(tmp_path), chance)
    replica = tmp_path / "mount/app.db"
    async with running(Node(tmp_path)) as node:
        node.add(primary.change(*START))
        await node.wait_applied(1)
        watchers = [watching(replica, library) for library in LIBRARIES]
        for _ in range(4):
            for _ in range(chance.randrange(10, 60)):
                for span in changes.next():
                    node.add(span)
                if not changes.number % 4:
                    await trio.sleep(chance.random() * 0.02)
            restarts = node.restarts
            if node.link.pid is not None:
                os.kill(node.link.pid, signal.SIGKILL)
                with trio.fail_after(30):
                    while node.restarts == restarts:
                        await trio.sleep(0.01)
        # A new child folds only what it is given, and the last one may have reported all before it died.
        for span in changes.next():
            node.add(span)
        await node.wait_applied(primary.txid)
        assert rows(replica, "SELECT max(number) FROM account") == [(changes.number,)]
        assert rows(replica, "PRAGMA integrity_check") == [("ok",)]
        for watcher in watchers:
            assert watcher.poll() is None, "the watcher saw what it must not"
            watcher.kill()
            watcher.wait()
        assert node.restarts >= 3
        until(lambda: replica.read_bytes() == primary.path.read_bytes())
        assert header_mode(replica) == ("wal" if changes.mode == "WAL" else "rollback")
        assert changes.mode == "WAL" or wal_is_there(replica)
    assert node.failures == []
