"""The applier process: one loop that reads messages and gives each database its turns.

Knows the socket, the order of turns, what ends a wait early (in_line.py) and when to end. Does not know how a
transaction is applied (worker.py) nor when the WAL is folded (checkpoint.py).

The process ends at once, without another call on the mount, when the daemon is gone: its mount is dead then, and
whatever a call on it would answer is no longer of use to anybody. SIGINT and SIGTERM are ignored, because a terminal or
a service manager sends them to the whole group and it is the daemon that decides when its applier stops.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Final

from litereplica.applier import locks
from litereplica.applier.checkpoint import Checkpointer
from litereplica.applier.in_line import Line
from litereplica.applier.protocol import (
    Apply,
    Close,
    Closed,
    Commit,
    Hold,
    Install,
    Lock,
    Look,
    Message,
    MessageReader,
    Ready,
    Release,
    Report,
    Reported,
    Republish,
    Stop,
    ToDaemon,
    Unhold,
    Unlock,
    Warm,
    encode,
)
from litereplica.applier.worker import DatabaseWorker
from litereplica.descriptors import raise_descriptor_limit
from litereplica.errors import Unavailable

_RECEIVE_BYTES: Final = 64 << 10
_PR_SET_PDEATHSIG: Final = 1

OPEN_DATABASES: Final = 1024
"""Databases whose files stay open once they are folded: each takes about 60 KiB, and opening again takes a millisecond.
An application that closes one of the others may be its last user: it folds the WAL once more, and the mount keeps the
-wal. No replica loses anything by it.
"""

_DESCRIPTORS_EACH: Final = 6
_OTHER_DESCRIPTORS: Final = 64
_SPARE_DESCRIPTORS: Final = 32
"""While a lock is kept for another node no more files are opened then: whoever works under it needs one for a moment,
and SQLite's error if it gets none would end the lock."""


