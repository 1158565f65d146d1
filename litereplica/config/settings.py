"""The settings themselves: every key, its type, its unit and its default.

Knows names and defaults, and says how a field is called in the file when the field carries a unit (``age_s`` is
``age``). Does not know where values come from or which of them fit together.
"""

import dataclasses
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from litereplica.config.proxy import ProxySettings
from litereplica.config.units import KEY, NO_SECRET, Address, Bytes, HttpUrl, Seconds, Secret

DEFAULT_HTTP: Final = Address("127.0.0.1", 20202)
DEFAULT_REPLICATION: Final = Address("127.0.0.1", 20203)


def key_of(attribute: "dataclasses.Field[Any]") -> str:
    """Name of a field in the configuration file: its own, without the unit."""
    return str(attribute.metadata.get(KEY, attribute.name))


def _is_reachable(listen: Address) -> bool:
    """Whether other machines can connect to exactly that."""
    return bool(listen.port) and not listen.is_any and not listen.is_loopback


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Who this node is. ``name`` is unique in the cluster; only a ``candidate`` may become primary.

    Of candidates that are equally far the one of the highest ``priority`` becomes primary.
    """

    name: str = field(default_factory=socket.gethostname)
    candidate: bool = True
    priority: int = 0


@dataclass(frozen=True, slots=True)
class MountSettings:
    """Where applications see their databases. ``allow_other`` opens the mount to users other than ours.

    ``guard``: nobody makes files in the bare directory while nothing is mounted there.
    """

    dir: Path = Path("/litereplica")
    allow_other: bool = False
    guard: bool = False


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How much of the log is kept: records younger than ``age_s``, and never more than ``size_bytes`` a database."""

    age_s: Seconds = field(default=Seconds(600.0), metadata={KEY: "age"})
    size_bytes: Bytes = field(default=Bytes(2**30), metadata={KEY: "size"})


@dataclass(frozen=True, slots=True)
class ScrubSettings:
    """How fast files are read again to find damage: ``rate_bytes`` a second (0: never), ``pause_s`` between passes."""

    rate_bytes: Bytes = field(default=Bytes(8 * 2**20), metadata={KEY: "rate"})
    pause_s: Seconds = field(default=Seconds(3600.0), metadata={KEY: "pause"})


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the log and the files behind the mount are kept, how records are compressed, and how files are checked."""

    dir: Path = Path("/var/lib/litereplica")
    compression: Literal["none", "lz4", "zstd"] = "none"
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    scrub: ScrubSettings = field(default_factory=ScrubSettings)


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTP interface: where it listens, and the URL by which other nodes and people reach it."""

    listen: Address = DEFAULT_HTTP
    advertise: HttpUrl | None = None

    @property
    def advertised(self) -> HttpUrl | None:
        """The URL for other nodes: as configured, else of the address it listens on; None when that is not enough."""
        return self.advertise or (HttpUrl(f"http://{self.listen}") if _is_reachable(self.listen) else None)


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """The replication port: where it listens, the address by which replicas reach it, and when silence is death.

    Each end sends a message every ``heartbeat_s`` at the latest, and gives the other up after ``timeout_s`` of silence.
    """

    listen: Address = DEFAULT_REPLICATION
    advertise: Address | None = None
    heartbeat_s: Seconds = field(default=Seconds(2.0), metadata={KEY: "heartbeat"})
    timeout_s: Seconds = field(default=Seconds(6.0), metadata={KEY: "timeout"})

    @property
    def advertised(self) -> Address | None:
        """The address for replicas: as configured, else the one it listens on; None when that is not enough."""
        return self.advertise or (self.listen if _is_reachable(self.listen) else None)


@dataclass(frozen=True, slots=True)
class PrimarySettings:
    """The node that is primary for good, under lease type ``static``."""

    name: str
    http: HttpUrl
    replication: Address


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """Lease type ``static``: the primary is written in the configuration."""

    primary: PrimarySettings | None = None


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS to Consul: the authority that signed its certificate (the system's when None), and our own certificate."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """Lease type ``consul``: agents that are asked one after the other, and the key under which everything is kept.

    ``ttl_s``: for so long the primary stays primary without a sign of life. ``outage``: what it does when Consul gives
    no answer for that long: stop, or continue while every other member confirms that it knows of no other primary.
    """

    urls: tuple[HttpUrl, ...] = (HttpUrl("http://127.0.0.1:8500"),)
    key: str = "litereplica/primary"
    token: Secret = NO_SECRET
    ttl_s: Seconds = field(default=Seconds(5.0), metadata={KEY: "ttl"})
    outage: Literal["stop", "continue"] = "stop"
    tls: TlsSettings = field(default_factory=TlsSettings)


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """How it is decided who is primary. ``standalone``: this node, alone."""

    type: Literal["standalone", "static", "consul"] = "standalone"
    static: StaticSettings = field(default_factory=StaticSettings)
    consul: ConsulSettings = field(default_factory=ConsulSettings)


@dataclass(frozen=True, slots=True)
class WritesSettings:
    """What becomes of transactions that applications make on a replica.

    ``on_replica``: ``forward`` commits them on the primary; ``lock`` too, but only while this node holds the
    database's lock; ``refuse`` opens databases for reading only. ``conflict_lease_s``: so long at most the primary
    keeps a database at rest for a replica whose transaction was refused as stale. ``timeout_s``: so long a commit on a
    replica waits for its outcome.
    """

    on_replica: Literal["forward", "lock", "refuse"] = "forward"
    conflict_lease_s: Seconds = field(default=Seconds(1.0), metadata={KEY: "conflict_lease"})
    timeout_s: Seconds = field(default=Seconds(10.0), metadata={KEY: "timeout"})


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Log lines on standard error: their form and the least level that is shown."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a node is told. ``exec`` is the supervised application's command line, empty for none."""

    node: NodeSettings = field(default_factory=NodeSettings)
    mount: MountSettings = field(default_factory=MountSettings)
    data: DataSettings = field(default_factory=DataSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    lease: LeaseSettings = field(default_factory=LeaseSettings)
    writes: WritesSettings = field(default_factory=WritesSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    exec: tuple[str, ...] = ()
    log: LogSettings = field(default_factory=LogSettings)
