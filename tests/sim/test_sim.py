"""The short form of ``python -m tests.sim``."""

from collections.abc import Iterator

import pytest
import structlog

from tests.sim.__main__ import simulate
from tests.sim.checker import Violated
from tests.sim.plane import Mutation

SCHEDULES = 12
FAULTS_S = 25.0
# From a seed that finds it today; a change of the code makes other schedules of the seeds.
ATTEMPTS = 60


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_what_must_hold_does_at_every_instant(seed: int) -> None:
    world = simulate(seed, faults_s=FAULTS_S)
    assert world.checker.acknowledged


def test_a_seed_repeats_a_schedule() -> None:
    first, again = (simulate(3, faults_s=10.0) for _ in range(2))
    assert first.checker.acknowledged == again.checker.acknowledged
    assert first.rng.getstate() == again.rng.getstate()


def violations(seed: int, mutation: Mutation) -> list[str]:
    try:
        simulate(seed, mutation, 20.0)
    except (Violated, BaseExceptionGroup) as error:
        return caught(error)
    return []


def caught(error: BaseException) -> list[str]:
    """Violations in an error or a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return [text for each in error.exceptions for text in caught(each)]
    return [str(error)] if isinstance(error, Violated) else []


@pytest.mark.parametrize(
    ("mutation", "first_seed", "says"),
    [
        pytest.param(Mutation(fence_is_ignored=True), 2, "acknowledged", id="a fence that closes nothing"),
        pytest.param(Mutation(margin_s=-3.0), 1, "acknowledged a commit of epoch", id="a negative margin"),
        pytest.param(Mutation(acknowledges_blindly=True), 4, "by handoff without", id="a handoff that does not wait"),
        pytest.param(Mutation(tail_is_dropped=True), 1, "is nowhere any more", id="a tail that is not kept"),
        pytest.param(Mutation(diverged_log_is_kept=True), 4, "logs differ", id="a replica that keeps what diverged"),
        pytest.param(Mutation(candidate_is_ignored=True), 1, "is not a candidate", id="candidate: false ignored"),
        pytest.param(Mutation(promises_are_broken=True), 45, "acknowledged a commit", id="promises that are not kept"),
    ],
)
def test_a_deliberate_mistake_is_found(mutation: Mutation, first_seed: int, says: str) -> None:
    for seed in range(first_seed, first_seed + ATTEMPTS):
        if any(says in text for text in violations(seed, mutation)):
            return
    pytest.fail("the simulation did not notice")
