"""Three litereplica nodes and three Consul servers, each on a machine of its own, taken down whatever happened.

Knows how the parts are put together, who is primary, and what an earlier run that was killed has left behind. Does not
know what a test does with them.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.failover.clients import Clients, prepare
from tests.failover.machine import KEY, Machine
from tests.failover.network import Network, remove_namespaces
from tests.failover.servers import Servers, data_of
from tests.support.mounts import abort, mounts_below, take_away
from tests.support.waiting import wait_until

DATABASE: Final = "app.db"
NAMES: Final = ("a", "b", "c")
SERVERS: Final = ("consul1", "consul2", "consul3")
PRIMARY_LIMIT_S: Final = 30.0
"""Generous: some tests have all nodes wait a ttl, and this machine has two cores."""
SETTLED_LIMIT_S: Final = 40.0
ABORT_LIMIT_S: Final = 5.0
_FOLDER: Final = "litereplica-field-"
# Names of namespaces begin with it; the process id follows.
_PREFIX: Final = "lrfield"
# What a node writes when it has met a bug of its own.
SURPRISES: Final = ("Traceback", "internal error", "request_failed", "AssertionError", "misunderstood")


def clean_left_overs() -> None:
    """What earlier runs that did not end in order have left: processes, mounts, namespaces and folders."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        # Without a lock its own run is just removing it.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), (folder / "lock").open("r+b") as lock:
            # Held as long as the run lives, whatever has its process id by now.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = re.fullmatch(rf"{_FOLDER}(\d+)-.*", folder.name)
            if found:
                remove_namespaces(f"{_PREFIX}{found[1]}-")
            shutil.rmtree(data_of(folder), ignore_errors=True)
            take_away(folder)


