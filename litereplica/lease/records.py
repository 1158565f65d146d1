"""What is written in Consul, as text: the lease, the cluster, a member, an entry of the history.

Knows each value's JSON and how to tell a value of ours from another program's and from a newer version's. Does not know
keys, sessions or when anything is written. Pure.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from litereplica.cluster.lease import PROTOCOL, Endpoint, Holding, Member, Reign, Standing
from litereplica.errors import Unavailable

FORMAT: Final = 1
_MARK: Final = "litereplica/"

Found = TypeVar("Found")
Bytes = bytes | None


class Foreign(Unavailable):
    """A value that this version must not touch: something else's, or a newer version's. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """Which cluster this is, and what must outlive the lease's own key.

    ``epoch``: the highest so far. ``holder``: the lease as it was acquired, or as it was when its ``counts_on`` changed
    last; None once it was released. So a key that went by accident is not taken for a lease that was given up. Held by
    FORGOTTEN in a record that was made anew by who knows the epoch alone.
    """

    cluster: str
    epoch: int = 0
    holder: Holding | None = None


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A member, and the id of its data directory: the same at every start of the same node."""

    member: Member
    node_id: str


# ------------------------------------------------------------------------------------------------------------- writing
def write_lease(cluster: str, holding: Holding) -> bytes:
    """Return the value under the lease's key. The index is Consul's own."""
    return _dump({"cluster": cluster, **_holding(holding)})


def write_cluster(record: ClusterRecord) -> bytes:
    """Return the value under ``cluster``."""
    holder = None if record.holder is None else _holding(record.holder)
    return _dump({"cluster": record.cluster, "epoch": record.epoch, "holder": holder})


def write_member(record: MemberRecord) -> bytes:
    """Return the value under ``members/NAME``."""
    member = record.member
    return _dump(
        {
            **_endpoint(member.endpoint),
            "node_id": record.node_id,
            "epoch": member.standing.epoch,
            "total": member.standing.total,
            "whole": member.standing.whole and not member.standing.parted and not member.standing.emptied,
            "candidate": member.candidate,
            "priority": member.priority,
            "vacancy": member.vacancy,
            "protocol": member.protocol,
        }
    )


def write_reign(reign: Reign) -> bytes:
    """Return the value under ``history/EPOCH``."""
    return _dump(
        {
            "epoch": reign.epoch,
            "node": reign.node,
            "timestamp_ms": reign.timestamp_ms,
            "reason": reign.reason,
            "positions": reign.positions,
        }
    )


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(
        {"format": f"{_MARK}{FORMAT}", "protocol": PROTOCOL} | fields, separators=(",", ":"), ensure_ascii=False
    ).encode()


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "node": endpoint.node,
        "instance": endpoint.instance,
        "http": endpoint.http,
        "replication": endpoint.replication,
    }


def _holding(holding: Holding) -> dict[str, Any]:
    return {
        **_endpoint(holding.holder),
        "epoch": holding.epoch,
        "counter": holding.counter,
        "ttl_s": holding.ttl_s,
        "offered_to": holding.offered_to,
        "counts_on": list(holding.counts_on),
    }


# ------------------------------------------------------------------------------------------------------------- reading
def read_lease(key: str, value: Bytes, index: int) -> tuple[str, Holding]:
    """Return (cluster id, lease) of a value. Raises Foreign."""
    return _read(key, value, lambda fields: (_text(fields, "cluster"), _read_holding(fields, index)))


def read_cluster(key: str, value: Bytes, index: int) -> ClusterRecord:
    """Return the record; its holder gets this index. Raises Foreign."""

    def convert(fields: dict[str, Any]) -> ClusterRecord:
        holder = fields["holder"]
        return ClusterRecord(
            _text(fields, "cluster"),
            _number(fields, "epoch"),
            None if holder is None else _read_holding(holder, index),
        )

    return _read(key, value, convert)


def read_member(key: str, value: Bytes) -> MemberRecord:
    """Return the record. Raises Foreign."""

    def convert(fields: dict[str, Any]) -> MemberRecord:
        standing = Standing(_number(fields, "epoch"), _number(fields, "total"), fields["whole"] is True)
        priority = int(fields["priority"])
        vacancy = _number(fields, "vacancy")
        protocol = _number(fields, "protocol")
        member = Member(
            _read_endpoint(fields), standing, fields["candidate"] is True, priority, vacancy, protocol=protocol
        )
        return MemberRecord(member, _text(fields, "node_id"))

    return _read(key, value, convert)


def read_reign(key: str, value: Bytes) -> Reign:
    """Return the entry. Raises Foreign."""

    def convert(fields: dict[str, Any]) -> Reign:
        positions = {str(name): str(position) for name, position in fields["positions"].items()}
        return Reign(
            _number(fields, "epoch"),
            _text(fields, "node"),
            _number(fields, "timestamp_ms"),
            _text(fields, "reason"),
            positions,
        )

    return _read(key, value, convert)


def _read(key: str, value: Bytes, convert: Callable[[dict[str, Any]], Found]) -> Found:
    fields: dict[str, Any] = {}
    number = ""
    try:
        fields = json.loads(value or b"")
        number = fields["format"].removeprefix(_MARK)
        ours = fields["format"] == f"{_MARK}{int(number)}"
    except (ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise Foreign(f"the key '{key}' in Consul is used by something else: set lease.consul.key to another one")
    protocol = fields.get("protocol", 0)
    if int(number) > FORMAT or not isinstance(protocol, int) or protocol > PROTOCOL:
        raise Foreign(
            f"'{key}' in Consul was written by a newer litereplica (format {number}, protocol {protocol}; this one "
            f"knows {FORMAT} and {PROTOCOL}): update this node"
        )
    try:
        return convert(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Foreign(f"the value of '{key}' in Consul is damaged ({error!r}): delete that key") from error


def _read_endpoint(fields: dict[str, Any]) -> Endpoint:
    return Endpoint(*(_text(fields, name) for name in ("node", "instance", "http", "replication")))


def _read_holding(fields: dict[str, Any], index: int) -> Holding:
    ttl_s = float(fields["ttl_s"])
    if not 0 < ttl_s < math.inf:
        raise ValueError(f"ttl_s {ttl_s}")
    return Holding(
        _read_endpoint(fields),
        _number(fields, "epoch"),
        _number(fields, "counter"),
        ttl_s,
        index,
        _text(fields, "offered_to"),
        tuple(str(each) for each in fields.get("counts_on", ())),
    )


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(name)
    return value
