"""Random programs on a mount and on a plain disk; the long run is ``python -m tests.differential``."""

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import limited
from tests.differential.found import FOUND
from tests.differential.generating import FEATURES, Generator
from tests.differential.operations import Operation, parse_program, program_text
from tests.differential.running import Difference, Run, describe
from tests.differential.shortening import shorten
from tests.differential.sides import Answer
from tests.differential.state import State

ALL = FEATURES
ONLY_WAL = FEATURES - {"rollback", "resize"}
# Without nodes that come and go: they cost seconds each.
QUICK = frozenset({"crash", "crashing", "restart", "stop", "fault"})


def run(program: Iterator[Operation] | list[Operation], running: Run, title: str) -> None:
    with limited([running.group]):
        try:
            running.all(program)
        except Difference as difference:
            pytest.fail(describe(difference, title, running.logs()))


@pytest.mark.parametrize(
    ("seed", "features", "steps", "replicas"),
    [(1, ONLY_WAL - QUICK, 120, 1), (2, ALL - QUICK, 150, 2), (3, ALL, 100, 1)],
)
def test_a_random_program_does_on_the_mount_what_it_does_on_a_plain_disk(
    seed: int, features: frozenset[str], steps: int, replicas: int
) -> None:
    with Run(replicas, rollback="rollback" in features) as running:
        run(Generator(seed, features).program(running.state, steps), running, f"seed {seed}")


@pytest.mark.parametrize("name", FOUND)
def test_a_program_that_once_showed_a_difference_shows_none(name: str) -> None:
    with Run(1, rollback=True) as running:
        run(parse_program(FOUND[name]), running, name)


def test_what_only_one_side_has_is_a_difference() -> None:
    program = parse_program("open c1 w0 a.db\nrun c1 CREATE TABLE t0 (id INTEGER PRIMARY KEY, v BLOB)")
    with Run(0, rollback=True) as running:
        running.all(program)
        running._plain.ask("w0", "run", "c1", "INSERT INTO t0 VALUES (1, 'plain')")
        with pytest.raises(Difference, match=r"mount:      \[\(0,\)\]"):
            running.all(parse_program("run c1 SELECT count(*) FROM t0"))
        with pytest.raises(Difference, match=r"a\.db: \('t0', 1, .* on a plain disk, \('t0', 0, .* here"):
            running.all(parse_program("compare"))


def test_a_program_is_text_that_can_be_run_again() -> None:
    program = parse_program(
        "open c1 w0 a.db\n\n# a remark\nrun c1 SELECT 1, 'x  y'\nkilling c1 50 DELETE FROM t0\ncompare\n"
    )
    assert program[1] == Operation("run", ("c1", "SELECT 1, 'x  y'"))
    assert parse_program(program_text(program)) == program
    with pytest.raises(ValueError, match="takes 3 words"):
        parse_program("open c1")


def test_one_seed_is_one_program() -> None:
    def text(seed: int) -> str:
        state, found = State(), []
        for operation in Generator(seed).program(state, 500):
            found.append(operation)
            if state.is_possible(operation):
                state.after(operation, Answer((), "", "", in_transaction=False))
        return program_text(found)

    assert text(5) == text(5)
    assert text(5) != text(6)


def test_a_program_is_shortened_to_what_shows_the_difference() -> None:
    program = [Operation("kill", (f"w{number}",)) for number in range(100)]

    def differs(tried: list[Operation]) -> Difference | None:
        if program[17] in tried and program[60] in tried:
            return Difference("", tried[: tried.index(program[60]) + 1])
        return None

    assert shorten(program, differs) == [program[17], program[60]]
