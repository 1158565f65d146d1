import json
from dataclasses import asdict
from pathlib import Path

import pytest

from jepsen import matrix
from jepsen.__main__ import main
from jepsen.cluster.cluster import TTL_S
from jepsen.description import Description
from jepsen.expected_log import EXPECTED
from jepsen.judge import judge
from jepsen.lines import Record
from jepsen.matrix import Cell
from jepsen.nemeses import NEMESES
from jepsen.nemeses.schedule import plan
from jepsen.runner import Outcome, Plan
from jepsen.workloads import WORKLOADS
from tests.jepsen.making import Making

PLAN = Plan("set", ("kill", "slow"), 30.0, 7)


def outcome(*, lost: bool = False) -> Outcome:
    making = Making()
    making.did(0, "add", 1)
    making.did(0, "add", 2, type_="fail")
    making.did(0, "add", 3, type_="info")
    making.did(1, "read", None, [] if lost else [1])
    record = Record(tuple(making.operations), Description("set", nemeses=PLAN.nemeses))
    return Outcome(record, judge(record, clock=lambda: 0.0), (), usable=True)


def test_the_short_form_leaves_nothing_out() -> None:
    assert set(matrix.SHORT) == set(WORKLOADS)
    assert {name for nemeses in matrix.SHORT.values() for name in nemeses} == set(NEMESES)
    assert [plan.workload for plan in matrix.short_plans(1)] == list(matrix.SHORT)


def test_in_the_short_form_every_nemesis_gets_its_turn() -> None:
    for one in matrix.short_plans(1):
        turns = plan({name: NEMESES[name]() for name in one.nemeses}, one.seconds, one.seed, TTL_S)
        assert {turn.name for turn in turns} == set(one.nemeses), one.title


def test_a_matrix_is_every_workload_under_every_nemesis() -> None:
    plans = matrix.plans(["a", "b"], ["x", "y"], 60.0, 3)
    assert [(plan.workload, plan.nemeses) for plan in plans] == [
        ("a", ("x",)),
        ("a", ("y",)),
        ("b", ("x",)),
        ("b", ("y",)),
    ]
    assert len({matrix.key_of(plan) for plan in plans}) == 4


def test_a_cell_has_the_figures_of_its_run() -> None:
    cell = matrix.cell_of(PLAN, outcome(), "where")
    assert (cell.key, cell.verdict) == (("set", "kill,slow", 30.0, 7), "valid")
    assert (cell.operations, cell.acknowledged, cell.failed, cell.indeterminate) == (4, 2, 1, 1)
    assert cell.anomalies == {}
    cell = matrix.cell_of(PLAN, outcome(lost=True), "where")
    assert (cell.verdict, cell.anomalies) == ("INVALID", {"set: lost": 1})


def test_cells_are_read_again_and_what_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    assert matrix.stored(path) == []
    cells = [matrix.cell_of(PLAN, outcome(), ""), matrix.cell_of(PLAN, outcome(lost=True), "x")]
    text = "".join(json.dumps(asdict(cell)) + "\n" for cell in cells)
    path.write_text(text + '{"workload": "ba', encoding="utf-8")
    assert matrix.stored(path) == cells


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    cell = matrix.cell_of(PLAN, outcome(), "")
    path.write_text(json.dumps(asdict(cell)) + "\n", encoding="utf-8")
    said: list[str] = []
    assert matrix.run_all([PLAN], tmp_path / "out", path, said.append) == [cell]
    assert said == []
    assert not (tmp_path / "out").exists()


def test_the_table_has_a_line_for_each_cell_and_the_sums() -> None:
    cells = [
        Cell("set", "kill", 120.0, 1, "valid", 1200, 1000, 150, 50, 3, 100.0, 99.0, 2, 1.5, {}),
        Cell("bank", "", 120.0, 1, "INVALID", 10, 5, 5, 0, anomalies={"bank: wrong-total": 2}),
    ]
    lines = matrix.markdown(cells).splitlines()
    assert lines[2] == "| set | kill | valid | 1,200 | 1,000 | 150 | 50 | 3 | 99.0% | 1.5 s | none |"
    assert lines[3] == "| bank | none | INVALID | 10 | 5 | 5 | 0 | 0 | - | 0.0 s | 2 bank: wrong-total |"
    assert lines[5] == "2 runs (1 INVALID, 1 valid), 1,210 calls, 1,005 acknowledged, 50 indeterminate, 3 failovers."


def test_a_line_that_is_expected_has_a_reason_and_names_nemeses_that_there_are() -> None:
    assert all(each.why for each in EXPECTED)
    assert {name for each in EXPECTED for name in each.during} <= set(NEMESES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--workload", "nothing"], "nothing: no such workload"),
        (["run", "--workload", "set", "--nemesis", "kill,rain"], "rain: no such nemesis"),
        (["matrix", "--workloads", "set,nothing"], "nothing: no such workload"),
    ],
)
def test_what_there_is_not_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        main(arguments)
