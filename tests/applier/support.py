"""A primary made of plain SQLite, and the applier's child process as the tests drive it.

Knows how to turn the commits of a real database into records in a segment file. Does not know the store.
"""

import contextlib
import os
import resource
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from litereplica.applier.protocol import (
    Applied,
    Apply,
    Message,
    MessageReader,
    Ready,
    ToChild,
    encode,
)
from litereplica.ltx.encode import RecordEncoder, block_capacity
from litereplica.ltx.format import RecordHeader
from litereplica.sqlite.pages import lock_page
from litereplica.sqlite.shm import BLOCK_BYTES, read_header

ANSWER_TIMEOUT_S = 60.0

_Kind = TypeVar("_Kind")


class Primary:
    """A database in WAL mode whose every commit becomes a record in ``segment``."""

    def __init__(self, folder: Path, name: str = "app.db", *, page_size: int = 4096, encoding: str = "UTF-8") -> None:
        self.name = name
        self.path = folder / "primary" / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.segment = folder / f"{name.replace('/', '%2F')}.ltx"
        self.page_size = page_size
        self.txid = 0
        self._frame = 0
        self._salts = b""
        self.history: dict[int, list[tuple[int, int]]] = {}
        """For each page the transactions that wrote it, with a hash of what they wrote."""
        self._length = 0
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        for setting in (f"page_size={page_size}", f"encoding='{encoding}'", "journal_mode=WAL", "synchronous=OFF"):
            self.connection.execute(f"PRAGMA {setting}").fetchall()
        self.connection.execute("PRAGMA wal_autocheckpoint=0")

    def execute(self, sql: str, *values: Any) -> list[Any]:
        return self.connection.execute(sql, values).fetchall()

    def change(self, sql: str, *values: Any) -> Apply:
        """Run one statement that commits, and log it; the answer is its span."""
        self.connection.execute(sql, values).fetchall()
        (span,) = self.spans()
        return span

    def spans(self) -> list[Apply]:
        """Log every transaction committed since the last call."""
        found = []
        with Path(f"{self.path}-wal").open("rb") as wal:
            salts = wal.read(32)[16:24]
            if salts != self._salts:
                self._salts, self._frame = salts, 0
            wal.seek(32 + self._frame * (24 + self.page_size))
            pages: dict[int, bytes] = {}
            read = 0
            while len(frame := wal.read(24 + self.page_size)) == 24 + self.page_size and frame[8:16] == salts:
                pgno, commit = struct.unpack_from(">II", frame)
                pages[pgno] = frame[24:]
                read += 1
                if commit:
                    kept = {number: page for number, page in pages.items() if number <= commit}
                    found.append(self.log(kept, commit))
                    self._frame += read
                    pages, read = {}, 0
        return found

    def log(self, pages: dict[int, bytes], commit: int, *, compression: str = "none") -> Apply:
        """Append one record to the segment."""
        self.txid += 1
        header = RecordHeader(
            self.name, self.page_size, commit, len(pages), self.txid, self.txid, 1, "a", 0, 0, compression
        )
        encoder = RecordEncoder(header)
        ordered = sorted(pages.items())
        for pgno, page in ordered:
            self.history.setdefault(pgno, []).append((self.txid, hash(page)))
        capacity = block_capacity(self.page_size)
        offset = self._length
        with self.segment.open("ab") as log:
            log.write(encoder.begin())
            for start in range(0, len(ordered), capacity):
                log.write(encoder.block(ordered[start : start + capacity]))
            log.write(encoder.end(0))
            self._length = log.tell()
        return Apply(self.name, str(self.segment), offset, self._length - offset, self.txid, self.txid)

    def fold(self) -> None:
        """Checkpoint everything; the next transaction starts the WAL anew."""
        assert self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0] == 0

    def file_pages(self) -> dict[int, bytes]:
        """Every page of the database, folded."""
        self.fold()
        data = self.path.read_bytes()
        size = self.page_size
        skipped = lock_page(size)
        return {
            number: data[(number - 1) * size : number * size]
            for number in range(1, len(data) // size + 1)
            if number != skipped
        }


def together(spans: list[Apply], *, redo_until: int = 0) -> Apply:
    """Neighbouring spans of one segment as one."""
    first, last = spans[0], spans[-1]
    return Apply(
        first.database,
        first.path,
        first.offset,
        last.offset + last.length - first.offset,
        first.first_txid,
        last.last_txid,
        redo_until,
    )


class Child:
    """The applier's process, spoken to over its socket."""

    def __init__(self, mount: Path, *, descriptors: int | None = None) -> None:
        mount.mkdir(exist_ok=True)
        self.mount = mount
        self._reader = MessageReader()
        self._received: list[Message] = []
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "litereplica.applier", str(theirs.fileno()), str(mount), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            )
            if descriptors is not None:
                resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
        self.expect(Ready)

    def send(self, *messages: ToChild) -> None:
        self.socket.sendall(b"".join(map(encode, messages)))

    def receive(self) -> Message:
        """The next message."""
        while not self._received:
            data = self.socket.recv(65536)
            assert data, "the child ended"
            self._received += self._reader.feed(data)
        return self._received.pop(0)

    def expect(self, kind: type[_Kind]) -> _Kind:
        """The next message of this kind; others are dropped."""
        while not isinstance(message := self.receive(), kind):
            pass
        return message

    def expect_applied(self, txid: int, database: str = "app.db") -> None:
        """Wait until this transaction is reported; nothing may fail before."""
        while True:
            message = self.receive()
            if isinstance(message, Applied):
                if message.database == database and message.txid >= txid:
                    return
            else:
                assert type(message).__name__ in ("Checkpointed", "Ready"), message

    def apply(self, *spans: Apply) -> None:
        """Have spans of one database applied, and wait for it."""
        self.send(*spans)
        self.expect_applied(spans[-1].last_txid, spans[-1].database)

    def pss_kib(self) -> int:
        """Proportional memory of the process."""
        return memory_kib(self.process.pid)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.kill()


