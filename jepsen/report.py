"""One HTML page about one run: it needs no other file, no network and no script.

Knows what a reader wants to see, and in which order: the verdict, the anomalies with their operations, then what
happened over time. Does not know what is right.
"""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from jepsen.availability import Availability
from jepsen.charts import COLOURS, Background, Bar, Series, histogram, legend_of, time_chart, timeline
from jepsen.checkers.primaries import reigns
from jepsen.checkers.result import Anomaly, Result
from jepsen.ending import RoleChange
from jepsen.history import OBSERVER, Call, Operation
from jepsen.judge import Judgement, verdict_line
from jepsen.lines import Record

POINTS_OF_A_LINE: Final = 200
SHORTEST_STEP_S: Final = 0.1
VALUE_CHARACTERS: Final = 600
STATUS: Final = "status"
"""An observer's note of a node: ``{"node", "role", "epoch", "lag_s"}``, role and epoch of what it answers."""
_WORDS: Final = {True: "valid", False: "invalid", "unknown": "unknown"}
_STYLE: Final = """
:root{--back:#fff;--text:#1b1f24;--quiet:#667;--grid:#e3e6ea;--good:#197a3e;--bad:#b3261e;--unknown:#8a6100}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--text:#e4e7eb;--quiet:#9aa;--grid:#2c3238;--good:#5fce8b;
--bad:#ff8a80;--unknown:#f0c060}}
body{background:var(--back);color:var(--text);font:14px/1.45 system-ui,sans-serif;max-width:1140px;margin:2em auto;
padding:0 1em}
h1{font-size:20px}h2{font-size:17px;margin-top:2em}h3{font-size:14px}
.valid{color:var(--good)}.invalid{color:var(--bad)}.unknown{color:var(--unknown)}.quiet{color:var(--quiet)}
table{border-collapse:collapse;margin:.5em 0;display:block;overflow-x:auto}
td,th{padding:2px 10px 2px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
td.value{font-family:ui-monospace,monospace;font-size:12px;word-break:break-word}
figure{margin:1em 0}svg{max-width:100%}figcaption{font-weight:600}
.legend{font-weight:400}.legend span{margin-left:1em;color:var(--colour)}
.legend span::before{content:"■ "}
svg text{fill:var(--quiet);font-size:11px}text.end{text-anchor:end}text.middle{text-anchor:middle}
svg text.inside{fill:#fff}
.grid{stroke:var(--grid)}polyline{fill:none;stroke:var(--colour);stroke-width:1.5}
rect{fill:var(--colour)}.shade{opacity:.16}
.dots{fill:none;stroke:var(--colour);stroke-width:2.4;stroke-linecap:round;opacity:.7}
.mark{stroke:var(--bad);fill:var(--bad);stroke-width:1;opacity:.8}
details{margin:.5em 0}summary{cursor:pointer}
.c0{--colour:#3b76d6}.c1{--colour:#d6762b}.c2{--colour:#3a9a5b}.c3{--colour:#b34aa8}
.c4{--colour:#c0392b}.c5{--colour:#1797a6}.c6{--colour:#8a7a1f}.c7{--colour:#6b5bd2}
.ok{--colour:#3a9a5b}.info{--colour:#d6962b}.fail{--colour:#c0392b}.replica{--colour:#8a94a0}
"""


