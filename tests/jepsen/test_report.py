import re
import time
from html.parser import HTMLParser

import pytest

from jepsen import charts
from jepsen.charts import Background, Bar, Series
from jepsen.checkers.log_lines import Expected
from jepsen.description import Description
from jepsen.ending import DatabaseEnd, Ending, Kept, LogLine, NodeEnd, RoleChange
from jepsen.history import Malformed
from jepsen.judge import CHECKERS, Judgement, judge, verdict_line
from jepsen.lines import Record
from jepsen.report import page
from tests.jepsen.making import Making, append, asked, read

S = 10**9


class Balanced(HTMLParser):
    """Fails where an element is closed that was not opened last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.open.append(tag)
        if tag == "meta":
            self.open.pop()

    def handle_startendtag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open[-5:])

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Balanced:
    found = Balanced()
    found.feed(text)
    found.close()
    assert found.open == []
    return found


def run(*, bad: bool = False, torn: bool = False) -> Record:
    making = Making()
    for number in range(100):
        making.did(number % 3, "txn", [append("x", number)], node="a")
        making.did(3, "txn", asked([read("x", 1)]), [read("x", *range(number + 1))], node="a")
        making.observed("status", {"node": "b", "role": "replica", "epoch": 1, "lag_s": 0.01 * number})
        making.wait(0.05)
        if number == 50:
            making.nemesis("start-kill", "<script>alert(1)</script>")
            making.wait(2)
            making.nemesis("stop-kill")
    if bad:
        making.did(4, "txn", asked([read("x", 1)]), [read("x", 7, "<b>&")], node="a")
    database = DatabaseEnd("d", 7, "aa", "aa", "f00d", 4096)
    nodes = tuple(NodeEnd(name, (database,)) for name in "ab")
    roles = (
        RoleChange(0, "a", "primary", 1),
        RoleChange(0, "b", "replica", 1),
        RoleChange(3 * S, "a", "none", 1),
        RoleChange(4 * S, "a", "primary", 2),
    )
    log = (LogLine(4 * S, "a", "warning", "lease_lost", "lease_lost"), LogLine(5 * S, "a", "info", "x", "x"))
    description = Description("append", ("a", "b"), ("kill",), 7)
    return Record(tuple(making.operations), description, Ending(nodes, None, roles, log), torn)


EXPECTED = (Expected("lease_lost", "the holder was killed", during=frozenset({"kill"})),)


def judged(record: Record) -> Judgement:
    return judge(record, clock=time.monotonic, expected=EXPECTED)


def test_a_good_run() -> None:
    record = run()
    judgement = judged(record)
    assert judgement.valid is True, judgement.results
    assert verdict_line(judgement).startswith(
        "append × kill, seed 7: valid; 200 operations, 200 acknowledged, 0 failed, 0 indeterminate; writes accepted 1"
    )
    names = [result.checker for result in judgement.results]
    assert names == ["append", "answers", "final-state", "primaries", "log-lines"]
    text = page(record, judgement)
    found = parsed(text)
    assert found.seen.count("svg") == 4
    assert re.findall(r"<title>((?:epoch|replica)[^<]*)</title>", text) == [
        "epoch 1 0.000–3.000 s",
        "epoch 2 4.000–7.454 s",
        "replica 0.000–7.454 s",
    ]
    assert "Anomalies" not in text


def test_a_bad_run_shows_its_operations() -> None:
    record = run(bad=True)
    judgement = judged(record)
    assert judgement.valid is False
    assert "INVALID" in verdict_line(judgement)
    assert "append: 1 from-nowhere, 1 incompatible-order" in verdict_line(judgement)
    text = page(record, judgement)
    found = parsed(text)
    assert "Anomalies: append" in found.text
    assert any('[["r", "x", [7, "<b>&"]]]' in each for each in found.text)


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    text = page(run(bad=True), judged(run(bad=True)))
    assert "script" not in parsed(text).seen
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", text)
    assert "<b>" not in text


def test_everything_is_drawn_inside_its_chart() -> None:
    text = page(run(bad=True), judged(run(bad=True)))
    for height, drawing in re.findall(rf"<svg viewBox='0 0 {charts.WIDTH} (\d+)'(.*?)</svg>", text, re.DOTALL):
        for limit, names in ((charts.WIDTH, "x|x1|x2"), (int(height), "y|y1|y2")):
            for place in re.findall(rf" (?:{names})='([^']*)'", drawing):
                assert 0 <= float(place) <= limit
        for points in re.findall(r"points='([^']*)'", drawing):
            for point in points.split():
                x, y = map(float, point.split(","))
                assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
                assert charts.TOP <= y <= int(height) - charts.BOTTOM


def test_a_torn_history_says_so() -> None:
    assert "cut off" in page(run(torn=True), judged(run(torn=True)))


def test_an_empty_run_has_a_page_too() -> None:
    record = Record((), Description("append"))
    judgement = judged(record)
    assert judgement.valid == "unknown"
    assert "UNKNOWN" in verdict_line(judgement)
    parsed(page(record, judgement))


def test_a_page_of_a_long_run_stays_small() -> None:
    making = Making()
    for number in range(20_000):
        making.did(0, "add", number)
    making.did(0, "read", None, list(range(20_000)))
    record = Record(tuple(making.operations), Description("set"))
    assert len(page(record, judged(record))) < 300_000


def test_roles_are_drawn_from_what_observers_noted_when_there_is_no_log() -> None:
    making = Making()
    making.observed("status", {"node": "a", "role": "primary", "epoch": 3})
    making.wait(5)
    making.observed("status", {"node": "a", "role": "replica", "epoch": 4})
    record = Record(tuple(making.operations), Description("append"))
    assert "epoch 3" in page(record, judged(record))


def test_what_is_in_diverged_is_excused_in_every_checker_of_a_run() -> None:
    making = Making()
    lost = making.did(0, "add", 1)
    making.did(0, "read", None, [1])
    making.did(0, "add", 2)
    making.did(0, "read", None, [2])
    database = DatabaseEnd("d", 7, "aa", "aa", "f00d", 4096)
    kept = Kept("1", "d", 1, 2, 0, (lost,))
    ending = Ending((NodeEnd("a", (database,), (kept,)),), (4,), (RoleChange(0, "a", "primary", 1),), run().ending.log)  # type: ignore[union-attr]
    judgement = judge(Record(tuple(making.operations), Description("set"), ending), clock=time.monotonic)
    assert [result.valid for result in judgement.results[:3]] == [True, True, True]


def test_every_workload_can_be_judged() -> None:
    for workload in CHECKERS:
        judgement = judge(Record((), Description(workload)), clock=time.monotonic)
        assert judgement.valid == "unknown"


def test_a_history_of_no_known_workload_cannot_be_judged() -> None:
    with pytest.raises(Malformed, match="which workload"):
        judge(Record(()), clock=time.monotonic)
    with pytest.raises(Malformed, match="'x' is no workload"):
        judge(Record((), Description("x")), clock=time.monotonic)


@pytest.mark.parametrize("values", [[0.0], [0.0, 1e-9], [1e9], [5.0, 5.0]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_charts_of_any_numbers_are_drawn(values: list[float], logarithmic: bool) -> None:
    background = Background(0.0)
    series = Series("<a>", "c0", [(float(at), value) for at, value in enumerate(values)])
    text = charts.time_chart("t", [series], background, logarithmic=logarithmic)
    parsed(text)
    assert "nan" not in text
    parsed(charts.timeline("t", [Bar("<n>", 0, 1, "c0", "&")], background))
    parsed(charts.histogram("t", values, "s"))