def memory_kib(pid: int) -> int:
    """PSS of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError


_CLIENT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
print("up", flush=True)
for line in sys.stdin:
    try:
        print(repr(connection.execute(line).fetchall()), flush=True)
    except sqlite3.Error as error:
        print(repr(str(error)), flush=True)
"""


class Client:
    """An ordinary SQLite application: a process of its own that runs what it is told."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "up"

    def run(self, sql: str) -> Any:
        """Rows, or the error's text."""
        assert self._process.stdin
        self._process.stdin.write(sql.replace("\n", " ") + "\n")
        self._process.stdin.flush()
        return eval(self._read(), {})

    def close(self) -> None:
        with self._process:
            self._process.kill()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def client(path: Path) -> Iterator[Client]:
    """An application that ends with the block."""
    found = Client(path)
    try:
        yield found
    finally:
        found.close()


def rows(path: Path, sql: str) -> list[Any]:
    """What a new reader sees now."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
        return connection.execute(sql).fetchall()


def until(condition: Callable[[], bool]) -> None:
    """Ask again until it is so; AssertionError after ANSWER_TIMEOUT_S."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_equal_files(primary: Primary, replica: Path) -> None:
    """Both files, their WALs folded in, are byte for byte the same and sound."""
    assert rows(replica, "PRAGMA integrity_check") == [("ok",)]
    with contextlib.closing(sqlite3.connect(replica, isolation_level=None, timeout=5)) as connection:
        # Busy while the applier's own checkpoint runs: for that lock SQLite does not wait.
        until(lambda: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0] == 0)
    primary.fold()
    assert primary.path.read_bytes() == replica.read_bytes()


def shown_end(database: Path) -> tuple[int, int, int]:
    """Salts of the WAL and how many of its frames the wal-index shows."""
    header = read_header(memoryview(Path(f"{database}-shm").read_bytes()[:BLOCK_BYTES]))
    assert header is not None
    return header.salt1, header.salt2, header.max_frame
