"""What a node remembers of its cluster: which one it is, the highest epoch, and who was primary when.

Knows the file's bytes (docs/formats.md, "Data directory"): a msgpack array, then xxh3_64 of that (8 bytes, LE). Does
not know leases. The epoch is durable here before the first commit of it is accepted, so that not even a wiped Consul
brings an old one back.
"""

import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgpack
import xxhash

from litereplica.cluster.lease import Reign
from litereplica.errors import Corrupt, Refused
from litereplica.store.disk import Disk

STATE_NAME: Final = "cluster"
STATE_VERSION: Final = 2
_BEFORE_PARTED: Final = 1
"""The version before, which is read as well."""
REIGNS_LIMIT: Final = 100
"""As many as are kept beside the lease."""
_CHECKSUM_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class ClusterState:
    """``cluster``: the cluster's id, "" before the first contact. ``node_id``: this data directory's own, for good.

    ``epoch``: the highest ever seen. ``reigns``: oldest first, by epoch. ``parted``: as cluster.lease.Standing has it;
    durable before the first record of a newer history comes here.
    """

    cluster: str = ""
    node_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    epoch: int = 0
    reigns: tuple[Reign, ...] = ()
    parted: bool = False

    def with_reigns(self, reigns: tuple[Reign, ...]) -> "ClusterState":
        """The same with these primaries added; of one epoch the newer entry counts."""
        known = {each.epoch: each for each in (*self.reigns, *reigns)}
        newest = sorted(known.values(), key=lambda each: each.epoch)[-REIGNS_LIMIT:]
        return replace(self, reigns=tuple(newest))

    def encode(self) -> bytes:
        """Return the file's bytes."""
        reigns = [(each.epoch, each.node, each.timestamp_ms, each.reason, each.positions) for each in self.reigns]
        body: bytes = msgpack.packb((STATE_VERSION, self.cluster, self.node_id, self.epoch, reigns, self.parted))
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(_CHECKSUM_BYTES, "little")


def load_state(root: Path) -> ClusterState:
    """Read the file of a data directory; a new state when there is none. Raises Corrupt, Refused (newer version)."""
    path = root / STATE_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ClusterState()
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    damaged = Corrupt(
        f"{path} is damaged: keep a copy and remove it; the node then learns its cluster anew from the lease (with "
        f"several clusters on one Consul check lease.consul.key first)"
    )
    if xxhash.xxh3_64_intdigest(body).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise damaged
    try:
        fields: Any = msgpack.unpackb(body)
        if fields[0] == _BEFORE_PARTED:
            fields = [*fields, False]
        elif fields[0] != STATE_VERSION:
            raise Refused(
                f"{path} was written by a newer version (format {fields[0]}, this one reads {STATE_VERSION}): run the "
                f"newer litereplica"
            )
        _, cluster, node_id, epoch, reigns, parted = fields
        return ClusterState(cluster, node_id, epoch, tuple(Reign(*each) for each in reigns), parted is True)
    except (ValueError, TypeError, IndexError, msgpack.UnpackException):
        raise damaged from None


def save_state(disk: Disk, root: Path, state: ClusterState) -> None:
    """Replace the file, durably. Blocking. Raises OSError."""
    disk.write_file(root / STATE_NAME, state.encode())