class Child:
    """The loop. ``channel``: the socket to the daemon; ``mount``: the mounted directory.

    ``open_databases``: how many to keep open at most once they are folded; ``most_databases``: how many while
    one is held for another node.
    """

    def __init__(self, channel: socket.socket, mount: str, open_databases: int, most_databases: int) -> None:
        self._open_databases = open_databases
        self._most_databases = most_databases
        self._channel = channel
        self._mount = mount
        self._send_lock = threading.Lock()
        self._reader = MessageReader()
        self._workers: dict[str, DatabaseWorker] = {}
        self._ready: dict[DatabaseWorker, None] = {}
        """Databases whose next turn can get further, in the order of their turns."""
        self._waiting: dict[DatabaseWorker, float] = {}
        """Databases that found a lock held, and the monotonic time of their next turn."""
        self._stopping = False
        self._line = Line()
        self._checkpointer = Checkpointer(self._send)

    def run(self) -> None:
        """Serve until told to stop; never returns when the daemon is gone."""
        self._checkpointer.start()
        self._send(Ready(os.getpid()))
        while not (self._stopping and all(worker.idle for worker in (*self._ready, *self._waiting))):
            self._receive(self._patience_s())
            self._take_turns()
        self._checkpointer.fold_all()

    def _patience_s(self) -> float | None:
        """How long to wait for a message: not at all with work at hand, for ever without any."""
        if self._ready:
            return 0.0
        if self._waiting:
            return max(0.0, min(self._waiting.values()) - time.monotonic())
        return None

    def _receive(self, patience_s: float | None) -> None:
        line = self._line
        readable, _, _ = select.select((self._channel.fileno(), line.wakes), (), (), patience_s)
        if line.wakes in readable:
            for name in line.served():
                if (worker := self._workers.get(name)) is not None:
                    self._give_turn(worker, at_once=True)
        if self._channel.fileno() not in readable:
            return
        try:
            data = self._channel.recv(_RECEIVE_BYTES)
        except ConnectionResetError:
            # The daemon ended before it had read all that it was told (unix(7)).
            data = b""
        if not data:
            os._exit(0)
        for message in self._reader.feed(data):
            self._take_message(message)

    def _take_message(self, message: Message) -> None:
        if isinstance(message, Apply | Install | Republish | Release | Lock | Commit | Hold):
            worker = self._workers.get(message.database) or self._new_worker(message.database)
            at_once = isinstance(message, Release | Lock) or not worker.is_busy
            worker.add(message)
            self._give_turn(worker, at_once=at_once)
        elif isinstance(message, Unlock | Unhold):
            if (found := self._workers.get(message.database)) is not None:
                if isinstance(message, Unlock):
                    found.unlock()
                else:
                    found.unhold()
                self._give_turn(found, at_once=True)
        elif isinstance(message, Report):
            # Each turn tells what it has published before it ends.
            if (found := self._workers.get(message.database)) is not None:
                found.look_closely()
            self._send(Reported(*message))
        elif isinstance(message, Look):
            (self._workers.get(message.database) or self._new_worker(message.database)).look(message)
        elif isinstance(message, Close):
            self._close(message)
        elif isinstance(message, Warm):
            _warm(f"{self._mount}/{message.database}-wal", message.length)
        elif isinstance(message, Stop):
            self._stopping = True

    def _give_turn(self, worker: DatabaseWorker, *, at_once: bool) -> None:
        """There is something to do for it; ``at_once``: what it waits for may have ended just now."""
        if at_once:
            self._waiting.pop(worker, None)
        if worker not in self._waiting:
            self._ready[worker] = None

    def _take_turns(self) -> None:
        """One turn for each database that can use one."""
        if self._waiting:
            now = time.monotonic()
            for worker in [worker for worker, at in self._waiting.items() if at <= now]:
                del self._waiting[worker]
                self._ready[worker] = None
        for worker in list(self._ready):
            delay_s = worker.step()
            if delay_s == 0.0:
                continue
            del self._ready[worker]
            if delay_s is not None:
                self._waiting[worker] = time.monotonic() + delay_s

    def _new_worker(self, name: str) -> DatabaseWorker:
        path = f"{self._mount}/{name}"
        checkpointer = self._checkpointer
        worker = DatabaseWorker(
            name, path, self._line, self._send, checkpointer.published, checkpointer.forget, self._make_room
        )
        self._workers[name] = worker
        return worker

    def _make_room(self) -> None:
        """Close the files of databases that are folded and were not used for longest, if there are too many.

        Never of one that is held for another node: there are more than wanted then, as with many that are not folded.
        Raises Unavailable when one is held and there are as many as it is safe to have beside it.
        """
        opened = [worker for worker in self._workers.values() if worker.opened is not None]
        surplus = len(opened) + 1 - self._open_databases
        if surplus <= 0:
            return
        unused = sorted((worker for worker in opened if worker.may_forget_files), key=_last_use)[:surplus]
        for worker in unused:
            worker.forget_files()
        is_full = len(opened) - len(unused) >= self._most_databases
        if is_full and any(worker.is_holding for worker in self._workers.values()):
            raise Unavailable(f"too many databases are in use at once for the limit of open files ({len(opened)})")

    def _close(self, message: Close) -> None:
        worker = self._workers.pop(message.database, None)
        if worker is not None:
            self._ready.pop(worker, None)
            self._waiting.pop(worker, None)
            self._checkpointer.forget(worker)
            worker.close()
        self._send(Closed(*message))

    def _send(self, message: ToDaemon) -> None:
        """From either thread. The daemon reads always: what the socket holds is the bound."""
        data = encode(message)
        try:
            with self._send_lock:
                self._channel.sendall(data)
        except OSError:
            os._exit(0)


WARM_STEP_BYTES = 128 << 10
"""One request to the daemon each: the kernel's default read-ahead."""


def _last_use(worker: DatabaseWorker) -> float:
    return worker.published_at


def _warm(path: str, length: int) -> None:
    """Only on the primary. The close drops no lock: nobody has one on a -wal.

    A file that is gone by now needs no warming: every error is as good as success.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # A page that was only written in parts is in the cache without being whole, and stays so until it is dropped.
        os.posix_fadvise(descriptor, 0, length, os.POSIX_FADV_DONTNEED)
        offset = 0
        while offset < length and (size := len(os.pread(descriptor, WARM_STEP_BYTES, offset))):
            offset += size
    except OSError:
        return
    finally:
        locks.close(descriptor)


def main(arguments: list[str]) -> int:
    """Run the child: ``arguments`` are the socket's descriptor, the mounted directory and the daemon's process id."""
    descriptor, mount, parent = int(arguments[0]), arguments[1], int(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The socket's end is enough unless this process is held in a call on the mount.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 0
    # The usual soft limit of 1,024 descriptors would end at 200 databases.
    most = raise_descriptor_limit()
    open_databases = max(1, min(OPEN_DATABASES, (most - _OTHER_DESCRIPTORS) // _DESCRIPTORS_EACH))
    most_databases = max(1, (most - _SPARE_DESCRIPTORS) // _DESCRIPTORS_EACH)
    # select() takes only low numbers, and the daemon may have thousands of files open.
    channel = socket.socket(fileno=os.dup(descriptor))
    os.close(descriptor)
    channel.setblocking(True)  # noqa: FBT003 (the method's only parameter)
    Child(channel, mount, open_databases, most_databases).run()
    # Closing the connections would checkpoint and remove files one after the other; the end of the process does not.
    sys.stderr.flush()
    os._exit(0)
