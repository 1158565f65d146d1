"""What one client has open, and how far its call has come: ordinary SQLite on the mounts of nodes.

Knows connections, transactions, a node's position and how one waits for it. Does not know any workload, nor what an
error at COMMIT means: whoever reads the history says that.

Every database has the table of ``TABLES``: each transaction that is committed leaves the index of its call, so that
afterwards nobody has to believe an answer.
"""

import contextlib
import errno
import http.client
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.failover.machine import HTTP_PORT
from tests.failover.network import inside

TABLES: Final = """
CREATE TABLE calls (call INTEGER PRIMARY KEY);
"""
BUSY_S: Final = 5.0
"""As long as a node lets a forwarded transaction wait for a lock."""
WAIT_S: Final = 5.0
"""For a TXID. A replica that is well has it in milliseconds."""
WAIT_SLACK_S: Final = 2.0

OPEN: Final = "open"
BEGIN: Final = "begin"
STATEMENT: Final = "statement"
COMMIT: Final = "commit"
DONE: Final = "done"


class Undone(Exception):
    """The call ends without an effect, for a reason of its own: nothing to transfer, another value, not caught up."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node: where its databases are, and the network namespace in which its own HTTP is on 127.0.0.1.

    Without a namespace it is a plain folder, and no node.
    """

    mount: Path
    namespace: str

    def device(self) -> int:
        """Another one for each time that it is mounted. Raises OSError: its daemon is gone."""
        return self.mount.stat().st_dev

    def create(self, database: str) -> None:
        """An empty file; never in the folder below the mount, where the next daemon would find it. Raises OSError."""
        folder = os.open(self.mount, os.O_PATH | os.O_DIRECTORY)
        try:
            if self.namespace and os.fstat(folder).st_dev == self.mount.parent.stat().st_dev:
                raise OSError(errno.ENOTCONN, "the node has no mount now")
            os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o644, dir_fd=folder))
        finally:
            os.close(folder)

    def position(self, database: str) -> tuple[int, str]:
        """(TXID, checksum) that the node gives for a database. Raises OSError."""
        txid, _, checksum = (self.mount / f"{database}-pos").read_text(encoding="ascii").strip().partition("/")
        return int(txid, 16), checksum


