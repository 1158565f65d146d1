import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from jepsen import matrix
from jepsen.__main__ import main
from jepsen.availability import EVERYTHING, NOTHING
from jepsen.clients import Pace
from jepsen.cluster.cluster import TTL_S
from jepsen.description import Description
from jepsen.expected_log import EXPECTED
from jepsen.judge import Judgement, judge
from jepsen.lines import Record
from jepsen.matrix import Cell, Under
from jepsen.nemeses import KINDS, NEMESES
from jepsen.nemeses.schedule import plan
from jepsen.periods import BUSY
from jepsen.runner import Outcome, Plan, accepted_by_any, pace_of, setup_for
from jepsen.tables import classes, markdown
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
    judgement = judge(record, clock=lambda: 0.0)
    return Outcome(record, judgement, (), usable=True, run="1", accepted=judgement.availability)


def test_the_short_form_leaves_nothing_out() -> None:
    assert set(matrix.SHORT) == set(WORKLOADS)
    assert {name for nemeses in matrix.SHORT.values() for name in nemeses} == set(NEMESES)
    assert [plan.workload for (plan,) in matrix.short_plans(1)] == list(matrix.SHORT)


def test_the_short_form_of_all_at_once_leaves_nothing_out_either() -> None:
    rounds = matrix.short_together(1)
    assert sorted(name for plans in rounds for name in plans[0].nemeses) == sorted(NEMESES)
    assert all([plan.workload for plan in plans] == list(WORKLOADS) for plans in rounds)
    assert all(len({plan.nemeses for plan in plans}) == 1 for plans in rounds)


def test_in_the_short_form_every_nemesis_gets_its_turn() -> None:
    for one in (plans[0] for short in (matrix.short_plans, matrix.short_together) for plans in short(1)):
        turns = plan({name: NEMESES[name]() for name in one.nemeses}, one.seconds, one.seed, TTL_S)
        assert {turn.name for turn in turns} == set(one.nemeses), one.title


def test_a_matrix_is_every_workload_under_every_nemesis() -> None:
    plans = [plan for (plan,) in matrix.plans(["a", "b"], ["x", "y"], 60.0, 3)]
    assert [(plan.workload, plan.nemeses) for plan in plans] == [
        ("a", ("x",)),
        ("a", ("y",)),
        ("b", ("x",)),
        ("b", ("y",)),
    ]
    assert len({matrix.key_of(plan) for plan in plans}) == 4


def test_a_long_run_is_the_same_again_and_again_with_the_seeds_that_follow() -> None:
    plans = tuple(Plan(name, ("kill",), 600.0, 7) for name in ("set", "bank"))
    assert matrix.legs(plans, 3) == [tuple(replace(plan, seed=seed) for plan in plans) for seed in (7, 8, 9)]


def test_a_cell_has_the_figures_of_its_run() -> None:
    cell = matrix.cell_of(PLAN, outcome(), "where")
    assert (cell.key, cell.verdict) == (("set", "kill,slow", 30.0, 7), "valid")
    assert (cell.operations, cell.acknowledged, cell.failed, cell.indeterminate) == (4, 2, 1, 1)
    assert cell.anomalies == {}
    assert [(each.nemesis, each.asked_s > 0, each.gaps_s) for each in cell.under] == [
        (EVERYTHING, True, ()),
        (NOTHING, True, ()),
    ]
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
    assert matrix.run_all([(PLAN,)], tmp_path / "out", path, said.append) == [cell]
    assert said == []
    assert not (tmp_path / "out").exists()


def test_cells_of_before_the_gaps_were_noted_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    document = asdict(matrix.cell_of(PLAN, outcome(), ""))
    del document["under"]
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")
    assert [each.under for each in matrix.stored(path)] == [()]


def test_together_is_one_round_for_each_nemesis_and_what_needs_forwarding_is_apart() -> None:
    workloads = ["append", "anywhere", "set"]
    rounds = matrix.together(workloads, ["kill", "io-error"], 60.0, 3)
    assert [([plan.workload for plan in plans], plans[0].nemeses) for plans in rounds] == [
        (["append", "set"], ("kill",)),
        (["append", "set"], ("io-error",)),
        (["anywhere"], ("kill",)),
        (["anywhere"], ("io-error",)),
    ]
    assert [setup_for(plans).on_replica for plans in rounds] == ["refuse", "refuse", "forward", "forward"]
    rounds = matrix.together(workloads, ["kill"], 60.0, 3, forward_all=True)
    assert [[plan.workload for plan in plans] for plans in rounds] == [workloads]
    assert setup_for(rounds[0]).on_replica == "forward"


def test_together_has_the_cells_of_the_whole_matrix() -> None:
    which = list(WORKLOADS), list(NEMESES), 120.0, 1
    alone = {matrix.key_of(plan) for plans in matrix.plans(*which) for plan in plans}
    for forward_all in (False, True):
        rounds = matrix.together(*which, forward_all=forward_all)
        keys = [matrix.key_of(plan) for plans in rounds for plan in plans]
        assert len(keys) == len(alone)
        assert set(keys) == alone


