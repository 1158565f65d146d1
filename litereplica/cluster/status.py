"""What a node says about itself.

Knows the fields of the status document (docs: HTTP, ``GET /status``). Does not know where they come from.
"""

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["primary", "replica"]
HaltKind = Literal["lock", "lease", "handoff"]


@dataclass(frozen=True, slots=True)
class HaltStatus:
    """Who alone may write a database, besides what the primary's own applications have begun.

    ``node``: whose applications. ``kind``: ``lock`` (somebody has opened ``DB-halt``), ``lease`` (the retry of a stale
    transaction is awaited) or ``handoff`` (nobody: the role is about to go to ``node``, "" while that is not known).
    ``since_ms``: since 1970. ``waiting``: locks and leases that are waited for behind it.
    """

    node: str
    kind: HaltKind
    since_ms: int
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class LockStatus:
    """A lock that an application of this node has, or waits for: its ``DB-halt`` is open.

    ``state``: ``waiting``, ``held``, or ``lost`` (no transaction of the database is taken here until it is closed).
    ``reason``: why it was lost.
    """

    database: str
    state: Literal["waiting", "held", "lost"]
    since_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WritesStatus:
    """Transactions that cross from one node to another, counted since this node was started.

    ``on_replica``: of the configuration. ``forwarded``: transactions that applications of this node made while it was a
    replica, by outcome (node/forward_counts.py names them); ``waiting``: those without one yet. ``taken``: replicas'
    transactions, by what this node answered as primary; ``leases``, ``halt_seconds``: the write leases it gave, and for
    how long it was halted, by kind. ``locks``: every ``DB-halt`` that is open here.
    """

    on_replica: str
    forwarded: dict[str, int] = field(default_factory=dict)
    waiting: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    leases: int = 0
    halt_seconds: dict[str, float] = field(default_factory=dict)
    locks: list[LockStatus] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """One database here; ``txid`` and ``checksum`` are 16 hex digits, ``lag_ms`` is None before the first contact.

    ``damaged``: numbers of pages that the self-check has found wrong, at most 100 of them. ``halt``: on the primary,
    while somebody has it to himself.
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
    halt: HaltStatus | None = None


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
    """One node; ``primary`` names the primary as this node knows it. ``members`` includes this node.

    ``mount``: the directory in which applications of its machine see their databases. ``proxy``: the URL of its HTTP
    proxy for other nodes' proxies, "" without one.
    """

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
    mount: str = ""
    proxy: str = ""
    writes: WritesStatus | None = None
