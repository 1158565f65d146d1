"""Many runs, one line each in a file that grows: every workload under every nemesis, or what covers all of both once.

A file that is there already is gone on with: cells that it has are not run again. Knows cells and their figures. Does
not know how a run is made.
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import cattrs

from jepsen.availability import EVERYTHING
from jepsen.cluster.cluster import Cluster
from jepsen.history import Malformed
from jepsen.runner import Outcome, Plan, Say, cluster_for, run, run_on

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
HEAD: Final = (
    "| workload | nemeses | verdict | calls | acknowledged | failed | indeterminate | failovers | writes accepted "
    "| longest gap | anomalies |"
)
FAILED: Final = "no-ending"
"""The anomaly of a run that broke off."""

Word = Literal["valid", "INVALID", "UNKNOWN"]
Key = tuple[str, str, float, int]


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one run. ``anomalies``: by kind. ``history``: its folder, empty when it was not kept."""

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

    @property
    def key(self) -> Key:
        return self.workload, self.nemeses, self.seconds, self.seed


def key_of(plan: Plan) -> Key:
    """By which a cell is known."""
    return plan.workload, ",".join(plan.nemeses), plan.seconds, plan.seed


def plans(workloads: Iterable[str], nemeses: Sequence[str], seconds: float, seed: int) -> list[Plan]:
    """Every one of these with every one of those."""
    return [Plan(workload, (nemesis,), seconds, seed) for workload in workloads for nemesis in nemeses]


def short_plans(seed: int) -> list[Plan]:
    """The short form."""
    return [Plan(workload, nemeses, SHORT_S, seed) for workload, nemeses in SHORT.items()]


def stored(path: Path) -> list[Cell]:
    """What a file of cells has; nothing when there is none. A last line that was cut off is left out."""
    if not path.exists():
        return []
    *whole, _rest = path.read_text(encoding="utf-8").split("\n")
    return [cattrs.structure(json.loads(line), Cell) for line in whole]


def run_all(
    wanted: Sequence[Plan], out: Path, cells: Path, say: Say, *, shared: bool = False, keep: bool = False
) -> list[Cell]:
    """Those that ``cells`` does not have yet; all that it then has of those wanted.

    ``shared``: one cluster for as many as possible, else each has its own. ``keep``: histories of valid runs too.
    """
    done = {each.key: each for each in stored(cells)}
    left = [plan for plan in wanted if key_of(plan) not in done]
    cells.parent.mkdir(parents=True, exist_ok=True)
    for cell in _shared(left, out, say) if shared else _alone(left, out, say):
        if cell.verdict == "valid" and not keep:
            shutil.rmtree(out / cell.history)
            cell = _without_history(cell)  # noqa: PLW2901  it is another from here on
        with cells.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(cell), ensure_ascii=False) + "\n")
        done[cell.key] = cell
    return [done[key_of(plan)] for plan in wanted]


def _without_history(cell: Cell) -> Cell:
    return cattrs.structure({**asdict(cell), "history": ""}, Cell)


def _alone(left: Sequence[Plan], out: Path, say: Say) -> Iterator[Cell]:
    for plan in left:
        yield _made(plan, out, say, lambda folder, plan=plan: run(plan, folder, say))  # type: ignore[misc]


def _shared(left: Sequence[Plan], out: Path, say: Say) -> Iterator[Cell]:
    """On one cluster after the other: a new one when a run has left the last in disorder."""
    at = 0
    while at < len(left):
        with contextlib.ExitStack() as stack:
            cluster: Cluster | None = None
            usable = True
            while at < len(left) and usable:
                plan = left[at]
                if cluster is None:
                    cluster = stack.enter_context(cluster_for(left))
                outcomes: list[Outcome] = []

                def make(
                    folder: Path, plan: Plan = plan, on: Cluster = cluster, outcomes: list[Outcome] = outcomes
                ) -> Outcome:
                    outcomes.append(run_on(on, plan, folder, say))
                    return outcomes[0]

                yield _made(plan, out, say, make)
                usable = bool(outcomes) and outcomes[0].usable
                at += 1


def _made(plan: Plan, out: Path, say: Say, make: Callable[[Path], Outcome]) -> Cell:
    """A run that breaks off is a cell too: an anomaly, with its reason."""
    name = f"{plan.workload}-{'+'.join(plan.nemeses) or 'nothing'}-{plan.seconds:g}s-{plan.seed}"
    try:
        outcome = make(out / name)
    except (AssertionError, Malformed) as error:
        say(f"{plan.title}: broke off: {error}")
        return Cell(*key_of(plan), "INVALID", anomalies={FAILED: 1}, problems=(str(error)[:2000],), history=name)
    return cell_of(plan, outcome, name)


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
    )


# ------------------------------------------------------------------------------------------------------------- table
def markdown(cells: Sequence[Cell]) -> str:
    """The table of a matrix, and the sums below it."""
    lines = [HEAD, "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|"]
    for each in cells:
        found = ", ".join(f"{number} {kind}" for kind, number in sorted((each.anomalies or {}).items())) or "none"
        lines.append(
            f"| {each.workload} | {each.nemeses or 'none'} | {each.verdict} | {each.operations:,} "
            f"| {each.acknowledged:,} | {each.failed:,} | {each.indeterminate:,} | {each.failovers} "
            f"| {_share(each)} | {each.longest_gap_s:.1f} s | {found} |"
        )
    return "\n".join([*lines, "", _sums(cells), ""])


def _share(cell: Cell) -> str:
    return f"{cell.writes_accepted_s / cell.writes_asked_s:.1%}" if cell.writes_asked_s else "-"


def _sums(cells: Sequence[Cell]) -> str:
    verdicts = Counter(each.verdict for each in cells)
    said = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items())) or "none"
    return (
        f"{len(cells)} runs ({said}), {sum(each.operations for each in cells):,} calls, "
        f"{sum(each.acknowledged for each in cells):,} acknowledged, "
        f"{sum(each.indeterminate for each in cells):,} indeterminate, "
        f"{sum(each.failovers for each in cells):,} failovers."
    )
