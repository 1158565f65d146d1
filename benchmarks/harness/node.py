"""litereplica nodes as real processes: configuration file, start, ready, stop.

Knows the configuration and HTTP as docs describe them to users. Knows nothing of litereplica's code: a node is measured
from outside, as a peer would be.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.processes import REPOSITORY, daemon, wait_until
from benchmarks.harness.relay import free_port

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
ASK_LIMIT_S = 2.0
LAST_WORDS_LINES = 3


@dataclass(frozen=True, slots=True)
class Node:
    """Where one node lives; nothing runs until `running`."""

    name: str
    home: Path
    http_port: int
    replication_port: int
    primary: "Node | None" = None
    # Where the primary's replication is reached, if not at the port that it listens on.
    primary_port: int | None = None
    # None: the retention that a node has by default.
    log_size: str | None = None

    @property
    def mount(self) -> Path:
        """Where applications find its databases."""
        return self.home / "mount"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.home / "log"

    def command(self) -> list[str]:
        """What starts it."""
        return [sys.executable, "-m", "litereplica", "-c", str(self.home / "litereplica.yml"), "run"]

    def prepare(self, *, alone: bool) -> None:
        """Makes the folders and the configuration: standalone, or static with itself or `primary` as the primary."""
        self.mount.mkdir(parents=True)
        primary = self.primary or self
        lease: dict[str, object] = {"type": "standalone"}
        if not alone:
            static = {
                "name": primary.name,
                "http": f"http://127.0.0.1:{primary.http_port}",
                "replication": f"127.0.0.1:{self.primary_port or primary.replication_port}",
            }
            lease = {"type": "static", "static": {"primary": static}}
        data: dict[str, object] = {"dir": str(self.home / "data")}
        if self.log_size:
            data["retention"] = {"size": self.log_size}
        configuration = {
            "node": {"name": self.name},
            "mount": {"dir": str(self.mount)},
            "data": data,
            "http": {"listen": f"127.0.0.1:{self.http_port}"},
            "replication": {"listen": f"127.0.0.1:{self.replication_port}"},
            "lease": lease,
        }
        # Every JSON document is a YAML document.
        (self.home / "litereplica.yml").write_text(json.dumps(configuration, indent=1) + "\n")

    def ready(self) -> bool:
        """Whether /readyz says 200; a node that does not answer is not ready."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=ASK_LIMIT_S)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @contextlib.contextmanager
    def running(self) -> Iterator["Running"]:
        """The node, ready; stopped by SIGTERM at the end. BenchmarkError: it did not start, or did not end."""
        begin = time.monotonic()
        with daemon(self.command(), self.log, STOP_LIMIT_S) as process:
            try:
                wait_until(self.ready, READY_LIMIT_S, f"node {self.name} becomes ready", process)
            except BenchmarkError as error:
                raise BenchmarkError(f"{error}: {self.last_words()}") from error
            yield Running(self, process, time.monotonic() - begin)

    def last_words(self) -> str:
        """The end of its log, for the report of its failure."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-LAST_WORDS_LINES:]) or "it said nothing"


@dataclass(frozen=True, slots=True)
class Running:
    """A node that is ready; `start_s` is the time from its exec to the first 200 of /readyz."""

    node: Node
    process: subprocess.Popen[bytes]
    start_s: float


def new_node(
    home: Path,
    name: str,
    *,
    alone: bool,
    primary: Node | None = None,
    primary_port: int | None = None,
    log_size: str | None = None,
) -> Node:
    """A node in a folder of its own under `home`, on free ports, configured and not started."""
    node = Node(name, home / f"node-{name}", free_port(), free_port(), primary, primary_port, log_size)
    node.prepare(alone=alone)
    return node


def version() -> str:
    """What ``litereplica version`` says, or why it does not."""
    command = [sys.executable, "-m", "litereplica", "version"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=READY_LIMIT_S, check=False)
    lines = (answer.stdout if answer.returncode == 0 else answer.stderr).strip().splitlines()
    return lines[0 if answer.returncode == 0 else -1] if lines else f"exit code {answer.returncode}"
