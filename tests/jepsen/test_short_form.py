"""The short form: every workload meets every nemesis on a real cluster, and nothing of what is promised is broken."""

from pathlib import Path

import pytest

from jepsen import lines, matrix
from jepsen.history import NEMESIS, pair
from jepsen.matrix import Cell
from jepsen.runner import HISTORY
from jepsen.workloads import WORKLOADS

HANG_S = 360
"""Of a round, which takes a minute or two: 35 s of work, and two times as much to look at what came of it."""
ROUNDS = matrix.short_together(seed=1)


@pytest.mark.timeout(HANG_S)
@pytest.mark.parametrize("plans", ROUNDS, ids=["+".join(plans[0].nemeses) for plans in ROUNDS])
def test_all_workloads_at_once_under_some_nemeses(plans: matrix.Round, tmp_path: Path) -> None:
    said: list[str] = []
    cells = matrix.run_all([plans], tmp_path, tmp_path / "cells.jsonl", said.append, keep=True)
    print("\n".join(said))  # noqa: T201 - what ran, for who reads why this failed
    assert {each.workload: wrong(each) for each in cells} == {name: set() for name in WORKLOADS}
    for each in cells:
        record = lines.read((tmp_path / each.history / HISTORY).read_bytes())
        at_work = {str(one.f).removeprefix("start-") for one in record.operations if one.process == NEMESIS}
        assert at_work >= set(plans[0].nemeses)
        assert each.acknowledged > 5, each
        if each.workload == "anywhere":
            through_proxies(record)


def through_proxies(record: lines.Record) -> None:
    """Some of what was asked on a replica was done by the primary's application.

    A look that has to wait for what its client has seen may find nobody who has it: half a minute is short.
    """
    calls = pair(record.operations)
    elsewhere = [call for call in calls if call.ok and call.node != call.invocation.node]
    assert {call.f for call in elsewhere} & {"txn", "write"}
    assert any(call.f == "look" for call in calls)


def wrong(cell: Cell) -> set[str]:
    """What was found, but for single lines of a log that nobody expected: a busy machine has its own."""
    return set(cell.anomalies or {}) - {"log-lines: unexpected-line"}
