"""Three Consul servers, one cluster, each on a machine of its own of a network.

Knows the Consul program, its configuration and its processes. Does not know litereplica, and nothing of what is kept in
Consul.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.failover.network import Network
from tests.support.nodes import MEMORY, ROOT
from tests.support.waiting import wait_until

PORT: Final = 8500
FETCH_LIMIT_S: Final = 110.0
"""The first use on a machine fetches Consul."""
FORM_LIMIT_S: Final = 30.0
"""Three servers elect their leader in one or two seconds on an idle machine."""
END_LIMIT_S: Final = 10.0
ASK_LIMIT_S: Final = 2.0


def program() -> str:
    """Path of the Consul to test with. AssertionError that says how to get one."""
    done = subprocess.run(
        [ROOT / "scripts" / "consul"], capture_output=True, text=True, timeout=FETCH_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def data_of(folder: Path) -> Path:
    """Where the servers of a folder keep their data."""
    return MEMORY / f"{folder.name}-consul"


class Servers:
    """Nothing runs until ``start``; ``machines`` are those of the network that they run on."""

    def __init__(self, network: Network, folder: Path, machines: Sequence[str]) -> None:
        self.machines = tuple(machines)
        self._network = network
        self._folder = folder
        self._program = program()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def urls(self) -> list[str]:
        return [f"http://{self._network.addresses[each]}:{PORT}" for each in self.machines]

    def start(self) -> None:
        """Start those that do not run; returns when they have a leader."""
        for machine in self.machines:
            if machine not in self._processes:
                self._start(machine)
        self.wait_formed()

    def wait_formed(self) -> None:
        """Return when every server knows the leader."""
        wait_until(lambda: all(map(self._knows_leader, self.machines)), "Consul has a leader", FORM_LIMIT_S)

    def _start(self, machine: str) -> None:
        home = self._folder / machine
        home.mkdir(parents=True, exist_ok=True)
        configuration = home / "consul.json"
        configuration.write_text(json.dumps(self._configuration(machine)), encoding="utf-8")
        with (home / "log").open("ab") as log:
            self._processes[machine] = subprocess.Popen(
                [*self._network.entry(machine), self._program, "agent", f"-config-file={configuration}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _configuration(self, machine: str) -> dict[str, Any]:
        addresses = self._network.addresses
        return {
            "server": True,
            "bootstrap_expect": len(self.machines),
            "node_name": machine,
            "data_dir": str(data_of(self._folder) / machine),
            "bind_addr": addresses[machine],
            "client_addr": "0.0.0.0",
            "retry_join": [addresses[each] for each in self.machines],
            "retry_interval": "500ms",
            # As fast as a network of one machine allows; 5 is for the slowest of rented machines.
            "performance": {"raft_multiplier": 1},
            "ports": {"dns": -1, "serf_wan": -1},
            "ui": False,
            "disable_update_check": True,
            "log_level": "warn",
        }

    def _knows_leader(self, machine: str) -> bool:
        return bool(self.ask(machine, "/v1/status/leader"))

    def ask(self, machine: str, path: str) -> Any:
        """The JSON that a server answers; None without an answer."""
        try:
            connection = self._network.connect(machine, PORT, ASK_LIMIT_S)
        except OSError:
            return None
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return json.loads(answer.read()) if answer.status == 200 else None
            except (OSError, http.client.HTTPException, ValueError):
                return None

    # -- accidents -------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill -9 every server. What they have stored stays."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(END_LIMIT_S)
        self._processes.clear()

    def leader(self) -> str:
        """The machine of the server that leads, as one that answers says; empty when none knows."""
        machines = {address: machine for machine, address in self._network.addresses.items()}
        for machine in self.machines:
            if found := self.ask(machine, "/v1/status/leader"):
                return machines[str(found).partition(":")[0]]
        return ""

    def kill_one(self, machine: str) -> None:
        """Kill -9 one server, until ``start`` or ``start_one``."""
        process = self._processes.pop(machine)
        process.kill()
        process.wait(END_LIMIT_S)

    def start_one(self, machine: str) -> None:
        """Start one server if it does not run; returns at once."""
        if machine not in self._processes:
            self._start(machine)

    def wipe(self) -> None:
        """They lose everything, and begin anew."""
        self.kill()
        subprocess.run(["rm", "-rf", "--", data_of(self._folder)], check=True, timeout=END_LIMIT_S)
        self.start()

    def hang(self) -> None:
        """They accept connections, and answer nothing."""
        for process in self._processes.values():
            os.kill(process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """After ``hang``; returns when they have a leader again."""
        for process in self._processes.values():
            os.kill(process.pid, signal.SIGCONT)
        self.wait_formed()

    def tail(self, count: int = 40) -> str:
        """The end of each server's log."""
        lines = ""
        for machine in self.machines:
            found = (self._folder / machine / "log").read_text(encoding="utf-8", errors="replace").splitlines()
            lines += "".join(f"{machine}: {line}\n" for line in found[-count:])
        return lines
