"""Transactions that another node's application has made, as the primary gets them, and an applier that meets its end.

Knows how to make the record of what statements change in a copy of a database, and how to start an applier in which a
chosen call to the operating system fails or is its last. Does not know the network.
"""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from itertools import count
from pathlib import Path

from litereplica.applier.protocol import Commit, CommitRefused, Committed, MessageReader, Ready
from litereplica.ltx.encode import RecordEncoder, block_capacity
from litereplica.ltx.format import RecordHeader
from litereplica.sqlite.pages import lock_page, parse_database_header
from tests.applier.support import ANSWER_TIMEOUT_S, Child

LIMIT_MS = 3000

_numbers = count(1)


def forwarded(
    path: Path, *statements: str, limit_ms: int = LIMIT_MS, name: str | None = None, with_page_one: bool = True
) -> Commit:
    """What the statements, one transaction, make of the database at ``path``, which nobody changes meanwhile."""
    folder = Path(tempfile.mkdtemp(dir=path.parent.parent))
    copy = folder / "copy.db"
    with contextlib.ExitStack() as stack:
        if Path(f"{path}-wal").exists():
            # A reader: the applier may fold the WAL between the two copies, but not begin it again.
            reader = stack.enter_context(closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)))
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        for suffix in ("", "-wal"):
            if Path(f"{path}{suffix}").exists():
                shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    before = _pages(copy) if copy.exists() and copy.stat().st_size else {}
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        for each in statements:
            connection.execute(each).fetchall()
    after = _pages(copy)
    changed = {pgno: page for pgno, page in after.items() if before.get(pgno) != page}
    if not with_page_one:
        changed.pop(1, None)
    number = next(_numbers)
    file = folder / "record"
    name = path.name if name is None else name
    file.write_bytes(_record(name, changed, max(after)))
    return Commit(name, number, str(file), file.stat().st_size, limit_ms)


def _pages(path: Path) -> dict[int, bytes]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    data = path.read_bytes()
    size = parse_database_header(data).page_size
    return {
        pgno: data[(pgno - 1) * size : pgno * size]
        for pgno in range(1, len(data) // size + 1)
        if pgno != lock_page(size)
    }


def _record(name: str, pages: dict[int, bytes], commit: int) -> bytes:
    size = len(next(iter(pages.values())))
    encoder = RecordEncoder(RecordHeader(name, size, commit, len(pages), 7, 7, 1, "b", 0, 0, "none"))
    ordered = sorted(pages.items())
    step = block_capacity(size)
    blocks = (encoder.block(ordered[start : start + step]) for start in range(0, len(ordered), step))
    return b"".join((encoder.begin(), *blocks, encoder.end(0)))


def answer_to(child: Child, commit: Commit) -> Committed | CommitRefused:
    """Have it committed; the answer."""
    child.send(commit)
    return answer(child)


def answer(child: Child) -> Committed | CommitRefused:
    while not isinstance(message := child.receive(), Committed | CommitRefused):
        assert type(message).__name__ in ("Checkpointed", "Invalidated"), message
    return message


def commit(child: Child, path: Path, *statements: str) -> None:
    """Make a transaction elsewhere, and commit it here."""
    wanted = forwarded(path, *statements)
    assert answer_to(child, wanted) == Committed(path.name, wanted.number)


_TROUBLED = """
import errno, os, signal, sys
call, path_end, at, what = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
real = getattr(os, call)
names, calls = {}, 0
real_open = os.open
def opening(path, *args, **kwargs):
    descriptor = real_open(path, *args, **kwargs)
    names[descriptor] = os.fspath(path)
    return descriptor
os.open = opening
def troubled(target, *args):
    global calls
    name = names.get(target, "") if isinstance(target, int) else os.fspath(target)
    if name.endswith(path_end):
        calls += 1
        if calls == at:
            if what == "fail":
                raise OSError(errno.EIO, "no")
            if what == "torn":
                real(target, bytes(args[0])[: len(args[0]) // 2], *args[1:])
            if what == "after":
                real(target, *args)
            os.kill(os.getpid(), signal.SIGKILL)
    return real(target, *args)
setattr(os, call, troubled)
from litereplica.applier.child import main
sys.exit(main(sys.argv[5:]))
"""


class TroubledChild(Child):
    """An applier whose ``at``-th ``call`` on a file whose name ends in ``path_end`` goes wrong.

    ``what``: "fail" (EIO), or the process is killed "before" it, in the middle of it ("torn"), or "after" it.
    """

    def __init__(self, mount: Path, call: str, path_end: str, at: int, what: str) -> None:
        mount.mkdir(exist_ok=True)
        self.mount = mount
        self._reader = MessageReader()
        self._received = []
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(ANSWER_TIMEOUT_S)
        trouble: Sequence[str] = (call, path_end, str(at), what)
        with theirs:
            arguments = (*trouble, str(theirs.fileno()), str(mount), str(os.getpid()))
            self.process = subprocess.Popen(
                [sys.executable, "-c", _TROUBLED, *arguments], pass_fds=(theirs.fileno(),), cwd=Path.cwd()
            )
        self.expect(Ready)

    def commit_or_die(self, wanted: Commit) -> bool:
        """Have it committed; False if the process died of it."""
        self.send(wanted)
        while data := self.socket.recv(65536):
            self._received += self._reader.feed(data)
            if self._received and isinstance(self._received[-1], Committed):
                return True
        assert self.process.wait() == -signal.SIGKILL
        return False
