"""What a node says about itself.

Knows the fields of the status document (docs: HTTP, ``GET /status``). Does not know where they come from.
"""

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["primary", "replica"]


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """One database here; ``txid`` and ``checksum`` are 16 hex digits, ``lag_ms`` is None before the first contact.

    ``damaged``: numbers of pages that the self-check has found wrong, at most 100 of them.
    """

    name: str
    txid: str
    checksum: str
    applied: str
    journal_mode: str
    page_size: int
    pages: int
    lag_ms: int | None
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaPosition:
    """How far a replica is with one database, as 16 hex digits."""

    logged: str
    applied: str


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica as its primary sees it."""

    name: str
    connected: bool
    address: str
    databases: dict[str, ReplicaPosition]
    lag_ms: int | None


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """The lease as this node knows it.

    ``type``: of the configuration. ``holder``: a node's name. ``remaining_ms``: until the fence closes, on the primary;
    None elsewhere. ``outage``: what is wrong with the lease's store, "" when nothing is. ``unyielding``: applications
    that hold SQLite's write lock during a handoff. ``cluster``: the cluster's id, "" before it is known.
    """

    type: str
    holder: str | None
    epoch: int
    ttl_ms: int
    remaining_ms: int | None = None
    outage: str = ""
    unyielding: list[str] = field(default_factory=list)
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A node of the cluster as it published itself; ``total`` is the sum of the TXIDs of its databases."""

    name: str
    http: str
    replication: str
    candidate: bool
    priority: int
    epoch: int
    total: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node; ``primary`` names the primary as this node knows it. ``members`` includes this node."""

    node: str
    role: Role
    primary: str | None
    epoch: int
    ready: bool
    reason: str
    databases: list[DatabaseStatus]
    replicas: list[ReplicaStatus]
    lease: LeaseStatus | None = None
    members: list[MemberStatus] = field(default_factory=list)
