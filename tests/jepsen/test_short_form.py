"""The short form of the matrix on real clusters: every workload and every nemesis once, and nothing is wrong."""

from pathlib import Path

import pytest

from jepsen import matrix

LIMIT_S = 420


@pytest.mark.timeout(LIMIT_S)
def test_every_workload_and_every_nemesis_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = matrix.run_all(matrix.short_plans(1), tmp_path, tmp_path / "cells.jsonl", print, shared=True)
    wrong = [cell for cell in cells if cell.verdict != "valid" or cell.problems]
    details = [(tmp_path / cell.history / "verdict").read_text(encoding="utf-8") for cell in wrong if cell.history]
    assert not wrong, "\n".join([capsys.readouterr().out, *details])
    assert all(cell.acknowledged > 10 for cell in cells), cells
