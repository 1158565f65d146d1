"""Several workloads at once on one real cluster, and one run after the other on the same."""

from pathlib import Path

from jepsen import lines, matrix
from jepsen.history import NEMESIS, OBSERVER
from jepsen.lines import Record
from jepsen.matrix import Cell

SECONDS = 6.0


def record_of(out: Path, cell: Cell) -> Record:
    return lines.read((out / cell.history / "history.jsonl").read_bytes())


def test_each_workload_has_a_history_of_its_own_in_which_is_what_broke_the_cluster(tmp_path: Path) -> None:
    said: list[str] = []
    cells_file = tmp_path / "cells.jsonl"
    # The databases of anywhere have the same names in every run.
    workloads = ["anywhere", "multi"]
    rounds = matrix.together(workloads, ["kill-client", "failover"], SECONDS, 1, forward_all=True)
    assert len(rounds) == 2
    cells = matrix.run_all(rounds, tmp_path, cells_file, said.append, clusters="alike", keep=True)
    assert [(each.workload, each.nemeses) for each in cells] == [
        ("anywhere", "kill-client"),
        ("multi", "kill-client"),
        ("anywhere", "failover"),
        ("multi", "failover"),
    ]
    assert [wrong(each) for each in cells] == [set()] * 4, said
    assert all(each.acknowledged > 10 for each in cells)
    for one, other in (cells[:2], cells[2:]):
        records = [record_of(tmp_path, one), record_of(tmp_path, other)]
        theirs = [
            [(each.process, each.f, each.value) for each in record.operations if each.process in {NEMESIS, OBSERVER}]
            for record in records
        ]
        assert theirs[0] == theirs[1]
        assert one.nemeses in {f for process, f, _ in theirs[0] if process == NEMESIS}
        names = [databases(record) for record in records]
        assert len(names[0]) == 2
        assert len(names[1]) >= 12
        # Nothing is left of the run before, and nobody is given what another has.
        assert {name.partition("-")[0] for name in names[0] | names[1]} == set(workloads)
        assert not names[0] & names[1]
        assert all(record.ending is not None and record.ending.present for record in records)
    assert {cell.failovers > 0 for cell in cells[2:]} == {True}
    assert {log.stat().st_nlink for log in (tmp_path / cells[0].history).glob("*.log")} == {2}

    before = cells_file.read_bytes()
    assert matrix.run_all(rounds, tmp_path, cells_file, said.append, clusters="alike", keep=True) == cells
    assert cells_file.read_bytes() == before


def wrong(cell: Cell) -> set[str]:
    """What was found, but for lines of a log: a busy machine has its own."""
    return {kind for kind in cell.anomalies or {} if not kind.startswith("log-lines: ")}


def databases(record: Record) -> set[str]:
    assert record.ending is not None
    return {database.name for node in record.ending.nodes for database in node.databases}
