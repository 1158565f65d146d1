"""What every demo needs: nodes on this machine in a folder of their own, SQLite connections to them, and an end.

Knows processes, ports and files. Does not know what is shown with them.
"""

import contextlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from litereplica.errors import LitereplicaError, Unavailable

# A node on an idle laptop is ready in half a second; a busy one in a few.
READY_LIMIT_S: Final = 30.0
CAUGHT_UP_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 15.0
POLL_S: Final = 0.05
BUSY_S: Final = 10.0


@contextlib.contextmanager
def own_folder() -> Iterator[tuple[Path, contextlib.ExitStack]]:
    """A folder, and what is to be done before it is removed; also when the demo is ended by SIGTERM.

    SIGINT is ours too where a shell has had it ignored (a script that runs us in the background): we say that it works.
    """
    with contextlib.ExitStack() as cleanups:
        # Without links: by this name the kernel's list of mounts has what is mounted in it.
        folder = Path(tempfile.mkdtemp(prefix="litereplica-demo-")).resolve()
        cleanups.callback(_remove, folder)
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        yield folder, cleanups


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _remove(folder: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    if f" {folder}/" in mounts:
        # Deleting through a live mount would delete in the data behind it.
        click.echo(f"{folder} is left: something is still mounted in it (umount -l, then remove it)", err=True)
        return
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as sockets:
        found = []
        for _ in range(count):
            each = sockets.enter_context(socket.socket())
            each.bind(("127.0.0.1", 0))
            found.append(int(each.getsockname()[1]))
        return found


class DemoNode:
    """A node with its configuration at ``folder/NAME.yml``, and its mount and data below ``folder/NAME``."""

    def __init__(self, folder: Path, name: str, port: int, configuration: str) -> None:
        self.name = name
        self.config = folder / f"{name}.yml"
        self.mount = folder / name / "mount"
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.mount.mkdir(parents=True)
        self.config.write_text(configuration, encoding="utf-8")

    def start(self) -> None:
        """Start the process; ``wait_ready`` waits for it."""
        # A process group of its own: Ctrl-C reaches us alone, and we stop the nodes in order.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "litereplica", "-c", str(self.config), "run"], start_new_session=True
        )

    def wait_ready(self) -> None:
        """Return when applications may use it. Raises Unavailable when it ends, or at the limit."""
        until(self._is_ready, READY_LIMIT_S, f"the node {self.name} did not become ready: see its lines above")

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise Unavailable("a node of the demo ended at once: see its line above, or ask 'litereplica doctor'")
        return bool(self.ask("/readyz"))

    def ask(self, path: str) -> dict[str, Any]:
        """What it answers; empty without an answer, or when it says no."""
        from litereplica.cli.client import get  # noqa: PLC0415 - only when it is about to be used

        try:
            return get(self.url, path)
        except LitereplicaError:
            return {}

    def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in order, or else at the limit."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def until(condition: Callable[[], bool], limit_s: float, message: str) -> float:
    """Poll until ``condition`` holds; how long it took, in seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit_s:
            raise Unavailable(message)
        time.sleep(POLL_S)
    return time.monotonic() - start


@contextlib.contextmanager
def connected(path: Path, *, read_only: bool = False, create: bool = False) -> Iterator[sqlite3.Connection]:
    """An ordinary SQLite connection."""
    mode = "ro" if read_only else "rwc" if create else "rw"
    connection = sqlite3.connect(f"file:{path}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_S)
    try:
        yield connection
    finally:
        connection.close()


def fold(database: Path) -> None:
    """Have SQLite copy the WAL into the database file."""
    with connected(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
