"""The tables of a matrix: a line for each cell, and a line for each nemesis with how writes were accepted under it.

Knows cells. Does not know how they came about.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from jepsen.availability import EVERYTHING, NOTHING, percentile
from jepsen.matrix import Cell, Under, in_short

HEAD: Final = (
    "| workload | nemeses | verdict | calls | acknowledged | failed | indeterminate | failovers | writes accepted "
    "| longest gap | anomalies |"
)
LIMITS_S: Final = (0.5, 1, 2, 5, 10)
"""Of the classes of gaps: shorter than each, and not shorter than the one before."""
RANKS: Final = (0.5, 0.9, 0.99)
_CLASSES: Final = (*(f"< {limit:g} s" for limit in LIMITS_S), "longer")
GAPS_HEAD: Final = f"| nemesis | runs | asked | accepted | gaps | p50 | p90 | p99 | longest | {' | '.join(_CLASSES)} |"


def markdown(cells: Sequence[Cell]) -> str:
    """Both tables, and the sums."""
    return f"{_of_cells(cells)}\n{_of_gaps(cells)}"


# ------------------------------------------------------------------------------------------------------------- cells
def _of_cells(cells: Sequence[Cell]) -> str:
    """A line each, and the sums below."""
    lines = [HEAD, "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|"]
    for each in cells:
        found = ", ".join(f"{number} {kind}" for kind, number in sorted((each.anomalies or {}).items())) or "none"
        nemeses = ",".join(in_short(each.nemeses.split(","))) or "none"
        lines.append(
            f"| {each.workload} | {nemeses} | {each.verdict} | {each.operations:,} "
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


# -------------------------------------------------------------------------------------------------------------- gaps
def _of_gaps(cells: Iterable[Cell]) -> str:
    """Over all runs in which a nemesis was at work; all cells of a run know the same of it."""
    by_nemesis: dict[str, list[Under]] = {}
    for cell in {each.run or each.key: each for each in cells}.values():
        for under in cell.under:
            by_nemesis.setdefault(under.nemesis, []).append(under)
    first = [name for name in (EVERYTHING, NOTHING) if name in by_nemesis]
    order = [*first, *sorted(by_nemesis.keys() - {EVERYTHING, NOTHING})]
    rows = [_row(name, by_nemesis[name]) for name in order]
    return "\n".join([GAPS_HEAD, f"|---|{'--:|' * (8 + len(_CLASSES))}", *rows, ""])


def _row(nemesis: str, several: Sequence[Under]) -> str:
    asked_s = sum(each.asked_s for each in several)
    accepted_s = sum(each.accepted_s for each in several)
    gaps_s = [length_s for each in several for length_s in each.gaps_s]
    share = f"{accepted_s / asked_s:.1%}" if asked_s else "-"
    lengths = [f"{value:.1f} s" for value in (*(percentile(gaps_s, rank) for rank in RANKS), max(gaps_s, default=0.0))]
    values = [
        nemesis,
        str(sum(each.asked_s > 0 for each in several)),
        f"{asked_s:,.0f} s",
        share,
        f"{len(gaps_s):,}",
        *(lengths if gaps_s else ["-"] * len(lengths)),
        *(str(number) for number in classes(gaps_s)),
    ]
    return f"| {' | '.join(values)} |"


def classes(gaps_s: Iterable[float]) -> list[int]:
    """How many gaps are in each class of LIMITS_S, and how many are longer."""
    found = [0] * len(_CLASSES)
    for length_s in gaps_s:
        found[sum(length_s >= limit for limit in LIMITS_S)] += 1
    return found
