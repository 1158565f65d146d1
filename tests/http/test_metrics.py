"""``GET /metrics``, and what is counted."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from litereplica.cluster.status import HaltStatus, LeaseStatus, LockStatus, ReplicaStatus, WritesStatus
from litereplica.metrics import Metrics, kind_of
from tests.http.twin import TwinCluster, client, database, running


async def figures(cluster: TwinCluster, name: str) -> dict[str, float]:
    async with client() as asking:
        answer = await asking.get(cluster[name].url + "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


async def test_the_figures_are_those_of_the_status_at_that_moment() -> None:
    async with running("a", "b") as cluster:
        node = cluster["a"]
        node.databases = [database("app.db", 26), database("x.db", 3, damaged=(1, 2))]
        node.replicas = [ReplicaStatus("b", True, "", {}, 250), ReplicaStatus("c", False, "", {}, None)]
        node.lease = LeaseStatus("consul", "a", 7, 5000, 4250, unyielding=["app.db: process 1 (x)"])
        found = await figures(cluster, "a")
        assert {
            name: value for name, value in found.items() if not name.startswith(("process_", "litereplica_info"))
        } == {
            "litereplica_is_primary": 1,
            "litereplica_ready": 1,
            "litereplica_epoch": 7,
            "litereplica_members": 2,
            "litereplica_lease_ttl_seconds": 5,
            "litereplica_lease_remaining_seconds": 4.25,
            "litereplica_lease_outage": 0,
            "litereplica_unyielding_applications": 1,
            "litereplica_databases": 2,
            "litereplica_databases_damaged": 1,
            "litereplica_database_txid{database=app.db}": 26,
            "litereplica_database_txid{database=x.db}": 3,
            "litereplica_database_applied_txid{database=app.db}": 26,
            "litereplica_database_applied_txid{database=x.db}": 3,
            "litereplica_database_pages{database=app.db}": 12,
            "litereplica_database_pages{database=x.db}": 12,
            "litereplica_database_size_bytes{database=app.db}": 12 * 4096,
            "litereplica_database_size_bytes{database=x.db}": 12 * 4096,
            "litereplica_database_lag_seconds{database=app.db}": 0,
            "litereplica_database_lag_seconds{database=x.db}": 0,
            "litereplica_database_damaged_pages{database=app.db}": 0,
            "litereplica_database_damaged_pages{database=x.db}": 2,
            "litereplica_replicas_connected": 1,
            "litereplica_replica_connected{replica=b}": 1,
            "litereplica_replica_connected{replica=c}": 0,
            "litereplica_replica_lag_seconds{replica=b}": 0.25,
        }
        node.ready = False
        assert (await figures(cluster, "a"))["litereplica_ready"] == 0


async def test_a_lag_that_is_not_known_is_no_figure() -> None:
    async with running("a", "b") as cluster:
        cluster["b"].databases = [database("app.db", 5, None)]
        found = await figures(cluster, "b")
    assert "litereplica_database_lag_seconds{database=app.db}" not in found
    assert (found["litereplica_is_primary"], found["litereplica_lease_ttl_seconds"]) == (0, 5)


async def test_transactions_between_nodes_and_locks_are_counted_and_shown() -> None:
    async with running("a") as cluster:
        node = cluster["a"]
        node.databases = [replace(database("app.db", 26), halt=HaltStatus("b", "lock", 1)), database("x.db", 3)]
        node.writes = WritesStatus(
            "forward",
            forwarded={"committed": 12, "stale": 0},
            waiting=1,
            taken={"committed": 5},
            leases=3,
            halt_seconds={"lock": 1.5, "lease": 0.25},
            locks=[LockStatus("app.db", "held", 1), LockStatus("app.db", "waiting", 2), LockStatus("x.db", "lost", 3)],
        )
        found = await figures(cluster, "a")
    assert {
        name: value
        for name, value in found.items()
        if name.startswith(("litereplica_forward", "litereplica_taken", "litereplica_halt", "litereplica_lock"))
    } == {
        "litereplica_forwarded_transactions_total{outcome=committed}": 12,
        "litereplica_forwarded_transactions_total{outcome=stale}": 0,
        "litereplica_forwarded_waiting": 1,
        "litereplica_taken_transactions_total{outcome=committed}": 5,
        "litereplica_forward_leases_total": 3,
        "litereplica_halt_seconds_total{kind=lock}": 1.5,
        "litereplica_halt_seconds_total{kind=lease}": 0.25,
        "litereplica_halted{database=app.db,kind=lock,node=b}": 1,
        "litereplica_locks{database=app.db,state=held}": 1,
        "litereplica_locks{database=app.db,state=waiting}": 1,
        "litereplica_locks{database=x.db,state=lost}": 1,
    }


async def test_changes_of_role_and_renewals_are_counted_for_each_node_by_itself() -> None:
    async with running("a", "b") as cluster:
        metrics = cluster["a"].metrics
        metrics.role_changed("primary", "b did not renew its lease; it is this node's turn")
        metrics.role_changed("replica", "hands off to b")
        metrics.role_changed("primary", "c did not renew its lease")
        for outcome in ("done", "done", "unknown"):
            metrics.renewed(outcome)
        ours, others = await figures(cluster, "a"), await figures(cluster, "b")
    assert ours["litereplica_role_changes_total{reason=lapsed,to=primary}"] == 2
    assert ours["litereplica_role_changes_total{reason=handoff,to=replica}"] == 1
    assert ours["litereplica_lease_renewals_total{outcome=done}"] == 2
    assert ours["litereplica_lease_renewals_total{outcome=unknown}"] == 1
    assert not [name for name in others if "_total" in name and not name.startswith("process_")]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("a did not renew its lease, and a person asked for it", "forced"),
        ("a hands off to b", "handoff"),
        ("the lease is lost: c has taken it", "lost"),
        ("something new", "other"),
    ],
)
def test_a_reason_is_counted_by_its_kind_and_never_by_a_node_s_name(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


def test_an_unknown_outcome_of_a_renewal_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        Metrics().renewed("perhaps")


async def test_a_name_cannot_break_the_text() -> None:
    async with running("a") as cluster:
        cluster["a"].databases = [database('we"ird\\na\nme.db', 5)]
        found = await figures(cluster, "a")
    assert found['litereplica_database_txid{database=we"ird\\na\nme.db}'] == 5