class Session:
    """Of one client; one call at a time. ``stage``: which step of the call is under way, or failed.

    ``writes``: whether the call may change something, so that an error at its COMMIT leaves a question.
    ``answered_by``: the node that did it, where that need not be the one that was asked. ``cookie``: of the proxies.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places
        self.stage = OPEN
        self.writes = False
        self.answered_by = ""
        self.cookie = ""
        self._connections: dict[tuple[str, str], sqlite3.Connection] = {}
        self._devices: dict[tuple[str, str], int] = {}

    def connection(self, node: str, database: str) -> sqlite3.Connection:
        """Never makes a file: while a node is down there may be an empty folder instead of its mount.

        Who had a database open in a mount whose daemon was killed may go on to read what the kernel has cached of it:
        it has to be opened anew in the mount that is there now.
        """
        self.stage = OPEN
        if self._devices.get((node, database)) != self.places[node].device():
            self.close(node, database)
        found = self._connections.get((node, database))
        if found is None:
            found = self._connections[node, database] = self._open(node, database)
        return found

    def make(self, node: str, database: str) -> sqlite3.Connection:
        """A new database."""
        self.stage = OPEN
        self.close(node, database)
        self.places[node].create(database)
        made = self._connections[node, database] = self._open(node, database)
        return made

    def _open(self, node: str, database: str) -> sqlite3.Connection:
        path = self.places[node].mount / database
        self._devices[node, database] = self.places[node].device()
        return sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_S)

    def begin(self) -> None:
        """A new call."""
        self.stage = OPEN
        self.writes = False
        self.answered_by = ""

    # -- transactions ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, node: str, database: str, call: int, *, deferred: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction that leaves the call's index; acknowledged when this ends."""
        with self._transaction(node, database, "BEGIN" if deferred else "BEGIN IMMEDIATE") as connection:
            yield connection
            connection.execute("INSERT INTO calls VALUES (?)", (call,))
            self.writes = True

    @contextlib.contextmanager
    def confirmed(self, node: str, database: str, call: int) -> Iterator[sqlite3.Connection]:
        """A transaction that reads, and is committed as one that writes.

        A node whose lease is over goes on to answer readers, from what it has. Only a COMMIT says that what was read
        was current, on whatever node; and the row that it leaves says whether that history was lost.
        """
        with self._transaction(node, database, "BEGIN IMMEDIATE") as connection:
            connection.execute("INSERT INTO calls VALUES (?)", (call,))
            yield connection

    @contextlib.contextmanager
    def _transaction(self, node: str, database: str, begin: str) -> Iterator[sqlite3.Connection]:
        connection = self.connection(node, database)
        with self.on(connection, begin):
            yield connection

    @contextlib.contextmanager
    def on(self, connection: sqlite3.Connection, begin: str) -> Iterator[None]:
        """A transaction on a connection; ``begin``: the statement that begins it."""
        self.stage = BEGIN
        connection.execute(begin)
        self.stage = STATEMENT
        yield
        self.stage = COMMIT
        connection.execute("COMMIT")
        self.stage = DONE

    @contextlib.contextmanager
    def reading(self, node: str, database: str) -> Iterator[sqlite3.Connection]:
        """One snapshot; nothing says how old it is."""
        connection = self.connection(node, database)
        self.stage = BEGIN
        connection.execute("BEGIN")
        self.stage = STATEMENT
        yield connection
        connection.execute("ROLLBACK")
        self.stage = DONE

    def at_once(self, node: str, database: str, statement: str) -> list[tuple[object, ...]]:
        """A statement that is a transaction of its own; its rows."""
        connection = self.connection(node, database)
        self.stage, self.writes = COMMIT, True
        rows = connection.execute(statement).fetchall()
        self.stage = DONE
        return rows

    @contextlib.contextmanager
    def alone(self, node: str, database: str) -> Iterator[None]:
        """Under the lock that every node has to ask for. Raises OSError when it is not to be had."""
        self.stage = OPEN
        with (self.places[node].mount / f"{database}-halt").open("r+b", buffering=0):
            yield

    # -- positions -------------------------------------------------------------------------------------------------

    def wait(self, node: str, database: str, txid: int, checksum: str = "", *, limit_s: float = WAIT_S) -> None:
        """Return when the node has applied a TXID. Raises Undone when it has not in time, or does not answer.

        ``checksum``: of the history that is meant; a node that does not know yet that its own is lost may have that
        TXID too.
        """
        self.stage = STATEMENT
        path = f"/wait?db={database}&txid={txid:016x}&timeout={limit_s:g}s{f'&checksum={checksum}' if checksum else ''}"
        connection = http.client.HTTPConnection("127.0.0.1", HTTP_PORT, timeout=limit_s + WAIT_SLACK_S)
        try:
            with inside(self.places[node].namespace):
                connection.connect()
            connection.request("GET", path)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Undone(f"wait: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise Undone(f"wait: {answer.status} {_error_of(said)}")

    # -- the end of a call -----------------------------------------------------------------------------------------

    def after_error(self, *, keep: bool) -> None:
        """As applications do: roll back and go on (``keep``), or open everything anew next time."""
        for (node, database), connection in list(self._connections.items()):
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                self.close(node, database)
        if not keep:
            for node, database in list(self._connections):
                self.close(node, database)

    def close(self, node: str, database: str) -> None:
        connection = self._connections.pop((node, database), None)
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _error_of(said: bytes) -> str:
    """The code of an answer that is an error."""
    try:
        return str(json.loads(said).get("error", ""))
    except (ValueError, AttributeError):
        return ""
