"""One run: workloads on a cluster while nemeses are at work, then everything healed, read, looked at and judged.

Several workloads share the cluster, what breaks it and who looks on; each has databases, clients, a history and a
verdict of its own. Knows the order of a run, and where its files are kept: ``history.jsonl``, ``report.html``,
``verdict`` and the log of each node. Does not know what any workload, nemesis or checker does.
"""

import contextlib
import glob
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from jepsen.availability import Availability, availability
from jepsen.busy import Busy
from jepsen.checkers import log_lines
from jepsen.clients import Clients, Pace
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
from litereplica.store.store import folder_name
from tests.failover.network import Network

PAUSE_TOGETHER_S: Final = 0.012
"""For each workload of several, between two calls of a client."""
LOOK_AT: Final = "/v1/catalog/nodes"
"""What is asked of Consul to see whether it answers: its leader does, and there always is something."""
SETTLED_LIMIT_S: Final = 60.0
"""After everything was healed: a ttl, an election, catching up, on a busy machine."""
SETTLED_WITH_BUG_LIMIT_S: Final = 20.0
"""A planted bug may keep nodes from ever being at one."""
SHOWN_CHARACTERS: Final = 500
"""Of an error that comes with the log of a node, which is kept beside the history."""
HISTORY: Final = "history.jsonl"
REPORT: Final = "report.html"
VERDICT: Final = "verdict"
DATA: Final = "data"

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """One workload under some nemeses. ``nemeses``: names. ``nodes``: how many. ``mutation``: a bug that they have."""

    workload: str
    nemeses: tuple[str, ...]
    seconds: float
    seed: int
    nodes: int = 3
    replication: Replication = "async"
    mutation: str = ""

    @property
    def title(self) -> str:
        return f"{self.workload} × {','.join(self.nemeses) or 'no nemesis'}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``problems``: of the run itself: what a nemesis could not do, or why the cluster was not healed in time.

    ``usable``: whether another run can be made on the same cluster. ``run``: its name, the same for all workloads of
    it, as is ``accepted``: when some node accepted a write of any of them.
    """

    record: Record
    judgement: Judgement
    problems: tuple[str, ...]
    usable: bool
    run: str
    accepted: Availability


@dataclass(frozen=True, slots=True)
class Setup:
    """What a cluster is made with; runs that want the same may be made on one."""

    nodes: int
    replication: Replication
    on_replica: str
    parts: tuple[str, ...]
    proxied: tuple[str, ...] = ()
    mutation: str = ""

    @contextlib.contextmanager
    def cluster(self, seed: int) -> Iterator[Cluster]:
        """One of them, on which all is well."""
        names = [chr(ord("a") + place) for place in range(self.nodes)]
        parts: dict[str, Any] = {**dict.fromkeys(self.parts, True), "mutation": self.mutation}
        parts |= {"on_replica": self.on_replica, "replication": self.replication, "proxied": self.proxied}
        with Cluster(names, seed=seed, **parts) as cluster:
            yield cluster


def setup_for(plans: Sequence[Plan]) -> Setup:
    """On which all of these can be run: they agree in nodes and replication. Replicas take writes if one needs it."""
    first = plans[0]
    parts = needs({name for each in plans for name in each.nemeses})
    on_replica = "forward" if any(WORKLOADS[each.workload].on_replica == "forward" for each in plans) else "refuse"
    wanted = tuple(name for name, needed in parts.items() if needed)
    proxied = {name: None for each in plans for name in WORKLOADS[each.workload].proxied}
    return Setup(first.nodes, first.replication, on_replica, wanted, tuple(proxied), first.mutation)


def pace_of(workloads: int) -> Pace:
    """Of the clients of one workload of so many: all of them together leave the nodes as much of the machine as one."""
    alone = Pace()
    if workloads == 1:
        return alone
    return Pace(1, workloads * PAUSE_TOGETHER_S, max(alone.retry_s, 2 * workloads * PAUSE_TOGETHER_S))


@dataclass(slots=True)
class _Part:
    """One workload of a run."""

    plan: Plan
    folder: Path
    workload: Workload
    recorder: Recorder


def run(plans: Sequence[Plan], folders: Sequence[Path], say: Say) -> list[Outcome]:
    """On a cluster of its own."""
    with setup_for(plans).cluster(plans[0].seed) as cluster:
        return run_on(cluster, plans, folders, say)


def run_on(cluster: Cluster, plans: Sequence[Plan], folders: Sequence[Path], say: Say) -> list[Outcome]:
    """All at once, on a cluster that is well; they differ in their workloads only. Each folder is made and filled."""
    assert len({replace(each, workload="") for each in plans}) == 1, "one run has one schedule"
    cluster.clear()
    cluster.begin()
    with contextlib.ExitStack() as files:
        tag = f"{time.time_ns():x}"
        parts = [
            _part(cluster, plan_, folder, files, f"{plan_.workload}-{tag}")
            for plan_, folder in zip(plans, folders, strict=True)
        ]

        def observed(f: str, value: object) -> None:
            for each in parts:
                each.recorder.observed(f, value)

        with Busy([partial(cluster.consul.ask, server, LOOK_AT) for server in cluster.consul.machines], observed):
            problems = tuple(_work(cluster, parts, observed))
            endings = _endings(cluster, parts)
        records = [part.recorder.end(ending) for part, ending in zip(parts, endings, strict=True)]
    usable = not problems and not any(each.problem for ending in endings for each in ending.nodes)
    judgements = [judge(record, clock=time.monotonic, expected=EXPECTED) for record in records]
    accepted = accepted_by_any(judgements)
    logs: dict[str, Path] = {}
    outcomes = []
    for part, record, judgement in zip(parts, records, judgements, strict=True):
        (part.folder / REPORT).write_text(page(record, judgement), encoding="utf-8")
        lines = [verdict_line(judgement), *problems, *anomalies(judgement)]
        (part.folder / VERDICT).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        _keep_logs(cluster, part.folder, logs)
        if any(result.anomalies and result.checker != log_lines.NAME for result in judgement.results):
            _keep_data(cluster, part)
        say(lines[0])
        outcomes.append(Outcome(record, judgement, problems, usable, tag, accepted))
    for line in problems:
        say(f"  {line}")
    return outcomes


def _part(cluster: Cluster, plan_: Plan, folder: Path, files: contextlib.ExitStack, tag: str) -> _Part:
    folder.mkdir(parents=True, exist_ok=True)
    workload = WORKLOADS[plan_.workload](tag)
    stream = files.enter_context((folder / HISTORY).open("w", encoding="utf-8"))
    return _Part(plan_, folder, workload, Recorder(stream, cluster.clock_ns, _description(plan_, cluster, workload)))


def accepted_by_any(judgements: Sequence[Judgement]) -> Availability:
    """Of the writes of all workloads of one run: its histories have one clock and the same nemeses."""
    calls = sorted((call for each in judgements for call in each.calls), key=lambda call: call.invocation.time_ns)
    return availability(calls, judgements[0].periods)


def _keep_logs(cluster: Cluster, folder: Path, kept: dict[str, Path]) -> None:
    """The log of each node; several folders share one copy."""
    for node in cluster.all:
        path = folder / f"{node.name}.log"
        path.unlink(missing_ok=True)
        if node.name in kept:
            path.hardlink_to(kept[node.name])
        else:
            kept[node.name] = shutil.copyfile(node.log_file, path)


def _keep_data(cluster: Cluster, part: _Part) -> None:
    """What each node has of its databases, for whoever looks for the cause: files, logs, and what was put aside."""
    for node in cluster.all:
        target = part.folder / DATA / node.name
        for place in ("db", "diverged", "files"):
            for database in part.workload.databases:
                for path in (node.data / place).glob(f"{glob.escape(folder_name(database))}*"):
                    copy = shutil.copytree if path.is_dir() else shutil.copy2
                    (target / place).mkdir(parents=True, exist_ok=True)
                    # A node that is running may remove what it no longer needs.
                    with contextlib.suppress(OSError, shutil.Error):
                        copy(path, target / place / path.name)


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
        mutation=plan_.mutation,
    )


def _work(cluster: Cluster, parts: Sequence[_Part], observed: Callable[[str, object], None]) -> list[str]:
    """Clients and nemeses, until all is healed and everything has been read; what went wrong with the run itself."""
    problems: list[str] = []
    network: Network = cluster.network
    places = {name: Place(cluster.mount(name), network.namespace(name)) for name in cluster.nodes}
    logs = {name: NodeLog(node) for name, node in cluster.nodes.items()}
    plan_, pace = parts[0].plan, pace_of(len(parts))
    seed = str(plan_.seed)

    with (
        contextlib.ExitStack() as stack,
        Observer(cluster.nodes, cluster.clock_ns, observed) as observer,
        ThreadPoolExecutor(len(parts)) as threads,
    ):
        several = [
            stack.enter_context(Clients(each.workload, places, each.recorder, observer, logs, seed=seed, pace=pace))
            for each in parts
        ]
        primary = cluster.primary().name
        list(threads.map(lambda clients: clients.prepare(primary), several))
        cluster.await_settled()
        cluster.kill_client = lambda numbers: _strike(parts, several, numbers)
        began = time.monotonic()
        for clients in several:
            clients.start(seed)
        try:
            problems += _break(cluster, plan_, [each.recorder for each in parts])
            time.sleep(max(0.0, began + plan_.seconds - time.monotonic()))
            for clients in several:
                clients.let_end()
            for clients in several:
                clients.stop()
            cluster.await_settled(SETTLED_WITH_BUG_LIMIT_S if plan_.mutation else SETTLED_LIMIT_S)
            lasts = [each.workload.last(list(places)) for each in parts]
            list(threads.map(lambda one: one[0].finish(one[1]), zip(several, lasts, strict=True)))
        except AssertionError as error:
            problems.append(f"it was not healed: {str(error)[:SHOWN_CHARACTERS]}")
        finally:
            cluster.kill_client = None
    return problems


def _strike(parts: Sequence[_Part], several: Sequence[Clients], numbers: random.Random) -> str:
    """Kill -9 a client of any of the workloads, in a call if there is one; who, empty if nobody."""
    calling = [at for at, clients in enumerate(several) if clients.calling]
    at = numbers.choice(calling or range(len(several)))
    killed = several[at].strike(numbers)
    return f"{killed} of {parts[at].plan.workload}" if killed else ""


def _break(cluster: Cluster, plan_: Plan, recorders: Sequence[Recorder]) -> list[str]:
    """All turns of all nemeses; what they could not do. AssertionError when it cannot be healed."""
    chosen = {name: NEMESES[name]() for name in plan_.nemeses}
    turns = plan(chosen, plan_.seconds, plan_.seed, cluster.ttl_s)
    schedule = Schedule(cluster, chosen, turns, plan_.seed)

    def say(_type: str, f: str, value: object) -> None:
        for each in recorders:
            each.nemesis(f, value)

    schedule.run(say, threading.Event())
    return schedule.problems


def _endings(cluster: Cluster, parts: Sequence[_Part]) -> list[Ending]:
    """What is found; endings that say so when nothing can be."""
    try:
        return cluster.endings([each.workload.databases for each in parts], calls_in)
    except (AssertionError, OSError) as error:
        nothing = Ending(tuple(NodeEnd(name, problem=f"not looked at: {error}") for name in cluster.nodes))
        return [nothing] * len(parts)


def calls_in(_name: str, database: Path) -> Iterable[int]:
    """The calls whose rows are in a copy of a database; none when it has no such table (yet)."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'calls'").fetchone():
            return []
        return [call for (call,) in connection.execute("SELECT call FROM calls")]
