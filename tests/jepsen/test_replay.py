import io
from pathlib import Path

import pytest

from jepsen import edn_history, lines
from jepsen.__main__ import main
from jepsen.description import Description
from jepsen.lines import Record
from tests.jepsen.making import Making


def stored(folder: Path, making: Making, workload: str = "bank", total: int = 10) -> Path:
    path = folder / "history.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        lines.write(Record(tuple(making.operations), Description(workload, total=total)), stream)
    return path


def bank(*balances: dict[str, int]) -> Making:
    making = Making()
    for each in balances:
        making.did(0, "read", None, each)
    return making


@pytest.mark.parametrize(
    ("making", "code", "said"),
    [
        (bank({"0": 4, "1": 6}), 0, "bank × no nemesis, seed 0: valid; 1 operations"),
        (bank({"0": 4, "1": 7}), 1, "bank: wrong-total: T0 found 11 in all, not 10"),
        (bank(), 2, "UNKNOWN"),
    ],
)
def test_the_exit_code_is_the_verdict(
    making: Making, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(stored(tmp_path, making))]) == code
    assert said in capsys.readouterr().out


def test_a_report_and_a_history_for_others_are_written(tmp_path: Path) -> None:
    path = stored(tmp_path, bank({"0": 10}))
    assert main(["replay", str(path), "--html", str(tmp_path / "a.html"), "--edn", str(tmp_path / "a.edn")]) == 0
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(edn_history.read_history((tmp_path / "a.edn").read_text(encoding="utf-8"))) == 2
    assert main(["replay", str(tmp_path / "a.edn"), "--workload", "bank", "--total", "10"]) == 0
    assert main(["replay", str(tmp_path / "a.edn"), "--workload", "bank", "--total", "11"]) == 1


def test_a_history_that_was_cut_off_is_judged_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path, bank({"0": 10}, {"0": 11}))
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["replay", str(path)]) == 0
    assert "cut off" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"{}\n", b"5\n", b'{"test":{"workload":"x"}}\n', b""])
def test_what_cannot_be_read_has_an_exit_code_of_its_own(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(content)
    assert main(["replay", str(path)]) == 3
    assert capsys.readouterr().err.startswith(f"{path}: ")
    (tmp_path / "x.edn").write_bytes(b"\xff")
    assert main(["replay", str(tmp_path / "x.edn"), "--workload", "bank"]) == 3
    assert main(["replay", str(tmp_path / "missing")]) == 3


def test_a_workload_may_be_given_by_hand(tmp_path: Path) -> None:
    stream = io.StringIO()
    edn_history.write_history(bank({"0": 10}).operations, stream)
    path = tmp_path / "a.edn"
    path.write_text(stream.getvalue(), encoding="utf-8")
    assert main(["replay", str(path)]) == 3
    assert main(["replay", str(path), "--workload", "counter"]) == 3
