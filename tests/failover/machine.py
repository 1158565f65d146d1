"""A node on a machine of its own: its network is a namespace, its mount and its files are where everybody sees them.

Knows how such a node is configured, asked, stopped and killed. Does not know the field that it is part of.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.failover.network import Network
from tests.support.nodes import ROOT, Node
from tests.support.waiting import wait_until

HTTP_PORT: Final = 20202
REPLICATION_PORT: Final = 20203
KEY: Final = "field/primary"
"""Of the lease in Consul."""
ASK_LIMIT_S: Final = 1.0
"""A node that is well answers in milliseconds; one that is stopped never does."""
COMMAND_LIMIT_S: Final = 30.0
GONE_LIMIT_S: Final = 10.0


class Machine(Node):
    """``urls``: of Consul. ``options``: of lease.consul, such as ttl and outage."""

    def __init__(
        self,
        network: Network,
        folder: Path,
        name: str,
        urls: Sequence[str],
        *,
        on_replica: str,
        data: Path | None = None,
        **options: Any,
    ) -> None:
        self._network = network
        self._on_replica = on_replica
        self._urls = list(urls)
        self._options = options
        super().__init__(folder, name, ports=(HTTP_PORT, REPLICATION_PORT), data=data)

    def configure(self, **sections: dict[str, Any]) -> None:
        """Write the configuration anew; ``consul`` are options of lease.consul, the rest as everywhere."""
        self._options |= sections.pop("consul", {})
        address = self._network.addresses[self.name]
        own: dict[str, dict[str, Any]] = {
            "http": {"listen": f"0.0.0.0:{HTTP_PORT}", "advertise": f"http://{address}:{HTTP_PORT}"},
            "replication": {
                "listen": f"0.0.0.0:{REPLICATION_PORT}",
                "advertise": f"{address}:{REPLICATION_PORT}",
                "heartbeat": "500ms",
                "timeout": "2s",
            },
            "lease": {"type": "consul", "consul": {"urls": self._urls, "key": KEY, **self._options}},
            "mount": {"guard": True},
            "writes": {"on_replica": self._on_replica},
        }
        super().configure(**sections | {name: values | sections.get(name, {}) for name, values in own.items()})

    def start(self, *command: str, wait: bool = True, prefix: Sequence[str] = (), **environment: str) -> "Machine":
        super().start(*command, wait=wait, prefix=[*prefix, *self._network.entry(self.name)], **environment)
        return self

    # -- asking ----------------------------------------------------------------------------------------------------

    def get(self, path: str, limit_s: float = ASK_LIMIT_S) -> tuple[int, dict[str, Any]]:
        """As of every node, from the machine itself: it works whatever the network does."""
        return self.ask("GET", path, limit_s=limit_s)

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, limit_s: float = ASK_LIMIT_S
    ) -> tuple[int, dict[str, Any]]:
        """(status code, JSON document); (0, {}) without an answer."""
        try:
            connection = self._network.connect(self.name, HTTP_PORT, limit_s)
        except OSError:
            return 0, {}
        with contextlib.closing(connection):
            try:
                content = None if body is None else json.dumps(body)
                connection.request(method, path, content, {"content-type": "application/json"})
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError):
                return 0, {}

    @property
    def role(self) -> str:
        """What it says of itself; empty without an answer."""
        return str(self.get("/status")[1].get("role", ""))

    def command(self, *arguments: str) -> str:
        """What a command of litereplica says on standard output, run on this machine. AssertionError when it fails."""
        done = subprocess.run(
            [*self._network.entry(self.name), sys.executable, "-m", "litereplica", "-c", self.config, *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.returncode == 0, f"{arguments} on {self.name}: exit {done.returncode}: {done.stderr}"
        return done.stdout

    # -- accidents -------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill -9 the daemon alone, and wait until whoever it leaves behind has ended too."""
        super().kill()
        self._await_empty()

    def strike(self) -> float:
        """Kill -9 the daemon alone, and wait for nothing; the instant."""
        os.kill(self.pid, signal.SIGKILL)
        return time.monotonic()

    def perish(self) -> float:
        """Everything that runs on this machine is gone at once, and its cable too; the instant."""
        self._network.cut(self.name)
        at = time.monotonic()
        for pid in self._network.processes(self.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.reap()
        return at

    def reap(self) -> None:
        """After ``strike``: wait until the process and its children are gone."""
        assert self.process is not None
        self.process.wait(GONE_LIMIT_S)
        self._await_empty()

    def _await_empty(self) -> None:
        """Children of a daemon that is gone have work of a moment; what hangs longer should not."""
        wait_until(lambda: not self.left_behind(), f"what {self.name} leaves behind ends", GONE_LIMIT_S)

    def left_behind(self) -> list[int]:
        """What runs on the machine; of the node, once the daemon has ended."""
        return self._network.processes(self.name)

    def tear_down(self) -> list[str]:
        problems = super().tear_down()
        try:
            self._await_empty()
        except AssertionError:
            left = [f"{pid}: {_command_line(pid)}" for pid in self.left_behind()]
            problems.append(f"{self.name} left behind {left}")
        return problems

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    return "(gone)"
