"""Each planted bug is found by the run that is named for it, and none can silently become no bug at all."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from jepsen.__main__ import main
from jepsen.cluster.cluster import TTL_S
from jepsen.judge import CHECKERS
from jepsen.mutants import MUTANTS, REQUIRED, Hunt, hunt, markdown
from jepsen.mutations import NAMES, put_in_place
from jepsen.mutations.replacing import Gone, replace_function, replace_value, require
from jepsen.nemeses import NEMESES
from jepsen.nemeses.schedule import plan
from jepsen.runner import DATA, Plan
from tests.support.nodes import ROOT

HANG_S = 180


# ------------------------------------------------------------------------------------------------------- every bug
@pytest.mark.timeout(HANG_S)
@pytest.mark.parametrize("name", REQUIRED)
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    said: list[object] = []
    found = hunt(MUTANTS[name], tmp_path / "run", said.append)
    assert found.verdict == "INVALID", said
    assert found.said, (said, found.other)
    # What the nodes had is kept for whoever looks for the cause.
    assert {path.parts[-3] for path in (tmp_path / "run" / DATA).glob("*/db/*")} == {"a", "b", "c"}


def test_every_bug_has_its_run_and_every_run_its_bug() -> None:
    assert set(MUTANTS) == set(NAMES)
    assert set(REQUIRED) <= set(NAMES)
    for mutant in MUTANTS.values():
        assert mutant.plan.workload in CHECKERS
        turns = plan(
            {name: NEMESES[name]() for name in mutant.plan.nemeses}, mutant.plan.seconds, mutant.plan.seed, TTL_S
        )
        assert {turn.name for turn in turns} == set(mutant.plan.nemeses)
        assert mutant.kinds
        assert mutant.control.mutation == ""


def test_what_each_bug_replaces_is_there() -> None:
    # In a process of its own: they are in place for good.
    code = "from jepsen.mutations import NAMES, put_in_node\nfor name in NAMES: put_in_node(name)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_nothing_of_the_program_knows_of_planted_bugs() -> None:
    for path in (ROOT / "litereplica").rglob("*.py"):
        assert "mutation" not in path.read_text(encoding="utf-8").lower(), path


# --------------------------------------------------------------------------------------------------- taking a place
class Right:
    mode = "right"

    def double(self, number: int) -> int:
        return 2 * number


def test_the_wrong_function_is_given_the_right_one() -> None:
    class Mine(Right):
        def double(self, number: int) -> int:
            return super().double(number)

    replace_function(Mine, "double", wrong)
    assert Mine().double(3) == 7


def wrong(right: Callable[[Right, int], int], self: Right, number: int) -> int:
    return right(self, number) + 1


def with_more(right: object, self: Right, number: int, more: int) -> int:
    return number + more


def by_another_name(right: object, self: Right, amount: int) -> int:
    return amount


@pytest.mark.parametrize(
    ("name", "another"), [("doubled", wrong), ("double", with_more), ("double", by_another_name), ("mode", wrong)]
)
def test_nothing_takes_the_place_of_what_is_not_there_or_is_another(name: str, another: Callable[..., int]) -> None:
    with pytest.raises(Gone):
        replace_function(Right, name, another)
    assert Right().double(3) == 6


def test_what_is_inherited_is_not_replaced() -> None:
    class Child(Right):
        pass

    with pytest.raises(Gone):
        replace_function(Child, "double", wrong)


def test_a_constant_is_replaced_by_one_of_its_type_only() -> None:
    module = types.ModuleType("module")
    module.NAME = "a"  # type: ignore[attr-defined]
    replace_value(module, "NAME", "b")
    assert module.NAME == "b"
    for name, wrong in (("NAME", 1), ("OTHER", "b")):
        with pytest.raises(Gone):
            replace_value(module, name, wrong)
    with pytest.raises(Gone):
        require(Right, ["mode", "manner"])
    require(Right, ["mode"])


def test_a_bug_that_there_is_not_stops_the_node(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        put_in_place("nothing")
    config = tmp_path / "config.yml"
    config.write_text(f"mount: {{dir: {tmp_path}/mount}}\ndata: {{dir: {tmp_path}/data}}\n")
    arguments = ["--mutation", "nothing", "-c", str(config), "run"]
    ended = subprocess.run(
        [sys.executable, "-m", "jepsen.cluster.daemon", *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert b"KeyError: 'nothing'" in ended.stderr
    assert not (tmp_path / "data").exists()


# -------------------------------------------------------------------------------------------------------- the table
def test_only_an_expected_anomaly_finds_a_bug_and_a_control_has_none_at_all() -> None:
    planted, control = Plan("set", ("kill",), 8, 1, mutation="bug"), Plan("set", ("kill",), 8, 1)
    assert Hunt(planted, "INVALID", {"set: lost": 1}, {}).is_right
    assert not Hunt(planted, "INVALID", {}, {"log-lines: traceback": 1}).is_right
    assert not Hunt(planted, "valid", {}, {}).is_right
    assert Hunt(control, "valid", {}, {}).is_right
    assert not Hunt(control, "UNKNOWN", {}, {}).is_right
    assert not Hunt(control, "INVALID", {}, {"set: lost": 1}).is_right


def test_the_table_has_a_row_for_each_bug_and_for_its_control() -> None:
    planted, control = Plan("set", ("kill",), 8, 1, mutation="bug"), Plan("set", ("kill",), 8, 1)
    found = markdown(
        [
            Hunt(planted, "INVALID", {"set: lost": 4}, {}),
            Hunt(planted, "valid", {}, {}),
            Hunt(control, "valid", {}, {}),
        ]
    )
    assert "| bug | set | kill | 8 | 1 | 1 of 2 | 4/0 set: lost |" in found
    assert "| none | set | kill | 8 | 1 | 1 of 1 | nothing |" in found


def test_a_bug_that_nobody_knows_is_not_looked_for() -> None:
    with pytest.raises(SystemExit, match="no such bug"):
        main(["mutants", "--only", "nothing"])
