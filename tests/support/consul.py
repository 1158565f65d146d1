"""Real Consul: one agent, or three servers, on free ports, always taken down.

Knows how agents are configured, when they are ready, and how they end with the test process, however that ends. Where
the program comes from is scripts/consul.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.nodes import MEMORY, ROOT, free_ports
from tests.support.waiting import wait_until

READY_LIMIT_S: Final = 40.0
STOP_LIMIT_S: Final = 10.0
# Sets PR_SET_PDEATHSIG (1) to SIGKILL, and becomes the agent: it dies with the thread that started it.
_BOUND: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


@functools.cache
def program() -> str:
    """Path of Consul; the test fails with what scripts/consul says when there is none."""
    found = subprocess.run([ROOT / "scripts" / "consul"], capture_output=True, text=True, timeout=300, check=False)
    if found.returncode != 0:
        pytest.fail(found.stderr, pytrace=False)
    return found.stdout.strip()


class Agent:
    """One server. ``token``: the master's when there are ACLs."""

    def __init__(self, folder: Path, name: str, *, acl: bool = False, tls: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.name = name
        self.token = str(uuid.uuid4()) if acl else ""
        self.tls = tls
        self.http_port, self.https_port, self.server_port, self.lan_port = free_ports(4)
        self.process: subprocess.Popen[bytes] | None = None
        self.joined: list[Agent] = [self]
        folder.mkdir(parents=True)

    @property
    def url(self) -> str:
        """As a node is told. An agent with TLS has a port without it too, for the test's own questions."""
        return f"https://127.0.0.1:{self.https_port}" if self.tls else f"http://127.0.0.1:{self.http_port}"

    def configuration(self) -> dict[str, Any]:
        """The agent's file. Raft at its quickest; nothing of it is made durable for anyone."""
        document: dict[str, Any] = {
            "node_name": self.name,
            "server": True,
            "bootstrap_expect": len(self.joined),
            "data_dir": str(self.folder / "data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                "http": self.http_port,
                "https": self.https_port if self.tls else -1,
                "server": self.server_port,
                "serf_lan": self.lan_port,
                "serf_wan": -1,
                "dns": -1,
                "grpc": -1,
            },
            "retry_join": [f"127.0.0.1:{each.lan_port}" for each in self.joined if each is not self],
            "retry_interval": "200ms",
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
            "leave_on_terminate": False,
            "log_level": "warn",
        }
        if self.token:
            document["acl"] = {"enabled": True, "default_policy": "deny", "tokens": {"master": self.token}}
        return document | (self.tls or {})

    def start(self, *, wait: bool = True) -> "Agent":
        """Start it (again, with what it had), and wait until it has a leader."""
        assert self.process is None
        file = self.folder / "config.json"
        file.write_text(json.dumps(self.configuration()), encoding="utf-8")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), program(), "agent", "-config-file", file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Return when it answers a write."""
        end = time.monotonic() + READY_LIMIT_S
        while not self.answers():
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log}"
            assert time.monotonic() < end, f"{self.name} has no leader after {READY_LIMIT_S:g} s:\n{self.log}"
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether it can change something: there is a leader, which knows this server."""
        session = self.ask("PUT", "/v1/session/create", {"checks": []})
        return bool(session) and self.ask("PUT", f"/v1/session/destroy/{session['ID']}") is True

    def ask(self, method: str, path: str, document: Any = None, *, token: str = "") -> Any:
        """The JSON of an answer; None when there is none of 200."""
        data = None if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data, method=method)
        if token or self.token:
            request.add_header("X-Consul-Token", token or self.token)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.loads(answer.read() or b"null")
        except (OSError, ValueError):
            return None

    def is_leader(self) -> bool:
        return bool(self.ask("GET", "/v1/status/leader") == f"127.0.0.1:{self.server_port}")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def snapshot(self) -> bytes:
        """What it has, as an operator saves it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v1/snapshot", timeout=10) as answer:
            return bytes(answer.read())

    def restore(self, snapshot: bytes) -> None:
        """Have everything be as it was then."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}/v1/snapshot", snapshot, method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def kill(self) -> None:
        """Kill -9; what it wrote stays."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(STOP_LIMIT_S)

    def wipe(self) -> None:
        """Kill it, and start it with nothing."""
        self.kill()
        shutil.rmtree(self.folder / "data")
        self.start()


class Consuls:
    """Makes agents below a folder of its own, and takes them down. Use the fixture ``consuls``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="litereplica-consul-", dir=MEMORY))
        self.made: list[Agent] = []

    def single(self, **options: Any) -> Agent:
        """One server, ready."""
        return self._make(**options).start()

    def three(self) -> list[Agent]:
        """Three servers, ready."""
        agents = [self._make() for _ in range(3)]
        for agent in agents:
            agent.joined = agents
            agent.start(wait=False)
        for agent in agents:
            agent.wait_ready()
        return agents

    def _make(self, **options: Any) -> Agent:
        name = f"server-{len(self.made)}"
        agent = Agent(self.folder / name, name, **options)
        self.made.append(agent)
        return agent

    def tear_down(self) -> None:
        for agent in self.made:
            agent.kill()
        shutil.rmtree(self.folder)
        assert not self.folder.exists()


def leader_of(agents: list[Agent]) -> Agent:
    """Wait until one is the leader, and return it."""
    (found,) = wait_until(lambda: [each for each in agents if each.process and each.is_leader()][:1], "a leader")
    return found
