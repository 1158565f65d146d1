"""Figures for Prometheus.

Knows names, labels and what is counted as it happens; everything else is read from a status document when somebody
asks. Does not know who counts (node) or who asks (http).
"""

import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from litereplica import __version__
from litereplica.cluster.status import DatabaseStatus, NodeStatus

# A label must not have a value for every node's name: a reason is a sentence, of which this is left.
REASONS: Final = (
    ("a person asked", "forced"),
    ("hands off to", "handoff"),
    ("did not renew", "lapsed"),
    ("could not be renewed", "not_renewed"),
    ("no answer", "not_renewed"),
    ("the lease is lost", "lost"),
    ("cut off", "cut_off"),
    ("nobody has the lease", "vacant"),
    ("still this node's", "found_again"),
    ("has the lease", "other_holds"),
    ("has taken the lease", "other_holds"),
    ("could not", "failed"),
    ("stops", "stop"),
)
OUTCOMES: Final = ("done", "refused", "unknown")

Counts = Counter[tuple[str, ...]]


class Metrics(Collector):
    """One node's; it has a registry of its own, so that several nodes may live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._roles: Counts = Counter()
        self._renewals: Counts = Counter()
        self._status = _FromStatus()
        ProcessCollector(registry=self._registry)
        self._registry.register(self._status)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What was counted (called by the registry)."""
        what = "Changes of this node's role, or of its primary."
        yield _counter("litereplica_role_changes", what, ("to", "reason"), self._roles)
        yield _counter("litereplica_lease_renewals", "Renewals of the lease.", ("outcome",), self._renewals)

    def role_changed(self, to: str, reason: str) -> None:
        """This node is ``to`` (primary, replica) now; ``reason`` is the sentence that the log has too."""
        self._roles[to, kind_of(reason)] += 1

    def renewed(self, outcome: str) -> None:
        """A renewal ended: ``done``, ``refused`` or ``unknown``."""
        assert outcome in OUTCOMES, outcome
        self._renewals[(outcome,)] += 1

    def text(self, status: NodeStatus, accept: str = "") -> tuple[bytes, str]:
        """What Prometheus reads, and its content type. ``accept`` is the request's header of that name."""
        self._status.now = status
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind


def kind_of(reason: str) -> str:
    """One word for the reason of a change of role; ``other`` when there is none."""
    return next((kind for phrase, kind in REASONS if phrase in reason), "other")


class _FromStatus(Collector):
    """Everything that a status document says, as figures."""

    def __init__(self) -> None:
        self.now: NodeStatus | None = None

    def collect(self) -> Iterator[Metric]:
        now = self.now
        if now is None:
            return
        yield _gauge("litereplica_info", "What this is.", ("node", "version", "python"), {_info(now): 1.0})
        yield _single("litereplica_is_primary", "1 on the primary.", now.role == "primary")
        yield _single(
            "litereplica_ready", "1 when traffic may come here; on the primary: commits are accepted.", now.ready
        )
        yield _single("litereplica_epoch", "The highest epoch known here.", now.epoch)
        yield _single("litereplica_members", "Nodes of the cluster that are known here.", len(now.members))
        yield from _lease(now)
        yield from _databases(now.databases)
        yield from _replicas(now)
        yield from _writes(now)


def _info(now: NodeStatus) -> tuple[str, ...]:
    return now.node, __version__, platform.python_version()


def _lease(now: NodeStatus) -> Iterator[Metric]:
    lease = now.lease
    if lease is None:
        return
    yield _single("litereplica_lease_ttl_seconds", "What the holder of the lease promises.", lease.ttl_ms / 1000)
    if lease.remaining_ms is not None:
        what = "Until commits are refused unless the lease is renewed."
        yield _single("litereplica_lease_remaining_seconds", what, lease.remaining_ms / 1000)
    yield _single("litereplica_lease_outage", "1 while the lease's store is out of reach.", bool(lease.outage))
    what = "Applications that hold a write lock during a handoff."
    yield _single("litereplica_unyielding_applications", what, len(lease.unyielding))