def page(record: Record, judgement: Judgement) -> str:
    """The whole page."""
    background = _background(record, judgement)
    word = _WORDS[judgement.valid]
    title = verdict_line(judgement)
    torn = "<p class='unknown'>The last line of the history is cut off and was left out.</p>" if record.torn else ""
    body = [
        f"<h1 class='{word}'>{escape(title)}</h1>",
        torn,
        _what(judgement),
        "<h2>Checkers</h2>",
        _checkers(judgement.results),
        *(_anomalies(result) for result in judgement.results if result.anomalies),
        "<h2>Over time</h2>",
        f"<p>Nemeses: <span class='legend'>{legend_of(background) or 'none'}</span></p>",
        _throughput(judgement.calls, background),
        _latency(judgement.calls, background),
        _lag(record.operations, background),
        _roles(record, background),
        "<h2>Availability of writes</h2>",
        _availability(judgement.availability),
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
    style = f"<style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}{style}</head><body>{''.join(body)}</body></html>\n"


def _background(record: Record, judgement: Judgement) -> Background:
    times = [operation.time_ns for operation in record.operations]
    marks = [
        (anomaly.operations[-1].time_ns / 1e9, f"{result.checker}: {anomaly.kind}")
        for result in judgement.results
        for anomaly in result.anomalies
        if anomaly.operations
    ]
    return Background(max(times, default=0) / 1e9, judgement.periods, marks)


def _what(judgement: Judgement) -> str:
    one = judgement.description
    said = [
        ("workload", one.workload),
        ("nodes", ", ".join(one.nodes)),
        ("nemeses", ", ".join(one.nemeses)),
        ("seed", str(one.seed)),
        ("replication", one.replication),
        ("started", one.started),
        ("version", one.version),
    ]
    return _table((), ((name, value) for name, value in said if value))


# ---------------------------------------------------------------------------------------------------------- verdicts
def _checkers(results: Iterable[Result]) -> str:
    rows = "".join(
        f"<tr><td>{escape(each.checker)}</td><td class='{_WORDS[each.valid]}'>{_WORDS[each.valid]}</td>"
        f"<td>{escape(', '.join(f'{name} {count:,}' for name, count in each.counts.items()))}</td>"
        f"<td>{escape(each.why)}</td></tr>"
        for each in results
    )
    return f"<table><tr><th>checker</th><th>verdict</th><th>counts</th><th>what is missing</th></tr>{rows}</table>"


def _anomalies(result: Result) -> str:
    shown: dict[str, list[Anomaly]] = {}
    for each in result.anomalies:
        shown.setdefault(each.kind, []).append(each)
    parts = [f"<h2 class='invalid'>Anomalies: {escape(result.checker)}</h2>"]
    for kind, anomalies in shown.items():
        number = result.counts.get(kind, len(anomalies))
        more = f", the first {len(anomalies)} of them" if number > len(anomalies) else ""
        parts.append(f"<h3>{escape(kind)}: {number}{more}</h3>")
        parts += [_anomaly(each, opened=at == 0) for at, each in enumerate(anomalies)]
    return "".join(parts)


def _anomaly(one: Anomaly, *, opened: bool) -> str:
    table = _operations(one.operations) if one.operations else ""
    return f"<details{' open' if opened else ''}><summary>{escape(one.text)}</summary>{table}</details>"


def _operations(operations: Iterable[Operation]) -> str:
    rows = "".join(
        f"<tr><td>{each.index}</td><td>{each.time_ns / 1e9:.6f}</td><td>{escape(str(each.process))}</td>"
        f"<td>{each.type}</td><td>{escape(each.f)}</td><td class='value'>{escape(_value(each.value))}</td>"
        f"<td>{escape(each.node)}</td><td>{escape(each.error)}</td></tr>"
        for each in operations
    )
    names = ("index", "time, s", "process", "type", "f", "value", "node", "error")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{rows}</table>"


def _value(value: object) -> str:
    said = json.dumps(value, ensure_ascii=False, default=str)
    if len(said) <= VALUE_CHARACTERS:
        return said
    half = VALUE_CHARACTERS // 2
    return f"{said[:half]} … {len(said)} characters … {said[-half:]}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    first = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    others = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{first}{others}</table>"


# --------------------------------------------------------------------------------------------------------- over time
def _outcome(call: Call) -> str:
    return "ok" if call.ok else "fail" if call.failed else "info"


_OUTCOMES: Final = (("ok", "acknowledged"), ("info", "indeterminate"), ("fail", "failed"))


def _throughput(calls: Sequence[Call], background: Background) -> str:
    step_s = max(SHORTEST_STEP_S, background.length_s / POINTS_OF_A_LINE)
    steps = int(background.length_s / step_s) + 1
    counts = {outcome: [0] * steps for outcome, _ in _OUTCOMES}
    for call in calls:
        if call.completion is not None:
            counts[_outcome(call)][int(call.completion.time_ns / 1e9 / step_s)] += 1
    series = [
        Series(name, outcome, [((at + 0.5) * step_s, number / step_s) for at, number in enumerate(counts[outcome])])
        for outcome, name in _OUTCOMES
        if any(counts[outcome])
    ]
    return time_chart("Completed operations per second", series, background)


def _latency(calls: Sequence[Call], background: Background) -> str:
    points: dict[str, list[tuple[float, float]]] = {outcome: [] for outcome, _ in _OUTCOMES}
    for call in calls:
        if call.completion is not None:
            took_ms = (call.completion.time_ns - call.invocation.time_ns) / 1e6
            points[_outcome(call)].append((call.completion.time_ns / 1e9, max(took_ms, 0.001)))
    series = [Series(name, outcome, points[outcome], "dots") for outcome, name in _OUTCOMES]
    return time_chart("Latency, ms, at the time of the answer", series, background, logarithmic=True)


def _notes(operations: Iterable[Operation]) -> Iterable[tuple[float, str, dict[str, object]]]:
    """What observers noted of nodes: time in seconds, node, everything."""
    for each in operations:
        if each.process == OBSERVER and each.f == STATUS and isinstance(each.value, dict):
            yield each.time_ns / 1e9, str(each.value.get("node", each.node)), each.value


def _lag(operations: Iterable[Operation], background: Background) -> str:
    by_node: dict[str, list[tuple[float, float]]] = {}
    for at_s, node, value in _notes(operations):
        lag_s = value.get("lag_s")
        if isinstance(lag_s, int | float):
            by_node.setdefault(node, []).append((at_s, max(0.0, float(lag_s))))
    series = [
        Series(node, f"c{number % COLOURS}", _highest(points, background.length_s))
        for number, (node, points) in enumerate(sorted(by_node.items()))
    ]
    return time_chart("Lag of replicas, seconds", series, background)


def _highest(points: list[tuple[float, float]], length_s: float) -> list[tuple[float, float]]:
    """The highest of each stretch of time, so that no peak is lost."""
    step_s = max(SHORTEST_STEP_S, length_s / (4 * POINTS_OF_A_LINE))
    highest: dict[int, tuple[float, float]] = {}
    for at_s, value in points:
        step = int(at_s / step_s)
        if step not in highest or value > highest[step][1]:
            highest[step] = at_s, value
    return [highest[step] for step in sorted(highest)]


def _roles(record: Record, background: Background) -> str:
    """By the nodes' logs; without these by what observers noted."""
    changes = list(record.ending.roles) if record.ending is not None else []
    if not changes:
        changes = [
            RoleChange(round(at_s * 1e9), node, "primary" if value.get("role") == "primary" else "replica", epoch)
            for at_s, node, value in _notes(record.operations)
            if isinstance(epoch := value.get("epoch", 0), int)
        ]
    bars = [
        Bar(
            each.node,
            each.began_ns / 1e9,
            _end(each.ended_ns, background),
            f"c{each.epoch % COLOURS}",
            f"epoch {each.epoch}",
        )
        for each in reigns(changes)
    ]
    return timeline("Primaries, by node; one colour an epoch", [*_replicas(changes, background), *bars], background)


def _replicas(changes: Iterable[RoleChange], background: Background) -> list[Bar]:
    bars: list[Bar] = []
    since: dict[str, float] = {}
    for each in sorted(changes, key=lambda each: each.time_ns):
        at_s = each.time_ns / 1e9
        if each.role == "replica":
            since.setdefault(each.node, at_s)
        elif (began_s := since.pop(each.node, None)) is not None:
            bars.append(Bar(each.node, began_s, at_s, "replica", "replica"))
    return bars + [Bar(node, began_s, background.length_s, "replica", "replica") for node, began_s in since.items()]


def _end(ended_ns: int | None, background: Background) -> float:
    return background.length_s if ended_ns is None else ended_ns / 1e9


def _availability(found: Availability) -> str:
    if not found.shares:
        return "<p class='quiet'>Nobody wrote anything.</p>"
    head = ("nemesis", "asked, s", "accepted", "gaps", "longest, s")
    rows = [
        (each.nemesis, f"{each.asked_s:.1f}", f"{each.share:.2%}", str(each.gaps), f"{each.longest_s:.2f}")
        for each in found.shares
    ]
    ranks = ", ".join(
        f"{name} {found.percentile_s(rank):.2f} s" for name, rank in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))
    )
    lengths = histogram("How long nobody accepted writes", [gap.length_s for gap in found.gaps], "s")
    listed = _table(
        ("from, s", "length, s", "under"),
        [(f"{each.began_ns / 1e9:.2f}", f"{each.length_s:.2f}", ", ".join(each.nemeses)) for each in found.gaps[:200]],
    )
    every = (
        f"<p>Gaps: {ranks}.</p>{lengths}<details><summary>Each gap</summary>{listed}</details>" if found.gaps else ""
    )
    return _table(head, rows) + every
