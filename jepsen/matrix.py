"""Many runs, one line each in a file that grows: every workload under every nemesis, or what covers all of both once.

A file that is there already is gone on with: cells that it has are not run again. Knows cells and their figures. Does
not know how a run is made.
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import cattrs

from jepsen.availability import EVERYTHING
from jepsen.cluster.cluster import Cluster
from jepsen.history import Malformed
from jepsen.nemeses import NEMESES
from jepsen.runner import Outcome, Plan, Say, run_on, setup_for
from jepsen.workloads import WORKLOADS

SHORT: Final[dict[str, tuple[str, ...]]] = {
    "append": ("kill", "isolate-primary"),
    "register": ("pause-long", "wipe-consul"),
    "set": ("kill-all", "kill-client"),
    "bank": ("halves", "disk-full"),
    "counter": ("one-way", "clock"),
    "monotonic": ("failover", "slow"),
    "own-writes": ("ring", "pause-short"),
    "ddl": ("rejoin", "kill-applier"),
    "multi": ("peers-only", "consul-leader"),
    "journal": ("io-error", "flapping"),
    "anywhere": ("consul-only", "failover"),
}
"""Every workload and every nemesis, once at least."""
SHORT_S: Final = 10.0
"""Of each of them: with what comes before and after all take less than five minutes."""
SHORT_TOGETHER: Final[tuple[tuple[str, ...], ...]] = (
    ("kill", "isolate-primary", "failover", "consul-leader", "kill-client", "clock", "flapping"),
    ("pause-long", "halves", "disk-full", "one-way", "kill-applier", "wipe-consul", "rejoin"),
    ("kill-all", "ring", "io-error", "consul-only", "peers-only", "slow", "pause-short"),
)
"""Every nemesis once; in each round some that break different things, two or three at a time."""
SHORT_TOGETHER_S: Final = 35.0
"""Of each of them, with a turn for every nemesis of it."""
MOST_WORKLOADS: Final = 150
"""On one cluster, one after the other: nodes remember all databases that were dropped."""
FAILED: Final = "no-ending"
"""The anomaly of a run that broke off."""

Word = Literal["valid", "INVALID", "UNKNOWN"]
Clusters = Literal["new", "alike", "one"]
Key = tuple[str, str, float, int]
Round = tuple[Plan, ...]
"""What is run at once: plans that differ in their workloads only."""
SHOWN_CHARACTERS: Final = 2000
"""Of an error that comes with the log of a node."""


@dataclass(frozen=True, slots=True)
class Under:
    """Writes while one nemesis was at work: of how many seconds in which somebody asked how many accepted some.

    ``gaps_s``: how long nobody accepted any, each time.
    """

    nemesis: str
    asked_s: float
    accepted_s: float
    gaps_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one workload in a run. ``anomalies``: by kind. ``history``: its folder, empty when it is not kept.

    ``under``: of the whole run, of the time without a nemesis, and under each; empty in files from before it was noted.
    It is of all workloads of the run, as ``run`` names it, and so the same in the cells of all these.
    """

    workload: str
    nemeses: str
    seconds: float
    seed: int
    verdict: Word
    operations: int = 0
    acknowledged: int = 0
    failed: int = 0
    indeterminate: int = 0
    failovers: int = 0
    writes_asked_s: float = 0.0
    writes_accepted_s: float = 0.0
    gaps: int = 0
    longest_gap_s: float = 0.0
    anomalies: dict[str, int] | None = None
    problems: tuple[str, ...] = ()
    history: str = ""
    under: tuple[Under, ...] = ()
    run: str = ""

    @property
    def key(self) -> Key:
        return self.workload, self.nemeses, self.seconds, self.seed


def key_of(plan: Plan) -> Key:
    """By which a cell is known."""
    return plan.workload, ",".join(plan.nemeses), plan.seconds, plan.seed


def plans(workloads: Iterable[str], nemeses: Sequence[str], seconds: float, seed: int) -> list[Round]:
    """Every one of these with every one of those, each by itself."""
    return [(Plan(workload, (nemesis,), seconds, seed),) for workload in workloads for nemesis in nemeses]


def together(
    workloads: Sequence[str], nemeses: Sequence[str], seconds: float, seed: int, *, forward_all: bool = False
) -> list[Round]:
    """The same cells, all workloads at once under one nemesis after the other.

    Those that need replicas which take writes have a round of their own after all others, unless ``forward_all``:
    where replicas take writes the checker of primaries cannot say of every acknowledgement whose it was.
    """
    kinds = {WORKLOADS[name].on_replica for name in workloads}
    groups = [
        [name for name in workloads if WORKLOADS[name].on_replica == kind] for kind in sorted(kinds, reverse=True)
    ]
    return [
        tuple(Plan(workload, (nemesis,), seconds, seed) for workload in group)
        for group in ([list(workloads)] if forward_all else groups)
        for nemesis in _by_parts(nemeses)
    ]


def _by_parts(nemeses: Sequence[str]) -> list[str]:
    """Those that need the same of a cluster come one after the other."""
    return sorted(nemeses, key=lambda name: sorted(NEMESES[name]().needs))


def legs(plans: Round, times: int) -> list[Round]:
    """The same again and again, with the seeds that follow: a long run whose histories do not grow too long."""
    return [tuple(replace(plan, seed=plan.seed + leg) for plan in plans) for leg in range(times)]


def short_plans(seed: int) -> list[Round]:
    """The short form."""
    return [(Plan(workload, nemeses, SHORT_S, seed),) for workload, nemeses in SHORT.items()]


def short_together(seed: int) -> list[Round]:
    """The short form of all workloads at once."""
    return [
        tuple(Plan(workload, nemeses, SHORT_TOGETHER_S, seed) for workload in WORKLOADS) for nemeses in SHORT_TOGETHER
    ]


