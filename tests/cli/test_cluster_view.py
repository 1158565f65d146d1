"""``status`` of a whole cluster, and ``history``."""

import json
import subprocess
import sys
import time

from litereplica.cli.history import history_lines
from litereplica.cli.status import shown_lines, status_lines
from litereplica.cluster.lease import Reign
from tests.cli.running import CommandLine
from tests.http.twin import running_beside

FIRST = f"{10:016x}"
TXID = f"{12:016x}"


def test_status_asks_one_node_and_shows_all(litereplica: CommandLine) -> None:
    with running_beside("a", "b", "c") as cluster:
        cluster["c"].ready, cluster["c"].reason = False, "has not yet caught up"
        url = cluster["b"].url
        ran, document = litereplica("status", "--url", url), litereplica("status", "--json", "--url", url)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "NODE  ROLE     EPOCH  DATABASES  TRANSACTIONS  BEHIND  LAG   READY",
        "a     primary      7          1            10       0  0 ms  yes",
        "b     replica      7          1            10       0  0 ms  yes",
        "c     replica      7          1            10       0  0 ms  no     has not yet caught up",
        "",
        "DATABASE  NODE  TXID              CHECKSUM          JOURNAL MODE  PAGES  LAG",
        *(
            f"app.db    {name}     000000000000000a  000000000000001e  wal              12  0 ms"
            for name in ("a", "b", "c")
        ),
    ]
    assert [each["name"] for each in json.loads(document.out)["nodes"]] == ["a", "b", "c"]


def test_what_is_out_of_order_is_said() -> None:
    database = {"name": "app.db", "txid": TXID, "checksum": TXID, "journal_mode": "wal", "pages": 1, "lag_ms": 20_000}
    lease = {"outage": "no answer from 3 agents", "remaining_ms": 2500, "unyielding": ["app.db: process 7 (python3)"]}
    a = {"node": "a", "role": "primary", "epoch": 7, "ready": False, "reason": "fenced", "lease": lease}
    b = {"node": "b", "role": "replica", "epoch": 7, "ready": True}
    lines = shown_lines(
        {
            "node": "a",
            "primary": None,
            "nodes": [
                {"name": "a", "answers": True, "status": a | {"databases": []}},
                {"name": "b", "answers": True, "status": b | {"databases": [database | {"damaged": [3]}]}},
                {"name": "c", "answers": False, "reason": "connection refused"},
            ],
        }
    )
    assert lines == [
        "NODE  ROLE     EPOCH  DATABASES  TRANSACTIONS  BEHIND  LAG   READY",
        "a     primary  7      0          0             -       -     no     fenced",
        "b     replica  7      1          12            -       20 s  yes",
        "c     -        -      -          -             -       -     no     no answer: connection refused",
        "no node accepts commits",
        "a: the lease is out of reach (no answer from 3 agents); commits go on for 2.5 s",
        "a: in the way of a handoff: app.db: process 7 (python3)",
        "",
        "DATABASE  NODE  TXID              CHECKSUM          JOURNAL MODE  PAGES  LAG",
        f"app.db    b     {TXID}  {TXID}  wal               1  20 s",
        "app.db has damaged pages on b: litereplica verify names them",
    ]


def test_a_node_that_is_alone_is_shown_with_its_replicas() -> None:
    replica = {"name": "b", "connected": True, "databases": {}, "lag_ms": 3}
    status = {"node": "a", "role": "primary", "epoch": 1, "ready": True, "databases": [], "replicas": [replica]}
    lines = shown_lines({"node": "a", "primary": "a", "nodes": [{"name": "a", "answers": True, "status": status}]})
    assert lines[0] == "node     a"
    assert lines[-1] == "b        yes        -         -       -        3 ms"


def test_a_replica_that_only_its_primary_knows_is_shown_beside_the_cluster() -> None:
    replica = {"name": "x", "connected": True, "databases": {}, "lag_ms": 3}
    nodes = [
        {"name": name, "answers": True, "status": {"node": name, "databases": [], "replicas": replicas}}
        for name, replicas in (("a", [replica, replica | {"name": "b"}]), ("b", []))
    ]
    lines = shown_lines({"node": "b", "primary": "a", "nodes": nodes})
    assert [line.split()[0] for line in lines[-2:]] == ["REPLICA", "x"]


