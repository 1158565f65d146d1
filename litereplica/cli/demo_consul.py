"""``litereplica demo --consul``: three nodes and a Consul on this machine; the primary dies, and another takes over.

Knows how to start a Consul agent for a demo, what an application does when its node dies, and how to tell the story.
Does not know how leases or replication work: it is a user.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from litereplica.cli.demo_nodes import (
    CAUGHT_UP_LIMIT_S,
    READY_LIMIT_S,
    STOP_LIMIT_S,
    DemoNode,
    connected,
    fold,
    free_ports,
    own_folder,
    until,
)
from litereplica.errors import Refused, Unavailable

NAMES: Final = ("a", "b", "c")
ROWS: Final = 500
"""Before the accident, and again after it."""
TTL_S: Final = 3.0
TAKEOVER_LIMIT_S: Final = 5.0
"""What is promised; a demo that took longer has failed."""
WRITABLE_LIMIT_S: Final = 30.0
RETRY_S: Final = 0.01
PAUSE_S: Final = 1.0
LAST_ROWS: Final = "'SELECT * FROM message ORDER BY id DESC LIMIT 3'"

CONFIGURATION: Final = """\
node: {{name: {name}}}
mount: {{dir: {folder}/{name}/mount}}
data: {{dir: {folder}/{name}/data}}
http: {{listen: "127.0.0.1:{http}", advertise: "http://127.0.0.1:{http}"}}
replication: {{listen: "127.0.0.1:{replication}", advertise: "127.0.0.1:{replication}"}}
lease:
  type: consul
  consul: {{urls: ["{consul}"], key: demo/primary, ttl: {ttl:g}s}}
