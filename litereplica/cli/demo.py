"""``litereplica demo``: a primary and a replica on this machine, in a folder of their own.

Knows how to write two configurations, start two nodes, write on one side and read on the other, and clean up whatever
happens. Does not know how replication works: it is a user. With ``--consul`` it is another story (demo_consul).
"""

import contextlib
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final

import click

from litereplica.cli.demo_nodes import (
    CAUGHT_UP_LIMIT_S,
    DemoNode,
    connected,
    fold,
    free_ports,
    own_folder,
    until,
)
from litereplica.cli.options import Options, command
from litereplica.errors import Unavailable

ROWS: Final = 1000
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
@click.option("--once", is_flag=True, help="End by itself: exit 0 only if everything that is shown held.")
@click.option("--consul", is_flag=True, help="Three nodes and a Consul: the primary dies, and another takes over.")
def demo(options: Options, once: bool, consul: bool) -> None:  # noqa: ARG001  every command takes the shared options
    """Start nodes here, write with SQLite on one side and read on the other."""
    if consul:
        from litereplica.cli.demo_consul import show  # noqa: PLC0415 - only when it is about to be used

        show(once=once)
        return
    with own_folder() as (folder, cleanups):
        ports = free_ports(4)
        primary = _start(cleanups, folder, "primary", ports)
        replica = _start(cleanups, folder, "replica", ports)
        click.echo(f"a primary at {primary.mount} and a replica at {replica.mount} are running")
        database, copy = primary.mount / "demo.db", replica.mount / "demo.db"
        _write_rows(database)
        _check_rows(copy)
        _check_files(database, copy)
        if not once:
            _go_on(database, copy, folder, ports)


def _start(cleanups: contextlib.ExitStack, folder: Path, name: str, ports: list[int]) -> DemoNode:
    """Start one node and wait until it is ready."""
    first = 0 if name == "primary" else 2
    configuration = CONFIGURATION.format(
        name=name,
        folder=folder,
        http=ports[first],
        replication=ports[first + 1],
        primary_http=ports[0],
        primary_replication=ports[1],
    )
    node = DemoNode(folder, name, ports[first], configuration)
    node.start()
    cleanups.callback(node.stop)
    node.wait_ready()
    return node


def _write_rows(database: Path) -> None:
    with connected(database, create=True) as connection:
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
        with connected(copy, read_only=True) as connection:
            return int(connection.execute("SELECT count(*) FROM message").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # the first transactions have not all arrived


def _check_rows(copy: Path) -> None:
    took = until(
        lambda: _rows(copy) >= ROWS, CAUGHT_UP_LIMIT_S, f"only {_rows(copy)} of {ROWS} rows reached the replica"
    )
    with connected(copy, read_only=True) as connection:
        texts = [text for (text,) in connection.execute("SELECT text FROM message ORDER BY id")]
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if texts != [f"row {number}" for number in range(1, ROWS + 1)] or sound != "ok":
        raise Unavailable(f"the replica does not hold the rows that were written (integrity_check: {sound})")
    click.echo(f"read all {ROWS} rows on the replica, {took * 1000:.0f} ms after the last commit; integrity_check ok")


def _check_files(database: Path, copy: Path) -> None:
    """Both WALs are folded into their files (here by us, there by the replica itself); then every byte is equal."""
    fold(database)
    until(
        lambda: database.read_bytes() == copy.read_bytes(), CAUGHT_UP_LIMIT_S, "the files of primary and replica differ"
    )
    click.echo(f"both files are equal, byte for byte ({database.stat().st_size} bytes)")


def _go_on(database: Path, copy: Path, folder: Path, ports: list[int]) -> None:
    hints = f"""
Try, in another terminal, while this one writes a row every second:
  sqlite3 {database} "INSERT INTO message (text) VALUES ('mine')"
  sqlite3 {copy} "SELECT * FROM message ORDER BY id DESC LIMIT 3"
  sqlite3 {copy} "DELETE FROM message"           # refused: a replica is read-only
  {Path(sys.executable).parent}/litereplica --url http://127.0.0.1:{ports[0]} status
  cat {copy}-pos {copy.parent}/.primary {copy.parent}/.lag
The configurations are {folder}/primary.yml and {folder}/replica.yml. Ctrl-C ends the demo and removes everything.
"""
    # From the line that says so on, Ctrl-C is the end.
    with contextlib.suppress(KeyboardInterrupt):
        click.echo(hints)
        with connected(database) as connection:
            while True:
                connection.execute("INSERT INTO message (text) VALUES (datetime('now'))")
                time.sleep(PAUSE_S)
    click.echo("stopping")
