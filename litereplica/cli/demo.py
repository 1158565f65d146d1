"""``litereplica demo``: a primary and a replica on this machine, in a folder of their own.

Knows how to write two configurations, start two nodes, write on one side and read on the other, and clean up whatever
happens. Does not know how replication works: it is a user.
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
from typing import Final

import click

from litereplica.cli.options import Options, command
from litereplica.errors import LitereplicaError, Unavailable

ROWS: Final = 1000
# A node on an idle laptop is ready in half a second; a busy one in a few.
READY_LIMIT_S: Final = 30.0
CAUGHT_UP_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 15.0
POLL_S: Final = 0.05
PAUSE_S: Final = 1.0

CONFIGURATION: Final = """\
node: {{name: {name}}}
mount: {{dir: {folder}/{name}/mount}}
data: {{dir: {folder}/{name}/data}}
http: {{listen: "127.0.0.1:{http}"}}
replication: {{listen: "127.0.0.1:{replication}"}}
lease:
  type: static
  static:
    primary:
      name: primary
      http: "http://127.0.0.1:{primary_http}"
      replication: "127.0.0.1:{primary_replication}"
log: {{level: warning}}
"""


@command("demo", short_help="A primary and a replica on this machine, to try it out.")
@click.option("--once", is_flag=True, help="End by itself: exit 0 only if every row arrived and both files are equal.")
def demo(options: Options, once: bool) -> None:  # noqa: ARG001  every command takes the shared options
    """Start a primary and a replica here, write with SQLite on one side and read on the other."""
    with contextlib.ExitStack() as cleanups:
        folder = Path(tempfile.mkdtemp(prefix="litereplica-demo-"))
        cleanups.callback(_remove, folder)
        signal.signal(signal.SIGTERM, _interrupt)
        ports = _free_ports(4)
        primary = _start(cleanups, folder, "primary", ports)
        replica = _start(cleanups, folder, "replica", ports)
        click.echo(f"a primary at {primary}/mount and a replica at {replica}/mount are running")
        database, copy = primary / "mount" / "demo.db", replica / "mount" / "demo.db"
        _write_rows(database)
        _check_rows(copy)
        _check_files(database, copy)
        if not once:
            _go_on(database, copy, folder, ports)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _remove(folder: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    if f" {folder}/" in mounts:
        # Deleting through a live mount would delete in the data behind it.
        click.echo(f"{folder} is left: something is still mounted in it (umount -l, then remove it)", err=True)
        return
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        found = []
        for _ in range(count):
            each = sockets.enter_context(socket.socket())
            each.bind(("127.0.0.1", 0))
            found.append(int(each.getsockname()[1]))
        return found


def _start(cleanups: contextlib.ExitStack, folder: Path, name: str, ports: list[int]) -> Path:
    """Start one node and wait until it is ready; its folder."""
    home = folder / name
    (home / "mount").mkdir(parents=True)
    first = 0 if name == "primary" else 2
    configuration = folder / f"{name}.yml"
    configuration.write_text(
        CONFIGURATION.format(
            name=name,
            folder=folder,
            http=ports[first],
            replication=ports[first + 1],
            primary_http=ports[0],
            primary_replication=ports[1],
        ),
        encoding="utf-8",
    )
    # A process group of its own: Ctrl-C reaches us alone, and we stop the nodes in order.
    node = subprocess.Popen(
        [sys.executable, "-m", "litereplica", "-c", str(configuration), "run"], start_new_session=True
    )
    cleanups.callback(_stop, node)
    _until(
        lambda: _is_ready(node, ports[first]), READY_LIMIT_S, f"the {name} did not become ready: see its lines above"
    )
    return home


def _is_ready(node: "subprocess.Popen[bytes]", port: int) -> bool:
    from litereplica.cli.client import get  # noqa: PLC0415 - only when it is about to be used

    if node.poll() is not None:
        raise Unavailable("a node of the demo ended at once: see its line above, or ask 'litereplica doctor'")
    try:
        get(f"http://127.0.0.1:{port}", "/readyz")
    except LitereplicaError:
        return False
    return True


def _stop(node: "subprocess.Popen[bytes]") -> None:
    node.terminate()
    try:
        node.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()


def _until(condition: Callable[[], bool], limit_s: float, message: str) -> float:
    """Poll until ``condition`` holds; how long it took, in seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit_s:
            raise Unavailable(message)
        time.sleep(POLL_S)
    return time.monotonic() - start


@contextlib.contextmanager
def _connected(path: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    source = f"file:{path}?mode=ro" if read_only else f"file:{path}"
    connection = sqlite3.connect(source, uri=True, isolation_level=None, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def _write_rows(database: Path) -> None:
    with _connected(database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        start = time.perf_counter()
        for number in range(1, ROWS + 1):
            connection.execute("INSERT INTO message (text) VALUES (?)", (f"row {number}",))
        took = time.perf_counter() - start
    click.echo(f"wrote {ROWS} rows in {ROWS} transactions on the primary, {took / ROWS * 1e6:.0f} us each")


def _rows(copy: Path) -> int:
    if not copy.exists():
        return 0
    try:
        with _connected(copy, read_only=True) as connection:
            return int(connection.execute("SELECT count(*) FROM message").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # the first transactions have not all arrived


def _check_rows(copy: Path) -> None:
    took = _until(
        lambda: _rows(copy) >= ROWS, CAUGHT_UP_LIMIT_S, f"only {_rows(copy)} of {ROWS} rows reached the replica"
    )
    with _connected(copy, read_only=True) as connection:
        texts = [text for (text,) in connection.execute("SELECT text FROM message ORDER BY id")]
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if texts != [f"row {number}" for number in range(1, ROWS + 1)] or sound != "ok":
        raise Unavailable(f"the replica does not hold the rows that were written (integrity_check: {sound})")
    click.echo(f"read all {ROWS} rows on the replica, {took * 1000:.0f} ms after the last commit; integrity_check ok")


def _check_files(database: Path, copy: Path) -> None:
    """Both WALs are folded into their files (here by us, there by the replica itself); then every byte is equal."""
    with _connected(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    _until(
        lambda: database.read_bytes() == copy.read_bytes(), CAUGHT_UP_LIMIT_S, "the files of primary and replica differ"
    )
    click.echo(f"both files are equal, byte for byte ({database.stat().st_size} bytes)")


def _go_on(database: Path, copy: Path, folder: Path, ports: list[int]) -> None:
    click.echo(
        f"""
Try, in another terminal, while this one writes a row every second:
  sqlite3 {database} "INSERT INTO message (text) VALUES ('mine')"
  sqlite3 {copy} "SELECT * FROM message ORDER BY id DESC LIMIT 3"
  sqlite3 {copy} "DELETE FROM message"           # refused: a replica is read-only
  {Path(sys.executable).parent}/litereplica --url http://127.0.0.1:{ports[0]} status
  cat {copy}-pos {copy.parent}/.primary {copy.parent}/.lag
The configurations are {folder}/primary.yml and {folder}/replica.yml. Ctrl-C ends the demo and removes everything.
"""
    )
    with contextlib.suppress(KeyboardInterrupt), _connected(database) as connection:
        while True:
            connection.execute("INSERT INTO message (text) VALUES (datetime('now'))")
            time.sleep(PAUSE_S)
    click.echo("stopping")
