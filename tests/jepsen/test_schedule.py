"""Plans of what breaks when, and that they are carried out."""

import itertools
import random
import threading
import time
from typing import Any, Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.cluster.cluster import Cluster
from jepsen.history import NEMESIS, Operation
from jepsen.nemeses import NEMESES, needs
from jepsen.nemeses.nemesis import Meanwhile, Nemesis
from jepsen.nemeses.ring import strangers
from jepsen.nemeses.schedule import CALM_S, CALM_SHARE, QUIET_S, Schedule, Turn, plan
from jepsen.periods import periods

TTL_S: Final = 3.0
FEW: Final = settings(max_examples=40, deadline=None)
NAMES: Final = st.lists(st.sampled_from(sorted(NEMESES)), min_size=1, max_size=6, unique=True)


def chosen(*names: str) -> dict[str, Nemesis]:
    return {name: NEMESES[name]() for name in names}


@FEW
@given(NAMES, st.floats(5, 120), st.integers(0, 2**32), st.booleans())
def test_what_touches_the_same_is_never_at_work_at_once(
    names: list[str], seconds: float, seed: int, hurry: bool
) -> None:
    nemeses = chosen(*names)
    turns = plan(nemeses, seconds, seed, TTL_S, hurry=hurry)
    for one, other in itertools.combinations(turns, 2):
        touch = nemeses[one.name].touches & nemeses[other.name].touches
        if touch or one.name == other.name:
            assert one.ends_s < other.begins_s or other.ends_s < one.begins_s, (one, other)
        if one.name == other.name:
            assert one.ends_s + nemeses[one.name].rests_s <= other.begins_s, (one, other)


@FEW
@given(NAMES, st.floats(5, 120), st.integers(0, 2**32), st.booleans())
def test_nothing_begins_at_once_and_the_last_stretch_is_calm(
    names: list[str], seconds: float, seed: int, hurry: bool
) -> None:
    turns = plan(chosen(*names), seconds, seed, TTL_S, hurry=hurry)
    assert turns
    assert turns[0].begins_s >= QUIET_S
    assert max(each.ends_s for each in turns) <= seconds - min(CALM_S, seconds * CALM_SHARE)


@FEW
@given(NAMES, st.integers(0, 2**32))
def test_the_same_seed_is_the_same_plan(names: list[str], seed: int) -> None:
    assert plan(chosen(*names), 60, seed, TTL_S) == plan(chosen(*names), 60, seed, TTL_S)


def test_another_seed_is_another_plan() -> None:
    plans = {plan(chosen("kill", "ring"), 60, seed, TTL_S) for seed in range(20)}
    assert len(plans) == 20


@FEW
@given(NAMES, st.integers(0, 2**32))
def test_each_has_its_turn_before_any_has_its_next(names: list[str], seed: int) -> None:
    turns = plan(chosen(*names), 400, seed, TTL_S)
    counts = {name: sum(each.name == name for each in turns) for name in names}
    assert min(counts.values()) > 3, counts


@FEW
@given(st.sampled_from(sorted(NEMESES)), st.integers(0, 2**32))
def test_a_turn_is_as_long_as_its_nemesis_says(name: str, seed: int) -> None:
    nemeses = chosen(name)
    least, most = nemeses[name].lasts_s(TTL_S)
    for each in plan(nemeses, 120, seed, TTL_S):
        assert least - 1e-6 <= each.ends_s - each.begins_s <= most + 1e-6


def test_several_are_at_work_at_once_where_they_do_not_touch_the_same() -> None:
    turns = plan(chosen("kill", "ring", "consul-leader"), 300, 1, TTL_S)
    together = [
        (one, other)
        for one, other in itertools.combinations(turns, 2)
        if one.begins_s < other.ends_s and other.begins_s < one.ends_s
    ]
    assert len(together) > 10


def test_in_a_hurry_all_of_them_fit_into_a_minute_and_a_half() -> None:
    turns = plan(NEMESES_ALL, 90, 1, TTL_S, hurry=True)
    assert {each.name for each in turns} == set(NEMESES)


NEMESES_ALL: Final = {name: make() for name, make in NEMESES.items()}


def test_what_a_cluster_must_be_made_with_is_the_sum_of_what_each_needs() -> None:
    assert needs(["kill", "ring"]) == {"small_disk": False, "faults": False, "proxies": False}
    assert needs(["kill", "disk-full", "slow"]) == {"small_disk": True, "faults": False, "proxies": True}
    assert needs(["clock"]) == needs(["io-error"]) == {"small_disk": False, "faults": True, "proxies": False}


@FEW
@given(st.integers(3, 12))
def test_on_a_ring_each_reaches_a_majority_and_no_two_the_same(count: int) -> None:
    ring = [f"m{place}" for place in range(count)]
    found = strangers(ring)
    reached = {one: frozenset(ring) - frozenset(others) for one, others in found.items()}
    assert all(len(each) > count / 2 for each in reached.values())
    assert all(one in found[other] for one, others in found.items() for other in others)
    if count >= 6:
        assert len(set(reached.values())) == count


