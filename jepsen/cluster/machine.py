"""A node of a cluster that is broken on purpose: its disk, its clocks and the wire to it can be put wrong.

Knows what stands around the daemon for that. Does not know when anything is broken.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jepsen.cluster import relay
from jepsen.cluster.small_disk import RETENTION_AGE, SmallDisk
from jepsen.cluster.switches import Switches
from jepsen.mutations import APPLIER
from jepsen.proxied import PROXY_PORT
from tests.failover.machine import HTTP_PORT, REPLICATION_PORT, Machine
from tests.failover.network import Network
from tests.support.nodes import ROOT
from tests.support.waiting import wait_until

RELAY_HTTP_PORT: Final = 20212
RELAY_REPLICATION_PORT: Final = 20213
APPLICATION_PORT: Final = "8000"
END_LIMIT_S: Final = 5.0
LEFT_BEHIND_S: Final = 2.0


class BreakableMachine(Machine):
    """A node, not started.

    ``small_disk``: its data directory is on a file system of limited size. ``faults``: its disk and its clocks obey
    ``switches``. ``slow_wire``: other nodes reach it through a relay. ``proxied``: databases; a web application runs
    beside it, behind its proxy, whose cookies are about these. ``environment``: of the daemon. ``mutation``: a bug that
    it has (jepsen/mutations).
    """

    def __init__(
        self,
        network: Network,
        folder: Path,
        name: str,
        urls: Sequence[str],
        *,
        on_replica: str,
        small_disk: bool,
        faults: bool,
        slow_wire: bool,
        proxied: Sequence[str],
        environment: Mapping[str, str],
        mutation: str = "",
        **options: Any,
    ) -> None:
        self._network = network
        self._slow_wire = slow_wire
        self._environment = dict(environment)
        self._proxied = list(proxied)
        self._beside: dict[str, subprocess.Popen[bytes]] = {}
        self._mutation = mutation
        if mutation:
            self.applier_module = APPLIER
        self.small_disk = SmallDisk(folder / "disk") if small_disk else None
        data = self.small_disk.data if self.small_disk is not None else None
        super().__init__(network, folder, name, urls, on_replica=on_replica, data=data, **options)
        self.switches = Switches(folder / "switches") if faults else None

    def configure(self, **sections: dict[str, Any]) -> None:
        if self._slow_wire:
            address = self._network.addresses[self.name]
            http = {"listen": f"0.0.0.0:{HTTP_PORT}", "advertise": f"http://{address}:{RELAY_HTTP_PORT}"}
            replication = {"advertise": f"{address}:{RELAY_REPLICATION_PORT}"}
            sections = {
                **sections,
                "http": http | sections.get("http", {}),
                "replication": replication | sections.get("replication", {}),
            }
        if self.small_disk is not None:
            sections = {**sections, "data": {"retention": {"age": RETENTION_AGE}} | sections.get("data", {})}
        if self._proxied:
            proxy = {
                "listen": f"0.0.0.0:{PROXY_PORT}",
                "advertise": f"http://{self._network.addresses[self.name]}:{PROXY_PORT}",
                "target": f"http://127.0.0.1:{APPLICATION_PORT}",
                "databases": self._proxied,
            }
            sections = {**sections, "proxy": proxy | sections.get("proxy", {})}
        super().configure(**sections)

    def program(self) -> list[str]:
        if self.switches is None and not self._mutation:
            return super().program()
        mutation = ["--mutation", self._mutation] if self._mutation else []
        switches = ["--switches", str(self.folder / "switches")] if self.switches is not None else []
        return [sys.executable, "-m", "jepsen.cluster.daemon", *mutation, *switches, "-c", str(self.config), "run"]

    def start(
        self, *command: str, wait: bool = True, prefix: Sequence[str] = (), **environment: str
    ) -> "BreakableMachine":
        """What belongs beside it is started too, when there is such and it does not run."""
        if self._slow_wire:
            ports = [f"{RELAY_HTTP_PORT}:{HTTP_PORT}", f"{RELAY_REPLICATION_PORT}:{REPLICATION_PORT}"]
            self._start_beside("relay", "jepsen.cluster.relay", str(self._relay_settings), *ports)
        if self._proxied:
            self._start_beside("application", "jepsen.application", APPLICATION_PORT, str(self.mount), self.name)
        super().start(*command, wait=wait, prefix=prefix, **(self._environment | environment))
        return self

    def left_behind(self) -> list[int]:
        beside = {each.pid for each in self._beside.values()}
        return [pid for pid in super().left_behind() if pid not in beside and not is_client(pid)]

    def signal_all(self, number: int) -> None:
        """To the daemon and its children, also those that keep apart; who has ended meanwhile is left out."""
        for pid in self.left_behind():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def start_again(self) -> None:
        """As whoever supervises it does when it has ended, however that came; returns at once."""
        if self.is_running:
            return
        with contextlib.suppress(AssertionError):
            # What it left behind has work of a moment, and may be cut off from Consul; nobody waits for it for long.
            wait_until(lambda: not self.left_behind(), f"what {self.name} leaves behind ends", LEFT_BEHIND_S)
        self.start(wait=False)

    # -- the wire --------------------------------------------------------------------------------------------------

    def delay(self, delay: relay.Delay) -> None:
        """What other nodes and this one send each other is late, in both directions."""
        assert self._slow_wire, "there is no relay in front of it"
        relay.write(self._relay_settings, delay)

    @property
    def _relay_settings(self) -> Path:
        return self.folder / "relay.json"

    def _start_beside(self, name: str, module: str, *arguments: str) -> None:
        """A process that goes on when the node ends, as whoever supervises it would have it."""
        running = self._beside.get(name)
        if running is not None and running.poll() is None:
            return
        with (self.folder / f"{name}.log").open("ab") as log:
            self._beside[name] = subprocess.Popen(
                [*self._network.entry(self.name), sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    # -- healing and the end ---------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Disk, clocks and wire are well again, and what was stopped goes on. A node that has ended stays so."""
        if self.small_disk is not None:
            self.small_disk.free()
        if self.switches is not None:
            self.switches.mend_disk()
            self.switches.wall_ns = 0
        if self._slow_wire:
            self.delay(relay.Delay())
        self.signal_all(signal.SIGCONT)

    def diverged(self) -> list[dict[str, Any]]:
        """What it lists as kept. AssertionError when it cannot."""
        folder = self.data / "diverged"
        if not folder.is_dir() or not any(folder.iterdir()):
            return []
        found: list[dict[str, Any]] = json.loads(self.command("--json", "diverged", "list"))
        return found

    def drop_diverged(self) -> None:
        """As whoever has looked at it does, so that there is room for more."""
        folder = self.data / "diverged"
        for each in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(each)

    def tear_down(self) -> list[str]:
        for each in self._beside.values():
            each.kill()
        problems = super().tear_down()
        for each in self._beside.values():
            # What hung in the mount ends with it.
            each.wait(END_LIMIT_S)
        return problems


def is_client(pid: int) -> bool:
    """Whether it is a client: it is on the machine for as long as it asks something there, and not of it."""
    with contextlib.suppress(OSError):
        return b"\0jepsen.client\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
