"""What breaks things, one file each; here they are all, by name."""

from collections.abc import Callable, Iterable
from typing import Final

from jepsen.nemeses.clock import Clock
from jepsen.nemeses.consul_leader import ConsulLeader
from jepsen.nemeses.consul_only import ConsulOnly
from jepsen.nemeses.disk_full import DiskFull
from jepsen.nemeses.failover import Failover
from jepsen.nemeses.flapping import Flapping
from jepsen.nemeses.halves import Halves
from jepsen.nemeses.io_error import IoError
from jepsen.nemeses.isolate_primary import IsolatePrimary
from jepsen.nemeses.kill import Kill
from jepsen.nemeses.kill_all import KillAll
from jepsen.nemeses.kill_applier import KillApplier
from jepsen.nemeses.kill_client import KillClient
from jepsen.nemeses.nemesis import Nemesis
from jepsen.nemeses.one_way import OneWay
from jepsen.nemeses.pause import PauseLong, PauseShort
from jepsen.nemeses.peers_only import PeersOnly
from jepsen.nemeses.rejoin import Rejoin
from jepsen.nemeses.ring import Ring
from jepsen.nemeses.slow import Slow
from jepsen.nemeses.wipe_consul import WipeConsul

_ALL: Final[tuple[Callable[[], Nemesis], ...]] = (
    Kill,
    KillApplier,
    KillClient,
    KillAll,
    ConsulLeader,
    PauseShort,
    PauseLong,
    IsolatePrimary,
    Halves,
    Ring,
    OneWay,
    ConsulOnly,
    PeersOnly,
    Flapping,
    Slow,
    DiskFull,
    IoError,
    Clock,
    Failover,
    Rejoin,
    WipeConsul,
)
NEMESES: Final[dict[str, Callable[[], Nemesis]]] = {each().name: each for each in _ALL}
KINDS: Final[dict[str, tuple[str, ...]]] = {
    "partition": ("isolate-primary", "halves", "ring", "one-way", "consul-only", "peers-only", "flapping"),
    "pause": ("pause-short", "pause-long"),
    "disk": ("disk-full", "io-error"),
}
"""Names for several of them, as other suites have them."""


def needs(names: Iterable[str]) -> dict[str, bool]:
    """What a cluster must be made with for these nemeses: parameters of Cluster."""
    found: frozenset[str] = frozenset().union(*(NEMESES[name]().needs for name in names))
    return {each: each in found for each in ("small_disk", "faults", "proxies")}