def _databases(found: list[DatabaseStatus]) -> Iterator[Metric]:
    def each(name: str, what: str, values: Mapping[str, float]) -> Metric:
        return _gauge(name, what, ("database",), {(database,): value for database, value in values.items()})

    yield _single("litereplica_databases", "Databases on this node.", len(found))
    what = "Databases in which the self-check has found damaged pages."
    yield _single("litereplica_databases_damaged", what, sum(bool(database.damaged) for database in found))
    yield each("litereplica_database_txid", "The last transaction that is logged here.", _by_name(found, "txid"))
    yield each("litereplica_database_applied_txid", "The last that readers see.", _by_name(found, "applied"))
    yield each("litereplica_database_pages", "Its size.", {each.name: each.pages for each in found})
    size = {each.name: each.pages * each.page_size for each in found}
    yield each("litereplica_database_size_bytes", "Its size.", size)
    lag = {each.name: each.lag_ms / 1000 for each in found if each.lag_ms is not None}
    yield each("litereplica_database_lag_seconds", "Behind the primary; absent before the first contact.", lag)
    yield each(
        "litereplica_database_damaged_pages", "Damaged pages found.", {each.name: len(each.damaged) for each in found}
    )


def _by_name(found: list[DatabaseStatus], key: str) -> dict[str, float]:
    return {each.name: float(int(getattr(each, key), 16)) for each in found}


def _replicas(now: NodeStatus) -> Iterator[Metric]:
    if now.role != "primary":
        return
    connected = sum(each.connected for each in now.replicas)
    yield _single("litereplica_replicas_connected", "Replicas that are connected to this primary.", connected)
    yield _gauge(
        "litereplica_replica_connected",
        "1 while this replica is connected.",
        ("replica",),
        {(each.name,): each.connected for each in now.replicas},
    )
    yield _gauge(
        "litereplica_replica_lag_seconds",
        "Behind this primary; absent when it is not known.",
        ("replica",),
        {(each.name,): each.lag_ms / 1000 for each in now.replicas if each.lag_ms is not None},
    )


def _writes(now: NodeStatus) -> Iterator[Metric]:
    writes = now.writes
    if writes is None:
        return
    what = "Transactions of this node's applications that were sent to the primary, by what became of them."
    yield _counts("litereplica_forwarded_transactions", what, ("outcome",), writes.forwarded)
    what = "Transactions of this node's applications that the primary has not answered yet."
    yield _single("litereplica_forwarded_waiting", what, writes.waiting)
    what = "Transactions of replicas, by what this node answered as their primary."
    yield _counts("litereplica_taken_transactions", what, ("outcome",), writes.taken)
    what = "Write leases that this node gave as primary, after transactions that were stale."
    yield CounterMetricFamily("litereplica_forward_leases", what, value=float(writes.leases))
    what = "For how long databases were another node's to write, on this node as primary."
    yield _counts("litereplica_halt_seconds", what, ("kind",), writes.halt_seconds)
    halts = [(each.name, each.halt) for each in now.databases if each.halt is not None]
    halted: dict[tuple[str, ...], float] = {(name, halt.node, halt.kind): 1.0 for name, halt in halts}
    what = "1 while a node has the database to itself; only on the primary."
    yield _gauge("litereplica_halted", what, ("database", "node", "kind"), halted)
    locks: Counts = Counter((each.database, each.state) for each in writes.locks)
    yield _gauge("litereplica_locks", "Files DB-halt that are open here.", ("database", "state"), locks)


def _single(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=float(value))


def _gauge(name: str, what: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Metric:
    """A gauge with labels; ``values``: the labels' values → the figure."""
    family = GaugeMetricFamily(name, what, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, float(value))
    return family


def _counts(name: str, what: str, labels: tuple[str], values: Mapping[str, float]) -> Metric:
    """A counter with one label; ``values``: the label's values → the figure."""
    family = CounterMetricFamily(name, what, labels=labels)
    for value, count in values.items():
        family.add_metric((value,), float(count))
    return family


def _counter(name: str, what: str, labels: tuple[str, ...], counts: Counts) -> Metric:
    family = CounterMetricFamily(name, what, labels=labels)
    for label_values, count in counts.items():
        family.add_metric(label_values, float(count))
    return family
