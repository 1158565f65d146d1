"""Real nodes: processes of ``litereplica run`` with real mounts, always taken down.

Knows configurations, start, stop, kill and what must be gone afterwards. What applications do on the mounts is
tests.support.sql.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.support.forge import Forge
from tests.support.mounts import force_unmount, is_mounted, mounts_below, processes_of_group, take_away
from tests.support.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
"""Where Consul's data lies: whatever else writes to the disk does not delay an election."""
READY_LIMIT_S: Final = 30.0
# The node gives its application 30 s, its applier 5 s and replicas 2 s; no test's application needs that long.
STOP_LIMIT_S: Final = 20.0
# Below the ports that the kernel gives to outgoing connections (32768 …), so that a port stays free while a node is
# down.
_PORTS: Final = (20300, 32000)
# Not the seeded one: two runs at once must not take the same ports.
_RANDOM: Final = random.SystemRandom()


class Defaults:
    """Of every node that says nothing else."""

    on_replica = "refuse"
    forge: Forge | None = None
    """Where nodes come from that are programs of Python; else they are started as everybody does."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that stay ours in practice."""
    found: list[int] = []
    while len(found) < count:
        port = _RANDOM.randint(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def configuration(
    *,
    name: str,
    point: Path,
    files: Path,
    http_port: int,
    replication_port: int,
    primary: tuple[str, int, int] | None = None,
    **sections: dict[str, Any],
) -> dict[str, Any]:
    """The document of a configuration file (YAML takes JSON).

    ``primary`` is (name, HTTP port, replication port) for lease type static, None for standalone. ``sections`` are laid
    over the result, key by key: ``replication={"timeout": "2s", "heartbeat": "500ms"}``.
    """
    document: dict[str, Any] = {
        "node": {"name": name},
        "mount": {"dir": str(point)},
        "data": {"dir": str(files)},
        "http": {"listen": f"127.0.0.1:{http_port}"},
        "replication": {"listen": f"127.0.0.1:{replication_port}"},
        "lease": {"type": "standalone"},
        "writes": {"on_replica": Defaults.on_replica},
    }
    if primary is not None:
        its_name, its_http, its_replication = primary
        at = {
            "name": its_name,
            "http": f"http://127.0.0.1:{its_http}",
            "replication": f"127.0.0.1:{its_replication}",
        }
        document["lease"] = {"type": "static", "static": {"primary": at}}
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    return document


class Node:
    """One node. Its folder has ``config.yml``, ``mount``, ``data`` and ``log``."""

    applier_module = "litereplica.applier"
    """What its applier runs, by which its process is known."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        ports: tuple[int, int] | None = None,
        primary: tuple[str, int, int] | None = None,
        data: Path | None = None,
        **sections: dict[str, Any],
    ) -> None:
        self.name = name
        self.folder = folder
        self.mount = folder / "mount"
        self.data = data or folder / "data"
        self.config = folder / "config.yml"
        self.log_file = folder / "log"
        self.http_port, self.replication_port = ports or free_ports(2)
        self.mount.mkdir(parents=True)
        self.log_file.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self._groups: list[int] = []
        self._primary = primary
        self.configure(**sections)

    def configure(self, **sections: dict[str, Any]) -> None:
        """Write the configuration anew; the next start reads it."""
        document = configuration(
            name=self.name,
            point=self.mount,
            files=self.data,
            http_port=self.http_port,
            replication_port=self.replication_port,
            primary=self._primary,
            **sections,
        )
        self.config.write_text(json.dumps(document, indent=1), encoding="utf-8")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def path(self, database: str = "app.db") -> Path:
        """A database (or any file) in the mount."""
        return self.mount / database

    # -- start and stop --------------------------------------------------------------------------------------------

    def start(self, *command: str, wait: bool = True, prefix: Sequence[str] = (), **environment: str) -> "Node":
        """Start the process, with a supervised application if given, and wait until it is ready."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        arguments = [*prefix, *self.program(), *(("--", *command) if command else ())]
        ours = {name: value for name, value in os.environ.items() if not name.startswith("LITEREPLICA")}
        theirs = ours | {"PYTHONPATH": str(ROOT)} | environment
        with self.log_file.open("ab") as log:
            # What Python reads at its start is not for a fork.
            forge = None if any(name.startswith(("PYTHON", "LD_")) for name in environment) else Defaults.forge
            forged = forge and forge.start(arguments, theirs, self.folder, log.fileno())
            self.process = forged or subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=theirs,
                start_new_session=True,
            )
        self._groups.append(self.process.pid)
        if wait:
            self.wait_ready()
        return self

    def program(self) -> list[str]:
        """The command line of the daemon."""
        return [sys.executable, "-m", "litereplica", "-c", str(self.config), "run"]

    def wait_ready(self, limit_s: float = READY_LIMIT_S) -> None:
        """Return when /readyz says 200. AssertionError with the log when the process ends, or at the limit."""
        process = self._running()
        end = time.monotonic() + limit_s
        # Who answers may be somebody else's node that got the port first; the mount is ours.
        while self.get("/readyz")[0] != 200 or not is_mounted(self.mount):
            assert process.poll() is None, f"{self.name} ended with {process.returncode}:\n{self.log}"
            assert time.monotonic() < end, f"{self.name} is not ready after {limit_s:g} s:\n{self.log}"
            time.sleep(0.02)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """SIGTERM, and a clean end: exit code 0, nothing mounted, no child left."""
        assert self.terminate(limit_s) == 0, self.log
        self.assert_gone()

    def assert_gone(self) -> None:
        """After a clean end nothing is mounted, and no child is left."""
        assert not is_mounted(self.mount), f"{self.name} left its mount behind"
        wait_until(lambda: not self.children(), f"the children of {self.name} end")

    def terminate(self, limit_s: float = STOP_LIMIT_S) -> int:
        """SIGTERM, and wait; the exit code."""
        process = self._running()
        process.terminate()
        return self.wait_ended(limit_s)

    def wait_ended(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Wait for the end; the exit code."""
        assert self.process is not None
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end within {limit_s:g} s:\n{self.log}") from None

    def kill(self) -> None:
        """kill -9 the daemon alone; its mount stays behind, dead."""
        process = self._running()
        process.kill()
        process.wait(STOP_LIMIT_S)

    def signal(self, number: int) -> None:
        """Send a signal to the daemon alone."""
        self._running().send_signal(number)

    @property
    def pid(self) -> int:
        return self._running().pid

    def children(self) -> list[int]:
        """Processes of every start so far that still live, without the daemon."""
        ours = self.process.pid if self.process is not None else 0
        return [each for group in self._groups for each in processes_of_group(group) if each != ours]

    def applier(self) -> int:
        """Process id of the applier."""
        for pid in self.children():
            with contextlib.suppress(OSError):
                if self.applier_module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise AssertionError(f"{self.name} has no applier")

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self.process is not None, f"{self.name} was never started"
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.log}"
        return self.process

    # -- what it says ----------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """Everything that it has written on standard error and output, over all starts."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def log_lines(self, event: str) -> list[str]:
        """The lines of one event."""
        return [line for line in self.log.splitlines() if f" {event} " in f"{line} "]

    def get(self, path: str, limit_s: float = 10.0) -> tuple[int, dict[str, Any]]:
        """(status code, JSON document) of an HTTP request; (0, {}) without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=limit_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            found = json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            return 0, {}
        else:
            return answer.status, found
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """GET /status. AssertionError without an answer."""
        code, found = self.get("/status")
        assert code == 200, f"{self.name} does not answer /status:\n{self.log}"
        return found

    def position(self, database: str = "app.db") -> str:
        """``TXID/checksum`` of what is logged here; zeros when there is no such database."""
        for each in self.status()["databases"]:
            if each["name"] == database:
                return f"{each['txid']}/{each['checksum']}"
        return f"{0:016x}/{0:016x}"

    def wait_for(self, database: str, txid: str, limit_s: float = READY_LIMIT_S) -> None:
        """Return when an ordinary reader here sees this TXID (or a whole position: then the history is checked)."""
        number, _, checksum = txid.partition("/")
        extra = f"&checksum={checksum}" if checksum else ""

        def reached() -> bool:
            code, found = self.get(f"/wait?db={database}&txid={number}{extra}&timeout=5s", 15)
            assert code not in (400, 409), found
            return code == 200

        wait_until(reached, f"{self.name} applies {txid} of {database}", limit_s)

    # -- taking it down --------------------------------------------------------------------------------------------

    def tear_down(self) -> list[str]:
        """End everything, however; what should not have been there."""
        problems = []
        process = self.process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                problems.append(f"{self.name} did not end after SIGTERM")
                process.kill()
                process.wait(STOP_LIMIT_S)
            else:
                problems += [f"{self.name} left {point} mounted" for point, _ in mounts_below(self.mount)]
        # After a kill -9 a dead mount is what one expects.
        force_unmount(self.folder)
        end = time.monotonic() + 5
        while (left := self.children()) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            problems.append(f"{self.name} left process {pid} behind")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return problems


NodeT = TypeVar("NodeT", bound=Node)


class Nodes:
    """Makes nodes below one folder of its own, and takes them down. Use the fixture ``nodes``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="litereplica-test-"))
        self._made: list[Node] = []

    def standalone(self, name: str = "a", **sections: Any) -> Node:
        """A node alone, started and ready."""
        return self.make(name, **sections).start()

    def primary(self, name: str = "a", **sections: Any) -> Node:
        """The static primary, started and ready."""
        return self.make_primary(name, **sections).start()

    def replica(self, primary: Node, name: str = "b", **sections: Any) -> Node:
        """A replica of ``primary``, started and ready (that is, caught up once)."""
        return self.make_replica(primary, name, **sections).start()

    def make(self, name: str = "a", **sections: Any) -> Node:
        """A standalone node that is not started. ``sections`` are those of ``configuration``; ``data=`` is a path."""
        return self._add(Node(self.folder / name, name, **sections))

    def make_primary(self, name: str = "a", **sections: Any) -> Node:
        """A static primary that is not started."""
        first, second = free_ports(2)
        node = Node(self.folder / name, name, ports=(first, second), primary=(name, first, second), **sections)
        return self._add(node)

    def make_replica(self, primary: Node, name: str = "b", *, port: int | None = None, **sections: Any) -> Node:
        """``port`` stands in for the primary's replication port (a proxy's, or a wrong one)."""
        at = (primary.name, primary.http_port, port or primary.replication_port)
        return self._add(Node(self.folder / name, name, primary=at, **sections))

    def add(self, node: NodeT) -> NodeT:
        """Take down a node of another kind too."""
        self._made.append(node)
        return node

    def _add(self, node: Node) -> Node:
        self._made.append(node)
        return node

    def print_logs(self) -> None:
        """For a test that failed."""
        for node in self._made:
            sys.stdout.write(f"---- log of {node.name} ----\n{node.log}")

    def tear_down(self) -> list[str]:
        """Take everything down, replicas first; what should not have been there."""
        problems = [problem for node in reversed(self._made) for problem in node.tear_down()]
        take_away(self.folder)
        if self.folder.exists():
            problems.append(f"{self.folder} is still there")
        return problems
