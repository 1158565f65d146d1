"""An application on several nodes, each behind its proxy: real processes, always taken down.

Knows ports, configurations and processes. What clients do is in the tests.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.nodes import ROOT, Node, Nodes, free_ports
from tests.support.waiting import wait_until

DATABASE: Final = "app.db"
APPLICATION: Final = ROOT / "tests" / "proxy" / "application.py"
START_LIMIT_S: Final = 20.0


class Process:
    """A process with its log, killed at the end."""

    def __init__(self, folder: Path, name: str, command: list[str], **environment: str) -> None:
        self.log_file = folder / f"{name}.log"
        self._command = command
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        ours = {name: value for name, value in os.environ.items() if not name.startswith("LITEREPLICA")}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ours | {"PYTHONPATH": str(ROOT)} | self._environment,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def terminate(self, limit_s: float = 15.0) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(limit_s)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGCONT)
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


Command = Callable[[int, Path, str], list[str]]


def ours(port: int, database: Path, name: str) -> list[str]:
    """The application of these tests."""
    return [sys.executable, str(APPLICATION), str(port), str(database), name]


class Stage:
    """One node with its application and its proxy. ``settings`` are laid over the section ``proxy``.

    ``command`` makes the application's command line out of its port, its database and its node's name.
    """

    def __init__(self, node: Node, command: "Command", **settings: Any) -> None:
        self.node = node
        self.name = node.name
        self.proxy_port, self.application_port = free_ports(2)
        self.settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{self.proxy_port}",
            "advertise": self.url,
            "target": f"http://127.0.0.1:{self.application_port}",
            "databases": [DATABASE],
            "timeouts": {"stop": "2s"} | settings.pop("timeouts", {}),
        } | settings
        line = command(self.application_port, node.path(DATABASE), node.name)
        self.application = Process(node.folder, "application", line)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy_port}"

    def client(self, **options: Any) -> httpx.Client:
        """Somebody with cookies."""
        return httpx.Client(base_url=self.url, timeout=30.0, trust_env=False, **options)

    def start_application(self) -> None:
        self.application.start()
        wait_until(lambda: listens(self.application_port), "the application listens", START_LIMIT_S)

    def health(self) -> dict[str, Any]:
        path = self.settings.get("health", "/litereplica/health")
        try:
            found: dict[str, Any] = httpx.get(f"{self.url}{path}", timeout=5, trust_env=False).json()
        except httpx.HTTPError:
            return {}
        return found

    def wait_ready(self) -> None:
        wait_until(lambda: self.health().get("ready"), f"the proxy of {self.name} is ready", START_LIMIT_S)

    def proxy_pid(self) -> int:
        """The supervised proxy's process."""
        for pid in self.node.children():
            with contextlib.suppress(OSError):
                if b"\0proxy\0--supervised" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise AssertionError(f"{self.name} has no proxy:\n{self.node.log}")


class Site:
    """Stages, made one after the other. Use the fixture ``site``."""

    def __init__(self, nodes: Nodes, command: Command = ours) -> None:
        self.nodes = nodes
        self._command = command
        self.stages: list[Stage] = []

    def standalone(self, **settings: Any) -> Stage:
        """A node alone."""
        return self.start(self.nodes.make(), **settings)

    def pair(self, **settings: Any) -> tuple[Stage, Stage]:
        """A static primary ``a`` and its replica ``b``."""
        primary = self.start(self.nodes.make_primary(), **settings)
        return primary, self.start(self.nodes.make_replica(primary.node), **settings)

    def consul(self, url: str, name: str, **settings: Any) -> Stage:
        """A node whose role is Consul's to say."""
        node = self.nodes.make(name)
        at = {
            "http": {"advertise": node.url},
            "replication": {"advertise": f"127.0.0.1:{node.replication_port}"},
            "lease": {"type": "consul", "consul": {"urls": [url], "ttl": "2s"}},
        }
        return self.start(node, sections=at, **settings)

    def start(self, node: Node, sections: dict[str, Any] | None = None, **settings: Any) -> Stage:
        """Its application and then the node, ready."""
        stage = Stage(node, self._command, **settings)
        self.stages.append(stage)
        node.configure(**(sections or {}), proxy=stage.settings)
        stage.start_application()
        node.start()
        stage.wait_ready()
        return stage

    def tear_down(self) -> None:
        for stage in self.stages:
            stage.application.kill()

    def print_logs(self) -> None:
        for stage in self.stages:
            sys.stdout.write(f"---- application of {stage.name} ----\n{stage.application.log}")
