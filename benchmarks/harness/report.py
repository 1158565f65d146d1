"""The report: tables for people, one document for programs.

Ratios are above 1 when a system is better than the one it is compared with, also where less is better.
"""

from collections.abc import Mapping

from benchmarks.harness.figures import Answer, Figure
from benchmarks.harness.systems import FLOOR, PLAIN


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(figure: Figure) -> str:
    """One figure, a line a system, and a line a goal."""
    width = max(len(system) for system in figure.rounds)
    arrow = "" if figure.better == "higher" else ", less is better"
    lines = [f"{figure.name} ({figure.unit}{arrow})"]
    lines.append(f"  {'':{width}}  {'median':>9}  {'min..max':>19}  {'× plain':>8}  {'× floor':>8}")
    for system, values in figure.rounds.items():
        spread = f"{number(min(values))}..{number(max(values))}"
        ratios = [figure.ratio(system, base) for base in (PLAIN, FLOOR)]
        columns = "  ".join(f"{'-' if ratio is None else f'{ratio:.2f}':>8}" for ratio in ratios)
        lines.append(f"  {system:{width}}  {number(figure.median(system)):>9}  {spread:>19}  {columns}")
    for goal in figure.goals:
        if verdict := figure.judge(goal):
            value, reached = verdict
            sign = "≥" if goal.against or figure.better == "higher" else "≤"
            word = "reached" if reached else "NOT reached"
            lines.append(f"  goal: {goal.system} {sign} {goal}: {word}, at {number(value)}")
    return "\n".join(lines)


def section(title: str, answer: Answer) -> str:
    """All figures of one question, and what failed."""
    parts = [f"\n== {title} =="]
    parts += [table(figure) for figure in answer.figures if figure.rounds]
    parts += [f"  {system} failed: {reason}" for system, reason in answer.failures.items()]
    return "\n".join(parts)


def heading(facts: Mapping[str, object]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in facts.items())
