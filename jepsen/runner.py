"""One run: a workload on a cluster while nemeses are at work, then everything healed, read, looked at and judged.

Knows the order of a run, and where its files are kept: ``history.jsonl``, ``report.html``, ``verdict`` and the log of
each node. Does not know what any workload, nemesis or checker does.
"""

import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jepsen.clients import Clients
from jepsen.cluster.cluster import Cluster
from jepsen.description import Description, Replication
from jepsen.ending import Ending, NodeEnd
from jepsen.expected_log import EXPECTED
from jepsen.judge import Judgement, judge, verdict_line
from jepsen.lines import Record
from jepsen.nemeses import NEMESES, needs
from jepsen.nemeses.schedule import Schedule, plan
from jepsen.node_log import NodeLog
from jepsen.observer import Observer
from jepsen.recorder import Recorder
from jepsen.report import page
from jepsen.session import Place
from jepsen.workloads import WORKLOADS
from jepsen.workloads.base import Workload
from litereplica import __version__
from tests.failover.network import Network

CLIENTS_OF_A_NODE: Final = 2
SETTLED_LIMIT_S: Final = 60.0
"""After everything was healed: a ttl, an election, catching up, on a busy machine."""
SHOWN_CHARACTERS: Final = 500
"""Of an error that comes with the log of a node, which is kept beside the history."""
HISTORY: Final = "history.jsonl"
REPORT: Final = "report.html"
VERDICT: Final = "verdict"

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """``nemeses``: names. ``nodes``: how many."""

    workload: str
    nemeses: tuple[str, ...]
    seconds: float
    seed: int
    nodes: int = 3
    replication: Replication = "async"

    @property
    def title(self) -> str:
        return f"{self.workload} × {','.join(self.nemeses) or 'no nemesis'}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``problems``: of the run itself: what a nemesis could not do, or why the cluster was not healed in time.

    ``usable``: whether another run can be made on the same cluster.
    """

    record: Record
    judgement: Judgement
    problems: tuple[str, ...]
    usable: bool


@contextlib.contextmanager
def cluster_for(plans: Sequence[Plan]) -> Iterator[Cluster]:
    """One on which all of these can be run: they agree in what concerns the cluster."""
    first = plans[0]
    names = [chr(ord("a") + place) for place in range(first.nodes)]
    nemeses = {name for each in plans for name in each.nemeses}
    on_replica = "forward" if any(WORKLOADS[each.workload].on_replica == "forward" for each in plans) else "refuse"
    needed: dict[str, Any] = dict(needs(nemeses))
    with Cluster(names, seed=first.seed, replication=first.replication, on_replica=on_replica, **needed) as cluster:
        yield cluster


def run(plan_: Plan, folder: Path, say: Say) -> Outcome:
    """On a cluster of its own."""
    with cluster_for([plan_]) as cluster:
        return run_on(cluster, plan_, folder, say)


def run_on(cluster: Cluster, plan_: Plan, folder: Path, say: Say) -> Outcome:
    """On a cluster that is well; ``folder`` is made and filled."""
    folder.mkdir(parents=True, exist_ok=True)
    workload = WORKLOADS[plan_.workload](f"{plan_.workload}-{time.monotonic_ns():x}")
    cluster.begin()
    with (folder / HISTORY).open("w", encoding="utf-8") as stream:
        recorder = Recorder(stream, cluster.clock_ns, _description(plan_, cluster, workload))
        problems = _work(cluster, plan_, workload, recorder)
        ending = _ending(cluster, workload)
        record = recorder.end(ending)
    judgement = judge(record, clock=time.monotonic, expected=EXPECTED)
    (folder / REPORT).write_text(page(record, judgement), encoding="utf-8")
    lines = [verdict_line(judgement), *problems, *anomalies(judgement)]
    (folder / VERDICT).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for node in cluster.all:
        shutil.copyfile(node.log_file, folder / f"{node.name}.log")
    say(lines[0])
    for line in problems:
        say(f"  {line}")
    return Outcome(record, judgement, tuple(problems), not problems and not any(each.problem for each in ending.nodes))


def anomalies(judgement: Judgement) -> list[str]:
    """One line each."""
    return [
        f"{result.checker}: {anomaly.kind}: {anomaly.text}"
        for result in judgement.results
        for anomaly in result.anomalies
    ]


def _description(plan_: Plan, cluster: Cluster, workload: Workload) -> Description:
    return Description(
        workload=plan_.workload,
        nodes=tuple(cluster.nodes),
        nemeses=plan_.nemeses,
        seed=plan_.seed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        replication=plan_.replication,
        stale_reads=workload.stale_reads,
        forwards=cluster.forwards,
        total=workload.total,
        accounts=workload.accounts,
    )


def _work(cluster: Cluster, plan_: Plan, workload: Workload, recorder: Recorder) -> list[str]:
    """Clients and nemeses, until all is healed and everything has been read; what went wrong with the run itself."""
    problems: list[str] = []
    network: Network = cluster.network
    places = {name: Place(cluster.mount(name), network.namespace(name)) for name in cluster.nodes}
    logs = {name: NodeLog(node) for name, node in cluster.nodes.items()}
    seed = str(plan_.seed)
    with (
        Observer(cluster.nodes, cluster.clock_ns, recorder.observed) as observer,
        Clients(
            workload, places, recorder, observer, logs, seed=seed, count=CLIENTS_OF_A_NODE * len(places)
        ) as clients,
    ):
        clients.prepare(cluster.primary().name)
        cluster.await_settled()
        cluster.kill_client = clients.strike
        began = time.monotonic()
        clients.start(seed)
        try:
            problems += _break(cluster, plan_, recorder)
            time.sleep(max(0.0, began + plan_.seconds - time.monotonic()))
            clients.stop()
            cluster.await_settled(SETTLED_LIMIT_S)
            clients.finish(workload.last(list(places)))
        except AssertionError as error:
            problems.append(f"it was not healed: {str(error)[:SHOWN_CHARACTERS]}")
        finally:
            cluster.kill_client = None
    return problems


def _break(cluster: Cluster, plan_: Plan, recorder: Recorder) -> list[str]:
    """All turns of all nemeses; what they could not do. AssertionError when it cannot be healed."""
    chosen = {name: NEMESES[name]() for name in plan_.nemeses}
    turns = plan(chosen, plan_.seconds, plan_.seed, cluster.ttl_s)
    schedule = Schedule(cluster, chosen, turns, plan_.seed)
    schedule.run(lambda _type, f, value: recorder.nemesis(f, value), threading.Event())
    return schedule.problems


def _ending(cluster: Cluster, workload: Workload) -> Ending:
    """What is found; an ending that says so when nothing can be."""
    try:
        return cluster.ending(workload.databases, calls_in)
    except (AssertionError, OSError) as error:
        return Ending(tuple(NodeEnd(name, problem=f"not looked at: {error}") for name in cluster.nodes))


def calls_in(_name: str, database: Path) -> Iterable[int]:
    """The calls whose rows are in a copy of a database; none when it has no such table (yet)."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'calls'").fetchone():
            return []
        return [call for (call,) in connection.execute("SELECT call FROM calls")]
