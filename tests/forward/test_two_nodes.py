"""One program, the same on the primary and on its replica at once: what it was told is what is there."""

import pytest

from tests.failover.field import Field
from tests.forward.campaign import Plan, Round, play
from tests.forward.faults import Nemesis
from tests.forward.programs import Programs

pytestmark = pytest.mark.timeout(115)

NODES = 2
SECONDS = 8.0


def assert_right(found: Round, least: int = 20) -> None:
    """``least``: successes on either node, so that there was something to be right about."""
    assert not found.verdict.problems, "\n".join(found.verdict.problems)
    assert found.by_role["on the primary"] > least, found
    assert found.by_role["on a replica"] > least, found


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_every_success_of_both_nodes_is_there_once_and_every_error_nowhere(field: Field, mode: str) -> None:
    replica = field.others(field.primary())[0]
    found = play(field, f"two {mode}", Plan([mode], seconds=SECONDS), maker=replica)
    assert_right(found)
    # Nothing happened: no outcome was unknown, and nobody waited long.
    assert (found.verdict.unknown_there, found.verdict.unknown_away) == (0, 0)
    assert found.verdict.longest_s < 10, found.verdict


def test_appliers_and_programs_die_in_between(field: Field) -> None:
    def script(nemesis: Nemesis, programs: Programs) -> None:
        for node in field.all * 2:
            nemesis.kill_applier(node)
            programs.pause(0.5)
            nemesis.kill_writer(node)
            programs.pause(0.5)

    # An applier takes its time to begin, and half of the time one of them is about to.
    assert_right(play(field, "two killed", Plan(), script=script), least=5)


def test_the_wire_goes_dead_in_the_middle_of_an_answer(field: Field) -> None:
    replica = field.others(field.primary())[0]

    def script(nemesis: Nemesis, programs: Programs) -> None:
        for _ in range(3):
            nemesis.cut_in_answer(replica)
            programs.pause(1.5)
            nemesis.heal()
            programs.pause(0.5)

    assert_right(play(field, "two cut", Plan(), script=script), least=5)