class Field:
    """Use it as a context; nodes and Consul run then, a primary is there, and every node has the database."""

    def __init__(
        self, names: Sequence[str] = NAMES, *, ttl_s: float = 3.0, on_replica: str = "forward", **options: Any
    ) -> None:
        """``options``: of lease.consul, for every node, such as outage."""
        clean_left_overs()
        self.ttl_s = ttl_s
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self._lock = (self.folder / "lock").open("ab")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._stack = contextlib.ExitStack()
        self._options = options | {"ttl": f"{ttl_s:g}s"}
        self._names = tuple(names)
        self._on_replica = on_replica
        self._runs = 0
        self.surprising = True
        """Whether a bug that a node's log speaks of is a failure."""
        self.nodes: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        try:
            prefix = f"{_PREFIX}{os.getpid()}-"
            self.network = self._stack.enter_context(Network(prefix, (*self._names, *SERVERS)))
            self.consul = Servers(self.network, self.folder, SERVERS)
            self.consul.start()
            self._stack.callback(self.consul.kill)
            for name in self._names:
                self.nodes[name] = self.make(name)
            self.start()
            prepare(self.path(self.primary()))
            self.await_settled()
        except BaseException:
            sys.stdout.write(self.logs())
            sys.stdout.write("".join(f"{each}\n" for each in self.tear_down()))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        surprises = self.surprises() if kind is None else []
        if kind is not None or surprises:
            sys.stdout.write(self.logs())
        problems = self.tear_down()
        assert kind is not None or not (problems or surprises), (problems, surprises)

    def make(self, name: str) -> Machine:
        """A node that is not started."""
        folder = self.folder / name
        return Machine(self.network, folder, name, self.consul.urls, on_replica=self._on_replica, **self._options)

    def start(self) -> None:
        """Start every node that does not run; returns when all are ready."""
        for each in self.all:
            if not each.is_running:
                each.start(wait=False)
        for each in self.all:
            each.wait_ready()

    @property
    def all(self) -> list[Machine]:
        return list(self.nodes.values())

    @staticmethod
    def path(node: Machine) -> Path:
        """The database in a node's mount."""
        return node.path(DATABASE)

    def places(self, *nodes: Machine) -> list[tuple[str, Path]]:
        """(name, database) of some nodes, or of all."""
        return [(each.name, self.path(each)) for each in nodes or self.all]

    def others(self, *nodes: Machine) -> list[Machine]:
        return [each for each in self.all if each not in nodes]

    # -- who is what -----------------------------------------------------------------------------------------------

    def primaries(self) -> list[Machine]:
        """Who says that it is the primary."""
        return [each for each in self.all if each.is_running and each.role == "primary"]

    def primary(self, limit_s: float = PRIMARY_LIMIT_S) -> Machine:
        """The only one who says that it is the primary."""
        return wait_until(lambda: found if len(found := self.primaries()) == 1 else [], "one primary", limit_s)[0]

    def await_settled(self, limit_s: float = SETTLED_LIMIT_S) -> Machine:
        """One primary, all others follow it, and every position is the same; the primary."""
        end = time.monotonic() + limit_s
        while (problem := self._unsettled()) is not None:
            assert time.monotonic() < end, f"not within {limit_s:g} s: {problem}"
            time.sleep(0.03)
        return self.primary()

    def _unsettled(self) -> str | None:
        """What is not yet as it should be."""
        found = {each.name: each.get("/status")[1] for each in self.all}
        if silent := [name for name, status in found.items() if not status]:
            return f"{silent} do not answer"
        primaries = [name for name, status in found.items() if status["role"] == "primary"]
        if len(primaries) != 1:
            return f"primaries: {primaries}"
        if wrong := {name: it["primary"] for name, it in found.items() if it["primary"] != primaries[0]}:
            return f"{primaries[0]} is the primary, and others follow: {wrong}"
        connected = {each["name"] for each in found[primaries[0]]["replicas"] if each["connected"]}
        if missing := set(found) - {primaries[0]} - connected:
            return f"{missing} are not connected"
        positions = {name: _positions(status) for name, status in found.items()}
        if any(each != positions[primaries[0]] for each in positions.values()):
            return f"positions differ: {positions}"
        return None

    def lease(self) -> dict[str, Any]:
        """The lease as Consul has it."""
        found: dict[str, Any] = self.consul.ask(SERVERS[0], f"/v1/kv/{KEY}?raw")
        return found

    # -- accidents -------------------------------------------------------------------------------------------------

    def part_from_consul(self, *nodes: Machine) -> None:
        """These nodes and Consul do not reach each other; everything else does."""
        self.network.part([each.name for each in nodes], SERVERS)

    def part_from_peers(self, node: Machine) -> None:
        """This node and the other nodes do not reach each other; Consul is reached by all."""
        self.network.part([node.name], [each.name for each in self.others(node)])

    def heal(self) -> None:
        """Everything reaches everything, stopped processes go on, and every node runs."""
        self.network.heal()
        self.let_go_on()
        self.consul.start()
        for each in self.all:
            if not each.is_running and each.process is not None:
                each.reap()
        self.start()

    def let_go_on(self) -> None:
        """SIGCONT to every daemon that runs."""
        for each in self.all:
            if each.is_running:
                each.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def clients(self) -> Iterator[Clients]:
        """The applications of one run; they have ended afterwards."""
        self._runs += 1
        with Clients(self.folder / f"clients{self._runs}") as clients:
            yield clients

    # -- the end ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def limited(self, limit_s: float) -> Iterator[None]:
        """After ``limit_s`` every request to the mounts ends with an error, so that nobody hangs in one."""
        timer = threading.Timer(limit_s, self._abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _abort(self) -> None:
        for _, minor in mounts_below(self.folder):
            abort(minor)

    def surprises(self) -> list[str]:
        """What the nodes met that is a bug of theirs."""
        found = []
        for node in self.all:
            words = node.log
            for each in SURPRISES:
                if self.surprising and each in words:
                    at = words.index(each)
                    found.append(f"{each} at {node.name}: {words[max(0, at - 3000) : at + 3000]}")
        return found

    def logs(self) -> str:
        """Of every node, and the end of Consul's."""
        found = [f"---- log of {node.name} ----\n{node.log}" for node in self.all]
        return "".join([*found, f"---- Consul ----\n{self.consul.tail()}"] if found else [])

    def tear_down(self) -> list[str]:
        """Take everything down; what should not have been there."""
        with contextlib.suppress(AssertionError):
            self.network.heal()
        self.let_go_on()
        for each in self.all:
            if each.is_running:
                each.signal(signal.SIGTERM)
        problems = [problem for each in self.all for problem in each.tear_down()]
        self._stack.close()
        shutil.rmtree(data_of(self.folder), ignore_errors=True)
        take_away(self.folder)
        self._lock.close()
        return problems


def _positions(status: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Database → (TXID, checksum, what readers see)."""
    return {each["name"]: (each["txid"], each["checksum"], each["applied"]) for each in status["databases"]}