# --------------------------------------------------------------------------------------------------- carrying it out
class Breaking:
    """A nemesis of which only is seen when it is called; it refuses in the turn ``refuses``, and takes its time."""

    kinds = ("any",)
    needs: frozenset[str] = frozenset()

    def __init__(
        self, name: str, seen: list[str], *, refuses: int = 0, takes_s: float = 0.0, touches: str = ""
    ) -> None:
        self.name = name
        self.touches = frozenset({touches} - {""})
        self.rests_s = 0.0
        self._seen = seen
        self._refuses = refuses
        self._takes_s = takes_s
        self._turns = 0

    def lasts_s(self, ttl_s: float) -> tuple[float, float]:
        return 0.0, ttl_s

    def begin(self, _: Cluster, numbers: random.Random) -> str:
        self._turns += 1
        if self._turns == self._refuses:
            raise AssertionError("this one cannot be done")
        self._seen.append(f"{self.name} begins")
        time.sleep(self._takes_s)
        return f"node {numbers.choice('abc')}"

    def end(self, _: Cluster) -> str:
        self._seen.append(f"{self.name} ends")
        return "all is well"


class Healing:
    """A cluster of which only is seen that it is healed."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def heal(self) -> None:
        self._seen.append("healed")


class Said:
    """What a schedule says, as the history has it."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def __call__(self, kind: str, f: str, value: object) -> None:
        number = len(self.operations)
        self.operations.append(Operation(number, number, NEMESIS, cast("Any", kind), f, value))


def scheduled(turns: list[Turn], seen: list[str], *nemeses: Breaking) -> Schedule:
    found: dict[str, Nemesis] = {name: Breaking(name, seen) for name in {each.name for each in turns}}
    return Schedule(cast("Cluster", Healing(seen)), found | {each.name: each for each in nemeses}, turns, seed=1)


def test_turns_are_taken_in_order_and_everything_is_healed_after_them() -> None:
    seen: list[str] = []
    said = Said()
    # Each is begun and ended by a task of its own, and the machine may be busy.
    turns = [Turn("kill", 0.0, 2.0), Turn("ring", 1.0, 4.0), Turn("failover", 3.0, 3.0)]
    schedule = scheduled(turns, seen)
    schedule.run(said)
    assert seen == ["kill begins", "ring begins", "kill ends", "failover begins", "ring ends", "healed"]
    assert not schedule.problems
    found = {each.name: each for each in periods(said.operations)}
    assert {name: each.lasting for name, each in found.items()} == {"kill": True, "ring": True, "failover": False}
    assert all(each.details.startswith("node ") for each in found.values())


def test_what_is_at_work_when_it_is_stopped_is_ended() -> None:
    seen: list[str] = []
    stopped = threading.Event()
    schedule = scheduled([Turn("kill", 0.0, 500.0), Turn("ring", 400.0, 500.0)], seen)
    threading.Timer(0.3, stopped.set).start()
    schedule.run(Said(), stopped)
    assert seen == ["kill begins", "kill ends", "healed"]


def test_what_cannot_be_done_is_told_and_the_rest_goes_on() -> None:
    seen: list[str] = []
    said = Said()
    schedule = scheduled([Turn("kill", 0.0, 0.1), Turn("kill", 0.2, 0.3)], seen, Breaking("kill", seen, refuses=1))
    schedule.run(said)
    assert seen == ["kill ends", "kill begins", "kill ends", "healed"]
    assert schedule.problems == ["start-kill: AssertionError: this one cannot be done"]
    assert said.operations[1].value == "failed: this one cannot be done"


def test_who_takes_long_makes_nobody_else_late() -> None:
    seen: list[str] = []
    turns = [Turn("failover", 0.1, 0.1), Turn("pause", 0.0, 0.3)]
    scheduled(turns, seen, Breaking("failover", seen, takes_s=0.8)).run(lambda *_: seen.append("said"))
    happened = [each for each in seen if each != "said"]
    assert happened == ["pause begins", "failover begins", "pause ends", "healed"]
    assert seen[-2:] == ["said", "healed"]


def test_who_is_late_still_waits_for_those_who_touch_the_same_or_is_left_out() -> None:
    seen: list[str] = []
    slow, other = (
        Breaking("slow", seen, takes_s=0.6, touches="network"),
        Breaking("other", seen, touches="network"),
    )
    turns = [Turn("slow", 0.0, 0.1), Turn("other", 0.2, 0.3), Turn("kill", 0.0, 0.8)]
    scheduled(turns, seen, slow, other).run(Said())
    order = [each for each in seen if "kill" not in each]
    assert order == ["slow begins", "slow ends", "other begins", "other ends", "healed"]
    seen.clear()
    slow = Breaking("slow", seen, takes_s=1.5, touches="network")
    scheduled(turns[:2], seen, slow, other).run(Said())
    assert seen == ["slow begins", "slow ends", "healed"]


def test_an_error_of_what_goes_on_meanwhile_comes_out_at_its_end() -> None:
    def step() -> float:
        raise OSError("the network is gone")

    meanwhile = Meanwhile(step)
    with pytest.raises(OSError, match="the network is gone"):
        meanwhile.end()
