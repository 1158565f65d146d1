"""Who hears whom on the network of a cluster, at this moment."""

import contextlib
import socket
import time
from types import TracebackType
from typing import Final, Self

from jepsen.cluster.cluster import Cluster
from jepsen.nemeses.partition import machines
from tests.failover.network import inside

PROBE_PORT: Final = 20777
HEAR_S: Final = 0.1

Pairs = set[tuple[str, str]]
"""(from, to)."""


class Ears:
    """A UDP socket on each machine: who hears whom, at this moment. Use it as a context."""

    def __init__(self, cluster: Cluster) -> None:
        self._addresses = {name: cluster.network.addresses[name] for name in machines(cluster)}
        self._sockets: dict[str, socket.socket] = {}
        for name in self._addresses:
            with inside(cluster.network.namespace(name)):
                ear = self._sockets[name] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ear.bind((self._addresses[name], PROBE_PORT))
            ear.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._sockets.values():
            each.close()

    def hear(self) -> Pairs:
        """(from, to)."""
        self._drain()
        for name, mouth in self._sockets.items():
            for other, address in self._addresses.items():
                if other != name:
                    mouth.sendto(name.encode(), (address, PROBE_PORT))
        time.sleep(HEAR_S)
        return self._drain()

    def count(self, one: str, other: str, packets: int) -> int:
        """How many of so many packets arrive."""
        self._drain()
        for _ in range(packets):
            self._sockets[one].sendto(one.encode(), (self._addresses[other], PROBE_PORT))
        time.sleep(HEAR_S)
        found = 0
        with contextlib.suppress(BlockingIOError):
            while self._sockets[other].recv(64):
                found += 1
        return found

    def _drain(self) -> Pairs:
        heard = set()
        for name, ear in self._sockets.items():
            with contextlib.suppress(BlockingIOError):
                while data := ear.recv(64):
                    heard.add((data.decode(), name))
        return heard
