"""Small charts over time as inline SVG.

Knows how numbers become shapes. Does not know what they mean. Colours are classes, which the page's style sheet has.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from jepsen.periods import Period

WIDTH: Final = 1100
LEFT: Final = 70
RIGHT: Final = 10
TOP: Final = 18
BOTTOM: Final = 26
COLOURS: Final = 8
"""Classes ``c0`` to ``c7`` of the style sheet; after that they begin again."""

Point = tuple[float, float]
"""Seconds since the start of the run, and a value."""


@dataclass(frozen=True, slots=True)
class Series:
    """``css``: its class. Dots are drawn where they are; lines join them, in order."""

    name: str
    css: str
    points: Sequence[Point]
    style: Literal["line", "dots"] = "line"


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in one lane of a timeline."""

    lane: str
    began_s: float
    ended_s: float
    css: str
    text: str


@dataclass(frozen=True, slots=True)
class Background:
    """What all charts of a run have in common: its length, when nemeses were at work, instants to be marked."""

    length_s: float
    periods: Sequence[Period] = ()
    marks: Sequence[tuple[float, str]] = ()

    def x(self, at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, at_s / self.length_s if self.length_s else 0.0))

    def colour(self, name: str) -> str:
        names = sorted({period.name for period in self.periods})
        return f"c{names.index(name) % COLOURS}"


def time_chart(title: str, series: Sequence[Series], background: Background, *, logarithmic: bool = False) -> str:
    """A chart of values from 0 up, or of values above 0 by their orders of magnitude; text when there are none."""
    values = [value for each in series for _, value in each.points]
    if not values:
        return f"<p class='quiet'>{escape(title)}: nothing was recorded.</p>"
    height = 220
    scale, ticks = _logarithmic(values) if logarithmic else _linear(values)

    def y(value: float) -> float:
        return height - BOTTOM - (height - TOP - BOTTOM) * scale(value)

    parts = [_shades(background, height), _time_axis(background, height)]
    for tick in ticks:
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(tick):.1f}' y2='{y(tick):.1f}'/>")
        parts.append(f"<text class='end' x='{LEFT - 6}' y='{y(tick) + 4:.1f}'>{_number(tick)}</text>")
    for each in series:
        places = [(background.x(at), y(value)) for at, value in each.points]
        parts.append(_line(each, places) if each.style == "line" else _dots(each, places))
    parts.append(_marks(background, height))
    legend = "".join(f"<span class='{each.css}'>{escape(each.name)}</span>" for each in series if each.points)
    return _figure(title, legend, height, parts)


def timeline(title: str, bars: Sequence[Bar], background: Background) -> str:
    """One lane a name, in the order of the names; text when there are none."""
    if not bars:
        return f"<p class='quiet'>{escape(title)}: nothing was recorded.</p>"
    lanes = sorted({bar.lane for bar in bars})
    lane_height = 24
    height = TOP + lane_height * len(lanes) + BOTTOM
    parts = [_shades(background, height), _time_axis(background, height)]
    for number, lane in enumerate(lanes):
        y = TOP + lane_height * number
        parts.append(f"<text class='end' x='{LEFT - 6}' y='{y + 16}'>{escape(lane[:12])}</text>")
        parts += [_bar(bar, background, y + 3, lane_height - 6) for bar in bars if bar.lane == lane]
    parts.append(_marks(background, height))
    return _figure(title, "", height, parts)


def histogram(title: str, values: Sequence[float], unit: str) -> str:
    """How many values lie in each doubling of a quarter of a unit."""
    if not values:
        return f"<p class='quiet'>{escape(title)}: none.</p>"
    bounds = [0.25]
    while bounds[-1] < max(values):
        bounds.append(bounds[-1] * 2)
    counts = [0] * len(bounds)
    for value in values:
        counts[next(at for at, bound in enumerate(bounds) if value <= bound)] += 1
    rows = "".join(
        f"<tr><td>≤ {_number(bound)} {escape(unit)}</td><td>{count}</td><td><svg width='300' height='12'>"
        f"<rect class='c0' width='{300 * count / max(counts):.0f}' height='12'/></svg></td></tr>"
        for bound, count in zip(bounds, counts, strict=True)
    )
    return f"<h3>{escape(title)}</h3><table><tr><th>length</th><th>number</th><th></th></tr>{rows}</table>"


