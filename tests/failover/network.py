"""A network of its own for each machine of a field: namespaces on one bridge, where packets can be lost.

Knows namespaces, veth pairs and nftables. Nothing of it has an address in, or a line to, the network of the host. Does
not know what runs in it. Packets are lost on the bridge, as on a real wire: neither end is told anything.
"""

import contextlib
import ctypes
import http.client
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LIMIT_S: Final = 20.0
"""For one command of ip or nft; they take milliseconds."""
NAMESPACES: Final = Path("/run/netns")
_OWN: Final = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET: Final = 0x40000000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _run(arguments: Sequence[str], text: str = "") -> str:
    done = subprocess.run(arguments, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr}\n{text}"
    return done.stdout


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Sockets that this thread makes meanwhile belong to the namespace, also afterwards."""
    with _OWN.open("rb") as home, (NAMESPACES / namespace).open("rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def remove_namespaces(prefix: str) -> list[int]:
    """Kill what runs in the namespaces of one network, and remove them; who had to be killed."""
    names = [each.name for each in NAMESPACES.iterdir() if each.name.startswith(prefix)] if NAMESPACES.is_dir() else []
    killed = [int(pid) for name in names for pid in _run(["ip", "netns", "pids", name]).split()]
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for name in names:
        _run(["ip", "netns", "del", name])
    return killed


class Network:
    """Machines by name, each with one address; use it as a context. ``prefix`` is unique to this run."""

    def __init__(self, prefix: str, machines: Sequence[str]) -> None:
        self._prefix = prefix
        self._bridge = f"{prefix}bridge"
        self._machines = list(machines)
        self._lost: set[tuple[str, str]] = set()
        self._last_bytes: dict[str, int] = {}
        self._shares: dict[str, int] = {}
        self.addresses: dict[str, str] = {name: f"10.77.0.{1 + place}" for place, name in enumerate(machines)}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            remove_namespaces(self._prefix)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove_namespaces(self._prefix)

    def _make(self) -> None:
        spaces = [self._bridge, *(self.namespace(each) for each in self._machines)]
        _run(["ip", "-batch", "-"], "".join(f"netns add {each}\n" for each in spaces))
        lines = "link add br0 type bridge\nlink set br0 up\n"
        for each in self._machines:
            lines += f"link add name {each} type veth peer name eth0 netns {self.namespace(each)}\n"
            lines += f"link set dev {each} master br0 up\n"
        _run(["ip", "-n", self._bridge, "-batch", "-"], lines)
        for each in self._machines:
            lines = f"link set lo up\naddr add {self.addresses[each]}/24 dev eth0\nlink set eth0 up\n"
            _run(["ip", "-n", self.namespace(each), "-batch", "-"], lines)

    def namespace(self, machine: str) -> str:
        return f"{self._prefix}{machine}"

    def entry(self, machine: str) -> list[str]:
        """In front of a command line: run it on that machine. Only its network is another; its mounts are ours."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(machine)}", "--"]

    def connect(self, machine: str, port: int, limit_s: float) -> http.client.HTTPConnection:
        """To a port of the machine, from itself: works whatever its network does. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
        with inside(self.namespace(machine)):
            connection.connect()
        return connection

    def processes(self, machine: str) -> list[int]:
        """Process ids of everything that runs on the machine."""
        return [int(pid) for pid in _run(["ip", "netns", "pids", self.namespace(machine)]).split()]

    # -- accidents -------------------------------------------------------------------------------------------------

    def cut(self, machine: str) -> None:
        """Everything from it and to it is lost."""
        self._lose({(machine, ""), ("", machine)})

    def mute(self, machine: str) -> None:
        """Everything that it sends is lost; it hears the others."""
        self._lose({(machine, "")})

    def deafen(self, machine: str) -> None:
        """Everything that is sent to it is lost; the others hear it."""
        self._lose({("", machine)})

    def deafen_after(self, machine: str, size_bytes: int) -> None:
        """So many bytes still reach it, then nothing: the wire goes dead in the middle of what it is being told."""
        self._last_bytes[machine] = size_bytes
        self._write()

    def part(self, some: Iterable[str], others: Iterable[str]) -> None:
        """What some machines and others send each other is lost."""
        others = list(others)
        pairs = {(one, other) for one in some for other in others if one != other}
        self._lose(pairs | {(other, one) for one, other in pairs})

    def part_one_way(self, some: Iterable[str], others: Iterable[str]) -> None:
        """What some machines send others is lost; what the others send them arrives."""
        others = list(others)
        self._lose({(one, other) for one in some for other in others if one != other})

    def lose_share(self, machine: str, percent: int) -> None:
        """Of the packets that it sends and is sent, so many in a hundred are lost, each by chance."""
        self._shares[machine] = percent
        self._write()

    def unplug(self, machine: str) -> None:
        """Pull its cable: the link goes down at both ends."""
        _run(["ip", "-n", self._bridge, "link", "set", "dev", machine, "down"])

    def heal(self) -> None:
        """Everything arrives again."""
        self._lost.clear()
        self._last_bytes.clear()
        self._shares.clear()
        self._write()
        _run(["ip", "-n", self._bridge, "-batch", "-"], "".join(f"link set dev {each} up\n" for each in self._machines))

    def _lose(self, pairs: set[tuple[str, str]]) -> None:
        """(from, to); an empty name is everybody."""
        self._lost |= pairs
        self._write()

    def _write(self) -> None:
        """All rules anew, in one transaction."""
        chains = ""
        for machine in self._machines:
            leaving = [to for source, to in self._lost if source == machine]
            arriving = [source for source, to in self._lost if to == machine and not source]
            by_chance = [f"numgen random mod 100 < {self._shares[machine]} drop"] if machine in self._shares else []
            rules = ["drop" if not to else f"ip daddr {self.addresses[to]} drop" for to in leaving] + by_chance
            chains += self._chain(f"from_{machine}", "ingress", machine, rules)
            rules = (["drop"] if arriving else []) + by_chance
            if machine in self._last_bytes:
                rules.append(f"quota over {self._last_bytes[machine]} bytes drop")
            chains += self._chain(f"to_{machine}", "egress", machine, rules)
        script = f"table netdev lost\ndelete table netdev lost\ntable netdev lost {{\n{chains}}}\n"
        _run(["nsenter", f"--net={NAMESPACES / self._bridge}", "nft", "-f", "-"], script)

    @staticmethod
    def _chain(name: str, hook: str, device: str, rules: list[str]) -> str:
        if not rules:
            return ""
        lines = "".join(f"  {rule}\n" for rule in rules)
        return f' chain {name} {{\n  type filter hook {hook} device "{device}" priority 0;\n{lines} }}\n'