log: {{level: error}}
"""


def show(*, once: bool) -> None:
    """Tell the story; raises Unavailable where it does not go as promised."""
    program = _find_consul()
    with own_folder() as (folder, cleanups):
        consul = _start_consul(cleanups, program, folder)
        story = _Story(_start_nodes(cleanups, folder, consul))
        story.begin()
        story.lose_primary()
        story.bring_back()
        story.hand_off()
        story.compare()
        if not once:
            story.go_on(folder)


def _find_consul() -> str:
    named = os.environ.get("LITEREPLICA_CONSUL") or shutil.which("consul")
    if not named:
        raise Refused(
            "no consul found: run scripts/demo --consul, which fetches one, or put Consul on the PATH "
            "(https://developer.hashicorp.com/consul/install), or set LITEREPLICA_CONSUL to it"
        )
    return named


def _start_consul(cleanups: contextlib.ExitStack, program: str, folder: Path) -> str:
    """An agent in memory, for this demo alone; its URL."""
    http, server, serf = free_ports(3)
    output = (folder / "consul.log").open("wb")
    cleanups.callback(output.close)
    ports = [f"-http-port={http}", f"-server-port={server}", f"-serf-lan-port={serf}", "-dns-port=-1"]
    # What -dev switches on beyond that needs ports of its own.
    others = ["-hcl=ports { grpc = -1 serf_wan = -1 }", "-hcl=disable_update_check = true"]
    arguments = [program, "agent", "-dev", "-bind=127.0.0.1", "-log-level=warn", *ports, *others]
    process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)
    cleanups.callback(_stop_consul, process)
    url = f"http://127.0.0.1:{http}"
    until(lambda: _has_leader(url), READY_LIMIT_S, f"Consul did not start: see {folder}/consul.log")
    click.echo(f"a Consul of its own runs at {url}: it says who is primary, and for how long ({TTL_S:g} s)")
    return url


def _has_leader(url: str) -> bool:
    import httpx  # noqa: PLC0415 - slow to import

    try:
        return len(httpx.get(f"{url}/v1/status/leader", trust_env=False, timeout=2).text) > len('""')
    except httpx.HTTPError:
        return False


def _stop_consul(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start_nodes(cleanups: contextlib.ExitStack, folder: Path, consul: str) -> list[DemoNode]:
    nodes = []
    for name in NAMES:
        http, replication = free_ports(2)
        configuration = CONFIGURATION.format(
            name=name, folder=folder, http=http, replication=replication, consul=consul, ttl=TTL_S
        )
        node = DemoNode(folder, name, http, configuration)
        node.start()
        cleanups.callback(node.stop)
        nodes.append(node)
    for node in nodes:
        node.wait_ready()
    return nodes


class _Story:
    """The application and what happens to it: rows are written wherever they are taken, and every one is remembered."""

    def __init__(self, nodes: list[DemoNode]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._primary = nodes[0]
        self._tried = 0
        self._written: set[str] = set()

    # -- chapters --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A primary is there, and everybody has what is written on it."""
        until(self._find_primary, READY_LIMIT_S, "no node became primary")
        status = self._primary.ask("/status")
        click.echo(f"three nodes run; {self._primary.name} got the lease and is the primary (epoch {status['epoch']})")
        with connected(self._database(self._primary), create=True) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        start = time.perf_counter()
        self._write(ROWS)
        took = time.perf_counter() - start
        click.echo(f"wrote {ROWS} rows in {ROWS} transactions on {self._primary.name}, {took / ROWS * 1e6:.0f} us each")
        self._await_everywhere()

    def lose_primary(self) -> None:
        """Kill -9, while the application writes."""
        old = self._primary
        assert old.process is not None
        click.secho(f"\nnow the primary dies: kill -9 of {old.name}, process {old.process.pid}", bold=True)
        with contextlib.suppress(sqlite3.Error), connected(self._database(old)) as connection:
            self._insert(connection)
            old.kill()
            began = time.monotonic()
            self._insert(connection)
            raise Unavailable(f"a commit on {old.name} was acknowledged after its process was killed")
        new = self._write_anywhere(began, without=old)
        took = time.monotonic() - began
        click.echo(f"{new.name} is the primary now, and took a write {took:.2f} s after the kill")
        if took > TAKEOVER_LIMIT_S:
            raise Unavailable(f"that took longer than the {TAKEOVER_LIMIT_S:g} s that are promised")
        self._primary = new
        self._write(ROWS)
        click.echo(f"wrote {ROWS} rows more, there")

    def bring_back(self) -> None:
        """The old primary starts again, and follows."""
        old = next(
            node for node in self._nodes.values() if node.process is not None and node.process.poll() is not None
        )
        click.secho(f"\nnow {old.name} comes back", bold=True)
        began = time.monotonic()
        old.start()
        old.wait_ready()
        self._await_everywhere()
        took = time.monotonic() - began
        role = old.ask("/status").get("role")
        if role != "replica":
            raise Unavailable(f"{old.name} came back as {role}, and {self._primary.name} is the primary")
        click.echo(f"{old.name} follows {self._primary.name}, and has everything {took:.1f} s after its start")
        kept = self._diverged(old)
        for entry in kept:
            click.echo(f"{old.name} had {entry['records']} transactions that nobody else had; they are kept:")
            click.echo(f"  litereplica -c {old.config} diverged export {entry['id']} FILE")
        missing = self._written - self._rows(self._primary)
        if missing and not kept:
            raise Unavailable(f"{len(missing)} rows that were acknowledged are nowhere")

    def hand_off(self) -> None:
        """A planned change, as before an upgrade."""
        old = self._primary
        new = next(node for node in self._nodes.values() if node is not old)
        click.secho(f"\nnow a planned handoff, as before an upgrade: {old.name} to {new.name}", bold=True)
        command = [sys.executable, "-m", "litereplica", "--url", old.url, "failover", "--to", new.name, "--yes"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        pause_s = self._write_through(old, new)
        output, _ = process.communicate(timeout=WRITABLE_LIMIT_S)
        if process.returncode:
            raise Unavailable(f"the handoff failed: {output.strip()}")
        self._primary = new
        click.echo(f"{new.name} is the primary; an application that writes all the time waited {pause_s:.2f} s at most")

    def compare(self) -> None:
        """In the end all have the same bytes."""
        self._await_everywhere()
        database = self._database(self._primary)
        fold(database)
        for node in self._nodes.values():
            copy = self._database(node)
            until(lambda: database.read_bytes() == copy.read_bytes(), CAUGHT_UP_LIMIT_S, f"{copy} differs")  # noqa: B023  called at once
            with connected(copy, read_only=True) as connection:
                sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if sound != "ok":
                raise Unavailable(f"integrity_check on {node.name}: {sound}")
        size = database.stat().st_size
        click.echo(f"\nall three files are equal, byte for byte ({size} bytes); integrity_check ok; primaries so far:")
        for reign in self._primary.ask("/history").get("history", []):
            click.echo(f"  epoch {reign['epoch']}: {reign['node']}, {reign['reason']}")

    def go_on(self, folder: Path) -> None:
        """For a person who wants to break something."""
        ours = f"{Path(sys.executable).parent}/litereplica"
        click.echo("\nTry, in another terminal, while this one writes a row every second wherever it is taken:")
        for node in self._nodes.values():
            assert node.process is not None
            click.echo(f"  kill -9 {node.process.pid}    # {node.name}; back: {ours} -c {node.config} run")
        click.echo(f"  {ours} --url {self._primary.url} status --watch")
        click.echo(f"  {ours} --url {self._primary.url} failover")
        click.echo(f"  sqlite3 {self._database(self._primary)} {LAST_ROWS}")
        click.echo(f"Everything is in {folder}. Ctrl-C ends the demo and removes it.\n")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                before, began = self._primary, time.monotonic()
                self._primary = self._write_anywhere(began)
                if self._primary is not before:
                    click.echo(f"{self._primary.name} takes writes now, {time.monotonic() - began:.2f} s later")
                time.sleep(PAUSE_S)
        click.echo("stopping")

    # -- the application -------------------------------------------------------------------------------------------

    @staticmethod
    def _database(node: DemoNode) -> Path:
        return node.mount / "demo.db"

    def _insert(self, connection: sqlite3.Connection) -> None:
        # A text is used once: ids that one node has given and lost are given again by another.
        self._tried += 1
        text = f"row {self._tried}"
        connection.execute("INSERT INTO message (text) VALUES (?)", (text,))
        self._written.add(text)

    def _write(self, count: int) -> None:
        with connected(self._database(self._primary)) as connection:
            for _ in range(count):
                self._insert(connection)

    def _write_anywhere(self, began: float, without: DemoNode | None = None) -> DemoNode:
        """One row, on the first node that takes it; which that was."""
        nodes = [self._primary, *(each for each in self._nodes.values() if each is not self._primary)]
        while time.monotonic() - began < WRITABLE_LIMIT_S:
            for node in nodes:
                with (
                    contextlib.suppress(sqlite3.Error),
                    connected(self._database(node)) as connection,
                ):
                    if node is not without:
                        self._insert(connection)
                        return node
            time.sleep(RETRY_S)
        raise Unavailable(f"no node took a write for {WRITABLE_LIMIT_S:g} s")

    def _write_through(self, old: DemoNode, new: DemoNode) -> float:
        """Write until ``new`` has taken some rows; the longest pause between two."""
        longest, last, taken = 0.0, time.monotonic(), 0
        at = old
        while taken < ROWS // 10:
            for _ in self._written_at(at):
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                taken += at is new
                if taken >= ROWS // 10:
                    break
            if time.monotonic() - last > WRITABLE_LIMIT_S:
                raise Unavailable(f"no node took a write for {WRITABLE_LIMIT_S:g} s")
            at = new if at is old else old
            time.sleep(RETRY_S)
        return longest

    def _written_at(self, node: DemoNode) -> Iterator[None]:
        """Rows, one after the other, until the node refuses one."""
        with contextlib.suppress(sqlite3.Error), connected(self._database(node)) as connection:
            while True:
                self._insert(connection)
                yield

    # -- looking ---------------------------------------------------------------------------------------------------

    def _find_primary(self) -> bool:
        for node in self._nodes.values():
            if node.ask("/status").get("role") == "primary":
                self._primary = node
                return True
        return False

    def _rows(self, node: DemoNode) -> set[str]:
        try:
            with connected(self._database(node), read_only=True) as connection:
                return {text for (text,) in connection.execute("SELECT text FROM message")}
        except sqlite3.Error:
            return set()  # the first transactions have not all arrived

    def _await_everywhere(self) -> None:
        """Return when readers of every node see what is on the primary."""
        wanted = self._rows(self._primary)
        names = [name for name in self._nodes if name != self._primary.name]
        took = until(
            lambda: all(self._rows(self._nodes[name]) == wanted for name in names),
            CAUGHT_UP_LIMIT_S,
            f"not all rows of {self._primary.name} are on {' and '.join(names)}",
        )
        click.echo(f"read all {len(wanted)} rows on {' and '.join(names)} too ({took * 1000:.0f} ms later)")

    def _diverged(self, node: DemoNode) -> list[dict[str, Any]]:
        import json  # noqa: PLC0415 - only here

        command = [sys.executable, "-m", "litereplica", "-c", str(node.config), "--json", "diverged", "list"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=READY_LIMIT_S, check=False)
        if done.returncode:
            raise Unavailable(f"what {node.name} has kept cannot be listed: {done.stderr.strip()}")
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found