def stored(path: Path) -> list[Cell]:
    """What a file of cells has; nothing when there is none. A last line that was cut off is left out."""
    if not path.exists():
        return []
    *whole, _rest = path.read_text(encoding="utf-8").split("\n")
    return [cattrs.structure(json.loads(line), Cell) for line in whole]


def run_all(
    rounds: Sequence[Round], out: Path, cells: Path, say: Say, *, clusters: Clusters = "new", keep: bool = False
) -> list[Cell]:
    """Those that ``cells`` does not have yet; all that it then has of those wanted.

    ``clusters``: ``new`` for each round; ``alike``: one for rounds that want the same of it, as long as it is well;
    ``one``: the same, and it has what any of them wants. ``keep``: histories of valid runs too.
    """
    done = {each.key: each for each in stored(cells)}
    left = [tuple(plan for plan in plans if key_of(plan) not in done) for plans in rounds]
    cells.parent.mkdir(parents=True, exist_ok=True)
    for made in _made([plans for plans in left if plans], out, say, clusters):
        for cell in made:
            done[cell.key] = _kept(cell, out, keep=keep)
            with cells.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(done[cell.key]), ensure_ascii=False) + "\n")
    return [done[key_of(plan)] for plans in rounds for plan in plans]


def _kept(cell: Cell, out: Path, *, keep: bool) -> Cell:
    """The history of what is valid is removed, unless it shall be kept."""
    if cell.verdict != "valid" or keep:
        return cell
    shutil.rmtree(out / cell.history)
    return replace(cell, history="")


def _made(rounds: Sequence[Round], out: Path, say: Say, clusters: Clusters) -> Iterator[list[Cell]]:
    """The cells of one round after the other. One that breaks off has cells too: an anomaly, with its reason."""
    setups = [setup_for([plan for plans in rounds for plan in plans] if clusters == "one" else each) for each in rounds]
    age = 0
    stack = contextlib.ExitStack()
    cluster: Cluster | None = None
    with stack:
        for plans, setup, following in zip(rounds, setups, [*setups, None][1:], strict=True):
            names = [_name(plan) for plan in plans]
            cells: list[Cell] = []
            usable = False
            try:
                cluster = cluster or stack.enter_context(setup.cluster(plans[0].seed))
                outcomes = run_on(cluster, plans, [out / name for name in names], say)
                usable = outcomes[0].usable
                cells = [cell_of(*each) for each in zip(plans, outcomes, names, strict=True)]
                age += len(plans)
                if clusters == "new" or not usable or setup != following or age >= MOST_WORKLOADS:
                    cluster, age = None, 0
                    stack.close()
            except (AssertionError, Malformed) as error:
                say(f"{plans[0].title}: broke off, or could not be taken down in order: {error}")
                cells = cells or [
                    Cell(*key_of(plan), "INVALID", history=name) for plan, name in zip(plans, names, strict=True)
                ]
                cells = [_broken(cell, str(error)) for cell in cells]
                if cluster is not None:
                    cluster, age = None, 0
                    _close(stack, say)
            yield cells


def _close(stack: contextlib.ExitStack, say: Say) -> None:
    try:
        stack.close()
    except AssertionError as error:
        say(f"it could not be taken down in order: {error}")


def _broken(cell: Cell, why: str) -> Cell:
    anomalies = {**(cell.anomalies or {}), FAILED: 1}
    return replace(cell, verdict="INVALID", anomalies=anomalies, problems=(*cell.problems, why[:SHOWN_CHARACTERS]))


def _name(plan: Plan) -> str:
    """Of its folder."""
    return f"{plan.workload}-{'+'.join(in_short(plan.nemeses)) or 'nothing'}-{plan.seconds:g}s-{plan.seed}"


def in_short(nemeses: Sequence[str]) -> Sequence[str]:
    """``all`` instead of the names of all that there are."""
    return ("all",) if set(nemeses) == set(NEMESES) else nemeses


def cell_of(plan: Plan, outcome: Outcome, history: str) -> Cell:
    """The figures of a run."""
    judgement = outcome.judgement
    anomalies: Counter[str] = Counter()
    for result in judgement.results:
        for kind in {anomaly.kind for anomaly in result.anomalies}:
            anomalies[f"{result.checker}: {kind}"] = result.counts[kind]
    words: dict[object, Word] = {True: "valid", False: "INVALID", "unknown": "UNKNOWN"}
    epochs = max((result.counts["epochs"] for result in judgement.results if "epochs" in result.counts), default=0)
    whole = next((each for each in judgement.availability.shares if each.nemesis == EVERYTHING), None)
    return Cell(
        *key_of(plan),
        words[judgement.valid],
        operations=len(judgement.calls),
        acknowledged=sum(call.ok for call in judgement.calls),
        failed=sum(call.failed for call in judgement.calls),
        indeterminate=sum(call.indeterminate for call in judgement.calls),
        failovers=max(0, epochs - 1),
        writes_asked_s=round(whole.asked_s, 3) if whole else 0.0,
        writes_accepted_s=round(whole.accepted_s, 3) if whole else 0.0,
        gaps=whole.gaps if whole else 0,
        longest_gap_s=round(whole.longest_s, 3) if whole else 0.0,
        anomalies=dict(anomalies),
        problems=outcome.problems,
        history=history,
        under=tuple(
            Under(
                each.nemesis,
                round(each.asked_s, 3),
                round(each.accepted_s, 3),
                tuple(round(length_s, 3) for length_s in each.lengths_s),
            )
            for each in outcome.accepted.shares
        ),
        run=outcome.run,
    )