def legend_of(background: Background) -> str:
    """Which shade is which nemesis."""
    names = sorted({period.name for period in background.periods})
    return "".join(f"<span class='{background.colour(name)}'>{escape(name)}</span>" for name in names)


# ------------------------------------------------------------------------------------------------------------ pieces
def _figure(title: str, legend: str, height: int, parts: Iterable[str]) -> str:
    head = f"<figcaption>{escape(title)} <span class='legend'>{legend}</span></figcaption>"
    label = escape(title, quote=True)
    drawing = f"<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{label}'>{''.join(parts)}</svg>"
    return f"<figure>{head}{drawing}</figure>"


def _shades(background: Background, height: int) -> str:
    found = []
    for period in background.periods:
        left, right = background.x(period.began_ns / 1e9), background.x(period.ended_ns / 1e9)
        said = f"{period.name} {period.details} {period.began_ns / 1e9:.2f}–{period.ended_ns / 1e9:.2f} s"
        shape = (
            f"<rect class='shade {background.colour(period.name)}' x='{left:.1f}' y='{TOP}' "
            f"width='{max(1.5, right - left):.1f}' height='{height - TOP - BOTTOM}'>"
        )
        found.append(f"{shape}<title>{escape(said)}</title></rect>")
    return "".join(found)


def _marks(background: Background, height: int) -> str:
    found = []
    for at, text in background.marks:
        x = background.x(at)
        found.append(f"<path class='mark' d='M{x:.1f} {TOP - 2}l-4 -9h8z'><title>{escape(text)}</title></path>")
        found.append(f"<line class='mark' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{height - BOTTOM}'/>")
    return "".join(found)


def _time_axis(background: Background, height: int) -> str:
    found = []
    for tick in _ticks(background.length_s, 10):
        x = background.x(tick)
        found.append(f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{height - BOTTOM}'/>")
        found.append(f"<text class='middle' x='{x:.1f}' y='{height - 8}'>{_number(tick)} s</text>")
    return "".join(found)


def _line(series: Series, places: Sequence[Point]) -> str:
    said = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f"<polyline class='{series.css}' points='{said}'/>"


def _dots(series: Series, places: Iterable[Point]) -> str:
    """One dot a pixel, however many values fall on it: a page of a long run stays small."""
    pixels = sorted({(round(x), round(y)) for x, y in places})
    said = "".join(f"M{x} {y}h0" for x, y in pixels)
    return f"<path class='dots {series.css}' d='{said}'/>"


def _bar(bar: Bar, background: Background, y: int, height: int) -> str:
    left, right = background.x(bar.began_s), background.x(bar.ended_s)
    width = max(1.0, right - left)
    label = f"<text class='inside' x='{left + 4:.1f}' y='{y + 13}'>{escape(bar.text)}</text>" if width > 60 else ""
    said = f"{bar.text} {bar.began_s:.3f}–{bar.ended_s:.3f} s"
    shape = f"<rect class='bar {bar.css}' x='{left:.1f}' y='{y}' width='{width:.1f}' height='{height}'>"
    return f"{shape}<title>{escape(said)}</title></rect>{label}"


def _linear(values: Iterable[float]) -> tuple[Callable[[float], float], list[float]]:
    most = max(*values, 1e-9, 1e-9)
    ticks = _ticks(most, 4)
    top = max(most, ticks[-1])
    return (lambda value: value / top), ticks


def _logarithmic(values: Iterable[float]) -> tuple[Callable[[float], float], list[float]]:
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)

    def scale(value: float) -> float:
        return (math.log10(value) - low) / (high - low) if value > 0 else 0.0

    return scale, [10.0**power for power in range(low, high + 1)]


def _ticks(most: float, wanted: int) -> list[float]:
    """From 0 in steps of 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return [0.0]
    rough = most / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * number for number in range(int(most / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