def test_nemeses_that_need_the_same_cluster_come_one_after_the_other() -> None:
    setups = [setup_for(plans) for plans in matrix.together(list(WORKLOADS), list(NEMESES), 120.0, 1)]
    changes = [one != other for one, other in pairwise(setups)]
    assert sum(changes) + 1 == len(set(setups))


def test_clients_of_several_workloads_ask_as_much_in_all_as_those_of_one() -> None:
    one, ten = pace_of(1), pace_of(10)
    assert one == Pace()
    assert ten.of_a_node == 1
    assert 10 * ten.of_a_node / ten.pause_s < one.of_a_node / one.pause_s
    assert ten.retry_s > ten.pause_s


def test_a_node_accepts_when_it_accepts_anything_of_any_workload() -> None:
    def judged(making: Making) -> Judgement:
        return judge(Record(tuple(making.operations), Description("set")), clock=lambda: 0.0)

    waiting, served = Making(), Making()
    waiting.begin(0, "add", 1)
    waiting.wait(3.0)
    waiting.end(0)
    for element in range(5):
        served.wait(0.5)
        served.did(1, "add", element)
    lengths = [gap.length_s for gap in accepted_by_any([judged(waiting)]).gaps]
    assert lengths == pytest.approx([3.0], abs=0.01)
    lengths = [gap.length_s for gap in accepted_by_any([judged(waiting), judged(served)]).gaps]
    assert lengths == pytest.approx([0.5] * 6, abs=0.02)


def test_gaps_are_counted_by_their_lengths() -> None:
    assert classes([]) == [0, 0, 0, 0, 0, 0]
    assert classes([0.3, 0.5, 0.99, 1.0, 3.0, 5.0, 9.9, 10.0, 60.0]) == [1, 2, 1, 1, 2, 2]


def test_the_table_of_gaps_has_a_line_for_each_nemesis_over_all_runs() -> None:
    def cell(workload: str, *under: Under, run: str = "") -> Cell:
        return Cell(workload, "kill,slow", 120.0, 1, "valid", under=under, run=run)

    cells = [
        cell("set", Under(EVERYTHING, 100.0, 90.0, (4.0, 6.0)), Under("kill", 40.0, 30.0, (4.0, 6.0)), run="1"),
        cell(
            "bank", Under(EVERYTHING, 1000.0, 999.6, (0.4,)), Under("kill", 60.0, 59.6, (0.4,)), Under("slow", 0.0, 0.0)
        ),
        cell("counter"),
    ]
    cells.append(replace(cells[0], workload="append"))
    assert markdown(cells).splitlines()[-4:] == [
        f"|---|{'--:|' * 14}",
        "| (the whole run) | 2 | 1,100 s | 99.1% | 3 | 4.0 s | 6.0 s | 6.0 s | 6.0 s | 1 | 0 | 0 | 1 | 1 | 0 |",
        "| kill | 2 | 100 s | 89.6% | 3 | 4.0 s | 6.0 s | 6.0 s | 6.0 s | 1 | 0 | 0 | 1 | 1 | 0 |",
        "| slow | 0 | 0 s | - | 0 | - | - | - | - | 0 | 0 | 0 | 0 | 0 | 0 |",
    ]
    assert markdown(cells).splitlines()[-5].count("|") == 16


def test_all_nemeses_are_named_in_short() -> None:
    assert "| set | all | valid |" in markdown([Cell("set", ",".join(NEMESES), 30.0, 7, "valid")])


def test_the_table_has_a_line_for_each_cell_and_the_sums() -> None:
    cells = [
        Cell("set", "kill", 120.0, 1, "valid", 1200, 1000, 150, 50, 3, 100.0, 99.0, 2, 1.5, {}),
        Cell("bank", "", 120.0, 1, "INVALID", 10, 5, 5, 0, anomalies={"bank: wrong-total": 2}),
    ]
    lines = markdown(cells).splitlines()
    assert lines[2] == "| set | kill | valid | 1,200 | 1,000 | 150 | 50 | 3 | 99.0% | 1.5 s | none |"
    assert lines[3] == "| bank | none | INVALID | 10 | 5 | 5 | 0 | 0 | - | 0.0 s | 2 bank: wrong-total |"
    assert lines[5] == "2 runs (1 INVALID, 1 valid), 1,210 calls, 1,005 acknowledged, 50 indeterminate, 3 failovers."


def test_a_line_that_is_expected_has_a_reason_and_names_nemeses_that_there_are() -> None:
    assert all(each.why for each in EXPECTED)
    assert {name for each in EXPECTED for name in each.during} <= {*NEMESES, BUSY}


def test_a_kind_stands_for_its_nemeses_each_of_which_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[matrix.Round] = []

    def note(rounds: list[matrix.Round], *_: object, **__: object) -> list[Cell]:
        planned.extend(rounds)
        return []

    monkeypatch.setattr(matrix, "run_all", note)
    chosen = ["--workload", "set", "--nemesis", "kill,halves,partition"]
    main(["run", *chosen, "--times", "2", "--out", str(tmp_path)])
    partitions = [each for each in KINDS["partition"] if each != "halves"]
    assert [plans[0].nemeses for plans in planned] == [("kill", "halves", *partitions)] * 2
    assert {name for names in KINDS.values() for name in names} <= set(NEMESES)


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