def test_watch_shows_the_whole_cluster(litereplica: CommandLine) -> None:
    with (
        running_beside("a", "b") as cluster,
        subprocess.Popen(
            [sys.executable, "-m", "litereplica", "status", "--watch", "--url", cluster["a"].url],
            env=litereplica.environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        process.terminate()
    assert lines[0].startswith(cluster["a"].url)
    assert [line.split()[0] for line in lines[2:5]] == ["NODE", "a", "b"]


def test_a_history_is_a_table(litereplica: CommandLine) -> None:
    positions = {"app.db": f"{FIRST}/{TXID}", "x.db": f"{TXID}/{TXID}"}
    with running_beside("a") as cluster:
        cluster.history = (
            Reign(3, "b", 1_700_000_000_123, "nobody has the lease", {}),
            Reign(11, "a", 1_700_000_100_000, "b hands off to a", positions),
        )
        url = cluster["a"].url
        ran, document = litereplica("history", "--url", url), litereplica("history", "--json", "--url", url)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "EPOCH  NODE  SINCE                     FROM                                REASON",
        "    3  b     2023-11-14 22:13:20.123Z  -                                   nobody has the lease",
        "   11  a     2023-11-14 22:15:00.000Z  app.db 000000000000000a and 1 more  b hands off to a",
    ]
    assert json.loads(document.out)["history"][1]["positions"] == positions


def test_a_history_without_reigns_says_so() -> None:
    assert history_lines({"history": []}) == ["no primary yet, or none by election"]
    assert history_lines({"history": [{"epoch": 1, "timestamp_ms": 10**30}]})[1].split() == ["1", "-", "-", "-", "-"]


def test_who_has_a_database_to_himself_is_said_and_since_when() -> None:
    database = {"name": "app.db", "txid": TXID, "checksum": TXID, "journal_mode": "wal", "pages": 1, "lag_ms": 0}
    since_ms = 1_700_000_000_000
    at = time.strftime("%H:%M:%S", time.localtime(since_ms / 1000))

    def said(halt: dict[str, object]) -> str:
        status = {"node": "a", "role": "primary", "databases": [database | {"halt": halt}]}
        (alone,) = [line for line in status_lines(status) if "has the" in line or "held" in line]
        nodes = [{"name": name, "answers": True, "status": status | {"node": name}} for name in ("a", "b")]
        assert alone in shown_lines({"node": "a", "primary": "a", "nodes": nodes})
        return alone

    lock = {"node": "b", "kind": "lock", "since_ms": since_ms, "waiting": 2}
    assert said(lock) == f"b has the lock of app.db since {at}; 2 waiting"
    assert said(lock | {"kind": "lease", "waiting": 0}) == f"b has the write lease of app.db since {at}"
    assert said(lock | {"kind": "handoff", "node": "", "waiting": 0}) == f"app.db is held for a handoff since {at}"


def test_a_lock_that_was_lost_and_is_still_open_is_said() -> None:
    lock = {"database": "app.db", "state": "lost", "since_ms": 1, "reason": "the link is cut"}
    status = {"node": "b", "role": "replica", "writes": {"on_replica": "lock", "locks": [lock]}}
    assert (
        "b has lost the lock of app.db (the link is cut) and commits nothing to it: end the process that has "
        "app.db-halt open"
    ) in status_lines(status)


def test_a_replica_s_transactions_are_counted_by_outcome() -> None:
    writes = {"on_replica": "forward", "forwarded": {"committed": 12, "stale": 1, "refused": 0}, "locks": []}
    lines = status_lines({"node": "b", "role": "replica", "writes": writes})
    assert "writes   forward (12 committed, 1 stale)" in lines
    assert "writes   lock" in status_lines({"node": "b", "role": "replica", "writes": {"on_replica": "lock"}})
    assert not [line for line in status_lines({"role": "primary", "writes": writes}) if line.startswith("writes")]
