"""Keepers without faults: commands, their refusals, and stopping."""

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import pytest
import trio
import trio.testing

from litereplica.cluster.lease import Timing
from litereplica.cluster.role import State
from litereplica.errors import Refused, Unavailable
from litereplica.lease.memory import LOST, Turn
from litereplica.node.keeper import Keeper
from tests.sim.gate import run
from tests.sim.node import SimNode
from tests.sim.plane import Durable, SimPlane
from tests.sim.world import World

TTL_S = 3.0
LIMIT_S = 30.0


class Cluster:
    """n0, n1, n2; who is primary is asked, not told."""

    def __init__(self, *, continues: bool = False) -> None:
        world = self.world = World(1)
        world.calm, world.continues, world.timing = True, continues, Timing(TTL_S)
        world.nodes = world.nodes[:3]
        for node in world.nodes:
            node.candidate, node.priority = True, 0
        self.nursery: trio.Nursery

    @property
    def primary(self) -> SimNode:
        (primary,) = self.world.primaries()
        return primary

    @property
    def replicas(self) -> list[SimNode]:
        return [node for node in self.world.nodes if node.up and node is not self.primary]

    async def wait(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(LIMIT_S):
            while not condition():
                await trio.sleep(0.01)

    async def wait_agreed(self) -> None:
        up = [node for node in self.world.nodes if node.up]
        await self.wait(lambda: len(self.world.primaries()) == 1)
        await self.wait(lambda: all(keeper(node).primary == plane(self.primary).me for node in up))

    async def wait_connected(self) -> None:
        await self.wait_agreed()
        await self.wait(lambda: len(plane(self.primary).replicas()) == len(self.replicas))
        await trio.sleep(1.5)  # members are exchanged once a second


def play(scenario: Callable[[Cluster], Awaitable[None]], *, continues: bool = False) -> None:
    cluster = Cluster(continues=continues)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            cluster.nursery = nursery
            for node in cluster.world.nodes:
                node.start(nursery)
            await cluster.wait_connected()
            await scenario(cluster)
            nursery.cancel_scope.cancel()

    run(main, 1)


def keeper(node: SimNode) -> Keeper:
    assert node.keeper is not None
    return node.keeper


def plane(node: SimNode) -> SimPlane:
    assert node.plane is not None
    return node.plane


def test_a_handoff_makes_the_wanted_node_primary_and_loses_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, target = cluster.primary, cluster.replicas[0]
        began = trio.current_time()
        assert (await keeper(old).failover(target.name, force=False)).node == target.name
        await cluster.wait_agreed()
        assert cluster.primary is target
        assert trio.current_time() - began < 1.0
        assert not old.durable.diverged
        assert "hands off" in keeper(target).reason
        assert target.durable.reigns[keeper(target).epoch].node == target.name

    play(scenario)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("itself", "is the primary already"),
        ("unknown", "no node is called 'elsewhere'"),
        ("spectator", "is not a candidate"),
        ("torn", "is in the middle of a snapshot"),
        ("cut", "is not connected"),
    ],
)
def test_a_handoff_to_a_node_that_may_not_have_it_is_refused(what: str, reason: str, force: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        old, target = cluster.primary, cluster.replicas[0]
        name = {"itself": old.name, "unknown": "elsewhere"}.get(what, target.name)
        if what == "spectator":
            await target.crash()
            target.candidate = False
            target.start(cluster.nursery)
            await cluster.wait_connected()
        elif what == "torn":
            plane(target).whole = False
            await trio.sleep(1.5)
        elif what == "cut":
            cluster.world.cut |= {(target.name, old.name), (old.name, target.name)}
            await trio.sleep(2.0)
        with pytest.raises(Refused, match=reason):
            await keeper(old).failover(name, force=force)
        assert keeper(old).state is State.PRIMARY

    play(scenario)


def test_a_handoff_with_nobody_to_hand_off_to_is_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        for node in cluster.replicas:
            await node.crash()
        await trio.sleep(2.0)
        with pytest.raises(Refused, match="no candidate is connected"):
            await keeper(cluster.primary).failover(None, force=False)

    play(scenario)


def test_a_replica_sends_whoever_asks_it_to_the_primary() -> None:
    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(Refused, match=f"{cluster.primary.name} is, at http://{cluster.primary.name}"):
            await keeper(cluster.replicas[0]).failover(None, force=False)

    play(scenario)


def test_a_replica_takes_nothing_from_a_primary_that_lives_even_by_force() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        with pytest.raises(Refused, match="lives and renews its lease"):
            await keeper(cluster.replicas[0]).failover(None, force=True)
        assert cluster.primary is old

    play(scenario)


def test_a_replica_takes_over_by_force_when_the_primary_is_gone() -> None:
    async def scenario(cluster: Cluster) -> None:
        chosen = cluster.replicas[-1]
        await cluster.primary.crash()
        assert (await keeper(chosen).failover(None, force=True)).node == chosen.name
        assert cluster.primary is chosen

    play(scenario)


def test_a_second_handoff_waits_for_the_first() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        plane(old).unyielding = ("app.db: process 7 (writer)",)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignore_refusal, old)
            await cluster.wait(lambda: keeper(old).state is State.HANDING_OFF)
            with pytest.raises(Refused, match="is handing off"):
                await keeper(old).failover(None, force=False)

    play(scenario)


async def _ignore_refusal(node: SimNode) -> None:
    with pytest.raises(Refused):
        await keeper(node).failover(None, force=False)


def test_a_writer_that_does_not_yield_calls_a_handoff_off_and_is_named() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        plane(old).unyielding = ("app.db: process 7 (writer)",)
        with pytest.raises(Refused, match=r"app\.db: process 7 \(writer\).*--force"):
            await keeper(old).failover(None, force=False)
        assert keeper(old).state is State.PRIMARY
        before = len(cluster.world.checker.acknowledged)
        await trio.sleep(0.5)
        assert len(cluster.world.checker.acknowledged) > before

    play(scenario)


def test_a_writer_that_does_not_yield_is_passed_over_by_force_and_nothing_is_lost() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        plane(old).unyielding = ("app.db: process 7 (writer)",)
        with trio.move_on_after(LIMIT_S):
            while True:  # a commit between the last look and the offer is waited for, or calls it off
                try:
                    await keeper(old).failover(None, force=True)
                except Refused:
                    continue
                break
        await cluster.wait_agreed()
        assert cluster.primary is not old
        assert cluster.world.checker.handoffs == 1

    play(scenario)


def test_a_handoff_is_taken_back_when_the_target_does_not_take_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, target = cluster.primary, cluster.replicas[0]
        epoch = keeper(old).epoch
        cluster.world.away[target.name] = lambda: LOST
        with pytest.raises(Refused, match=f"{target.name} did not take the lease within 1 s"):
            await keeper(old).failover(target.name, force=False)
        assert keeper(old).state is State.PRIMARY
        assert keeper(old).epoch == epoch
        before = len(cluster.world.checker.acknowledged)
        await trio.sleep(TTL_S)
        assert len(cluster.world.checker.acknowledged) > before
        assert cluster.primary is old

    play(scenario)


def test_a_stopping_primary_hands_off_first() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        began = trio.current_time()
        await old.stop()
        await cluster.wait_agreed()
        assert cluster.world.checker.handoffs == 1
        assert trio.current_time() - began < 1.0
        assert not old.up

    play(scenario)


def test_a_stopping_primary_without_a_candidate_gives_the_lease_up() -> None:
    async def scenario(cluster: Cluster) -> None:
        for node in cluster.replicas:
            await node.crash()
        await trio.sleep(2.0)
        old, sim = keeper(cluster.primary), cluster.primary
        await sim.stop()
        assert old.state is State.STOPPED
        assert cluster.world.store.view.holding is None

    play(scenario)


def test_a_stopping_primary_pushes_a_handoff_through_that_was_called_off() -> None:
    """A person's, without force, while somebody sits in a transaction: the stop waits for it, then does its own."""

    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        plane(old).unyielding = ("app.db: process 7 (writer)",)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignore_refusal, old)
            await cluster.wait(lambda: keeper(old).state is State.HANDING_OFF)
            await old.stop()
        await cluster.wait_agreed()
        assert cluster.world.checker.handoffs == 1
        assert not old.up

    play(scenario)


def test_nobody_is_handed_anything_by_a_primary_that_stops_but_by_the_stop() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, running = cluster.primary, keeper(cluster.primary)
        plane(old).unyielding = ("app.db: process 7 (writer)",)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.stop)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Refused):
                await running.failover(None, force=False)
        await cluster.wait_agreed()
        assert cluster.world.checker.handoffs == 1

    play(scenario)


@pytest.mark.parametrize("late_s", [0.5, 1.5])
def test_replicas_get_what_they_lack_before_a_stopping_primary_gives_the_lease_up(late_s: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        sim, old = cluster.primary, keeper(cluster.primary)
        goes_on = trio.Event()
        for each in cluster.replicas:
            _delay(plane(each), goes_on)
        await trio.sleep(0.3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sim.stop)
            await cluster.wait(lambda: old.state is State.STOPPING)
            await trio.sleep(late_s)
            assert cluster.world.store.view.holding is not None, "it waits for them"
            goes_on.set()
        await cluster.wait(lambda: len(cluster.world.primaries()) == 1)
        log = sim.durable.log
        assert cluster.primary.durable.log[: len(log)] == log
        assert not sim.up

    play(scenario)


def test_a_stopping_primary_waits_for_replicas_no_longer_than_its_lease_lasts() -> None:
    async def scenario(cluster: Cluster) -> None:
        sim, old = cluster.primary, keeper(cluster.primary)
        for each in cluster.replicas:
            _delay(plane(each), trio.Event())
        await trio.sleep(0.3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sim.stop)
            await cluster.wait(lambda: old.state is State.STOPPING)
            began = trio.current_time()
            await cluster.wait(lambda: old.state is State.STOPPED)
            assert 0.5 < trio.current_time() - began < min(2.0, TTL_S) + 0.2
            assert cluster.world.store.view.holding is None

    play(scenario)


def _delay(replica: SimPlane, goes_on: trio.Event) -> None:
    """Nothing reaches a replica until then, and neither end takes the other for gone."""
    receive = replica._receive_from

    async def wait(source: SimPlane) -> None:
        await goes_on.wait()
        await receive(source)

    replica._receive_from = wait  # type: ignore[method-assign]


def test_a_stopping_replica_disturbs_nobody() -> None:
    async def scenario(cluster: Cluster) -> None:
        primary, epoch = cluster.primary, keeper(cluster.primary).epoch
        await cluster.replicas[0].stop()
        await trio.sleep(2 * TTL_S)
        assert cluster.primary is primary
        assert keeper(primary).epoch == epoch

    play(scenario)


def test_a_node_stops_in_bounded_time_while_the_store_is_away() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        cluster.world.away.update({node.name: lambda: LOST for node in cluster.world.nodes})
        with trio.fail_after(40.0):
            await old.stop()

    play(scenario)


def test_a_primary_that_is_started_again_before_its_lease_is_over_does_not_follow_itself() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        for node in cluster.replicas:
            await node.crash()
        await old.crash()
        old.start(cluster.nursery)
        await cluster.wait(lambda: cluster.world.primaries() == [old])
        assert ("replica", old.name) in [told[:2] for told in plane(old).told], "its own lease was seen"

    play(scenario)


def test_a_promotion_that_fails_leaves_the_lease_to_another() -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = cluster.replicas
        plane(first).fails_to_promote = True
        old = cluster.primary
        with trio.move_on_after(1.0):
            await keeper(old).failover(first.name, force=False)
        await old.crash()
        await cluster.wait(lambda: cluster.world.primaries() == [second])

    play(scenario)


def test_a_node_that_is_fenced_while_it_takes_the_lease_leaves_it_to_another() -> None:
    """It accepts nothing, and as long as it renews the lease nobody else would."""

    async def scenario(cluster: Cluster) -> None:
        replicas = cluster.replicas
        await cluster.primary.crash()
        while not (taking := [node for node in replicas if keeper(node).state is State.TAKING]):
            await trio.sleep(0.001)
        (fenced,) = taking
        plane(fenced).whole = False
        keeper(fenced).unfit("its disk has failed")
        assert keeper(fenced).state is State.TAKING, "the lease's answer is still to come"
        (other,) = [node for node in replicas if node is not fenced]
        await cluster.wait(lambda: cluster.world.primaries() == [other])

    play(scenario)


def test_commits_go_on_while_the_store_is_away_until_the_fence_and_go_on_when_it_is_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, epoch = cluster.primary, keeper(cluster.primary).epoch
        began = trio.current_time()
        cluster.world.away.update({node.name: lambda: LOST for node in cluster.world.nodes})
        await trio.sleep(TTL_S + 1.0)
        last = len(cluster.world.checker.acknowledged)
        await cluster.wait(lambda: not cluster.world.primaries())
        assert trio.current_time() - began < TTL_S + 2.0
        assert len(cluster.world.checker.acknowledged) == last
        cluster.world.away.clear()
        await cluster.wait_agreed()
        assert keeper(cluster.primary).epoch > epoch
        assert old.up

    play(scenario)


def test_with_failsafe_commits_go_on_while_everybody_promises_and_stop_when_one_does_not() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, epoch = cluster.primary, keeper(cluster.primary).epoch
        cluster.world.away.update({node.name: lambda: LOST for node in cluster.world.nodes})
        await trio.sleep(5 * TTL_S)
        assert cluster.primary is old
        before = len(cluster.world.checker.acknowledged)
        await trio.sleep(1.0)
        assert len(cluster.world.checker.acknowledged) > before
        other = cluster.replicas[0].name
        cluster.world.cut |= {(old.name, other), (other, old.name)}
        await trio.sleep(TTL_S + 1.0)
        last = len(cluster.world.checker.acknowledged)
        await trio.sleep(1.0)
        assert len(cluster.world.checker.acknowledged) == last
        cluster.world.cut.clear()
        cluster.world.away.clear()
        await cluster.wait_agreed()
        assert keeper(cluster.primary).epoch > epoch

    play(scenario, continues=True)


@pytest.mark.parametrize("stopped_s", [0.5 * TTL_S, 3 * TTL_S])
def test_a_primary_that_was_stopped_accepts_nothing_late(stopped_s: float) -> None:
    async def scenario(cluster: Cluster) -> None:
        old, epoch = cluster.primary, keeper(cluster.primary).epoch
        plane(old).frozen = True
        old.gate.close()
        await trio.sleep(stopped_s)
        plane(old).frozen = False
        old.gate.open()
        await cluster.wait_agreed()
        if stopped_s < TTL_S:
            assert cluster.primary is old
            assert keeper(old).epoch == epoch
        else:
            assert cluster.primary is not old

    play(scenario)


# Nothing arrives, and nothing comes back: also what was asked before.
SILENCE: Final = Turn(math.inf, math.inf)


async def forget(cluster: Cluster, old: SimNode) -> None:
    """Another node accepts commits; the lease's store loses everything, and ``old`` is the first who hears of it.

    The checker says it when two of them accept commits; whoever has the newer epoch stays.
    """
    world = cluster.world
    before = keeper(old).epoch
    await cluster.wait(lambda: world.checker.acknowledged[-1].epoch > before)
    epoch = world.checker.acknowledged[-1].epoch
    world.store.wipe()
    world.away = {each.name: lambda: SILENCE for each in world.nodes if each is not old}
    plane(old).frozen = False
    old.gate.open()
    await trio.sleep(0.8)
    world.away.clear()
    await trio.sleep(2 * TTL_S)
    await cluster.wait_agreed()
    assert cluster.primary is not old
    assert keeper(cluster.primary).epoch == epoch


def test_an_offer_that_may_have_been_taken_is_not_taken_back_from_a_store_that_has_forgotten() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, target, store = cluster.primary, cluster.replicas[0], cluster.world.store

        async def hand_off() -> None:
            with suppress(Refused):
                await keeper(old).failover(target.name, force=False)

        cluster.nursery.start_soon(hand_off)
        while store.holding is None or not store.holding.offered_to:
            await trio.sleep(0.001)
        cluster.world.away[old.name] = lambda: SILENCE
        await cluster.wait(lambda: keeper(old).state is State.RECLAIMING)
        await forget(cluster, old)

    play(scenario)


@pytest.mark.parametrize("what", ["stopped", "cut off"])
def test_a_lease_that_has_run_out_is_not_made_anew_in_a_store_that_has_forgotten(what: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        if what == "stopped":
            plane(old).frozen = True
            old.gate.close()
        else:
            cluster.world.away[old.name] = lambda: SILENCE
        await forget(cluster, old)

    play(scenario)


def test_an_offer_that_may_have_been_taken_is_not_given_up_in_a_store_that_knows_nothing_newer() -> None:
    """The store was wiped, and made anew by a node that did not hear of the next primary."""

    async def scenario(cluster: Cluster) -> None:
        old, (target, late), world = cluster.primary, cluster.replicas, cluster.world
        store = world.store

        async def hand_off() -> None:
            with suppress(Refused):
                await keeper(old).failover(target.name, force=False)

        cluster.nursery.start_soon(hand_off)
        while store.holding is None or not store.holding.offered_to:
            await trio.sleep(0.001)
        offer = store.holding
        plane(late).frozen = True
        late.gate.close()
        world.away[old.name] = lambda: SILENCE
        await cluster.wait(lambda: keeper(old).state is State.RECLAIMING)
        await cluster.wait(lambda: world.checker.acknowledged[-1].epoch > offer.epoch)
        store.wipe()
        store.cluster, store.top_epoch = plane(late).durable.cluster, offer.epoch
        store.put(None, lapsed=offer)
        world.away = {target.name: lambda: SILENCE}
        keeper(old).unfit("its disk has failed")
        plane(late).frozen = False
        late.gate.open()
        await trio.sleep(2 * TTL_S)
        world.away.clear()
        await cluster.wait_agreed()

    play(scenario)


def test_who_saw_a_lease_given_up_only_waits_when_the_store_has_forgotten_who_took_it_since() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, (late, other) = cluster.primary, cluster.replicas
        await late.crash()
        await other.crash()
        await old.stop()
        world = cluster.world
        late.start(cluster.nursery)
        plane(late).whole = False
        await trio.sleep(1.0)
        plane(late).frozen = True
        late.gate.close()
        old.start(cluster.nursery)
        await cluster.wait(lambda: world.primaries() == [old])
        await trio.sleep(0.5)
        world.store.wipe()
        world.away[old.name] = lambda: SILENCE
        plane(late).whole, plane(late).frozen = True, False
        late.gate.open()
        await trio.sleep(0.5 * TTL_S)
        assert keeper(late).primary is None
        await cluster.wait(lambda: keeper(late).role == "primary")
        assert keeper(late).epoch > keeper(old).epoch

    play(scenario)


def test_a_node_whose_machine_has_slept_does_not_take_the_lease_of_a_primary_that_it_could_not_see_renew() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, (sleeper, other) = cluster.primary, cluster.replicas
        await other.crash()
        cluster.world.away[old.name] = lambda: SILENCE
        await trio.sleep(0.1)
        sleeper.slept_s += 3700.0
        await trio.sleep(TTL_S / 2)
        assert cluster.primary is old
        await cluster.wait(lambda: cluster.world.primaries() == [sleeper])

    play(scenario)


def test_a_primary_alone_that_was_stopped_beyond_the_ttl_goes_on_with_its_epoch() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, epoch = cluster.primary, keeper(cluster.primary).epoch
        for node in cluster.replicas:
            await node.crash()
        old.gate.close()
        await trio.sleep(5 * TTL_S)
        old.gate.open()
        before = len(cluster.world.checker.acknowledged)
        await trio.sleep(1.0)
        assert cluster.primary is old
        assert keeper(old).epoch == epoch
        assert len(cluster.world.checker.acknowledged) > before

    play(scenario)


def test_a_primary_that_is_told_of_a_higher_epoch_gives_up_and_the_next_one_is_above_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        old, epoch = cluster.primary, keeper(cluster.primary).epoch
        keeper(old).saw_epoch(epoch)
        assert cluster.primary is old
        cluster.replicas[0].durable.epoch = epoch + 100
        await cluster.wait(lambda: old not in cluster.world.primaries())
        await cluster.wait(lambda: any(keeper(node).epoch > epoch + 100 for node in cluster.world.primaries()))

    play(scenario)


def test_every_change_of_role_says_why() -> None:
    async def scenario(cluster: Cluster) -> None:
        old = cluster.primary
        await keeper(old).failover(None, force=False)
        await cluster.wait_agreed()
        told = plane(old).told
        assert [(role, primary) for role, primary, _, _ in told][-3:] in (
            [("replica", ""), ("primary", old.name), ("replica", cluster.primary.name)],
            [("primary", old.name), ("replica", ""), ("replica", cluster.primary.name)],
            [("primary", old.name), ("replica", cluster.primary.name)],
        )
        assert told[-1][3] == f"{cluster.primary.name} has taken the lease"

    play(scenario)


def test_nobody_can_be_forced_while_the_lease_cannot_be_read() -> None:
    world = World(1)
    world.calm, world.timing = True, Timing(TTL_S)
    node = world.nodes[0]
    world.away[node.name] = lambda: LOST

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            node.candidate = True
            node.start(nursery)
            await trio.sleep(1.0)
            with pytest.raises(Unavailable, match="cannot be read"):
                await keeper(node).failover(None, force=True)
            nursery.cancel_scope.cancel()

    run(main, 1)


async def crash_all(cluster: Cluster) -> None:
    """As a loss of power: the lease is nobody's, and its time has to pass."""
    instances = [plane(node).me.instance for node in cluster.world.nodes if node.up]
    for node in cluster.world.nodes:
        await node.crash()
    for instance in instances:
        cluster.world.store.end_session(instance)


def test_a_node_whose_data_are_gone_waits_for_those_that_have_some() -> None:
    async def scenario(cluster: Cluster) -> None:
        first, *others = cluster.world.nodes
        await crash_all(cluster)
        had = min(len(node.durable.log) for node in others)
        assert had
        first.durable = Durable()
        first.start(cluster.nursery)
        await trio.sleep(3 * TTL_S)
        assert not cluster.world.primaries()
        assert "start the nodes that have them" in keeper(first).held_back
        began = trio.current_time()
        for node in others:
            node.start(cluster.nursery)
        await cluster.wait_agreed()
        assert trio.current_time() - began < TTL_S + 0.5, "they see the lease for the first time"
        assert cluster.primary in others
        assert len(cluster.primary.durable.log) >= had
        await cluster.wait(lambda: len(first.durable.log) >= had)
        assert not any(node.durable.diverged for node in others)
        # From here on it is as good as any.
        await trio.sleep(1.5)
        assert (await keeper(cluster.primary).failover(first.name, force=False)).node == first.name

    play(scenario)


def test_the_first_transactions_of_a_cluster_are_known_to_who_comes_later() -> None:
    """Whose only primary began with nothing."""

    async def scenario(cluster: Cluster) -> None:
        first, old = cluster.replicas[0], cluster.primary
        assert len(cluster.world.store.reigns) == 1
        await crash_all(cluster)
        assert old.durable.log
        first.durable = Durable()
        first.start(cluster.nursery)
        await trio.sleep(3 * TTL_S)
        assert not cluster.world.primaries()

    play(scenario)


def test_a_node_whose_data_are_gone_leads_by_force_and_is_the_cluster_from_then_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        first = cluster.world.nodes[0]
        await crash_all(cluster)
        first.durable = Durable()
        first.start(cluster.nursery)
        await trio.sleep(2 * TTL_S)
        assert not cluster.world.primaries()
        cluster.world.quiet = True
        assert (await keeper(first).failover(None, force=True)).node == first.name
        await trio.sleep(2.0)
        # Nothing was committed there, and it needs nobody's word for it again.
        await crash_all(cluster)
        first.start(cluster.nursery)
        await cluster.wait(lambda: cluster.world.primaries() == [first])

    play(scenario)


def test_a_cluster_without_transactions_elects_hands_off_and_starts_again() -> None:
    cluster = Cluster()
    cluster.world.quiet = True

    async def main() -> None:
        async with trio.open_nursery() as cluster.nursery:
            for node in cluster.world.nodes:
                node.start(cluster.nursery)
            await cluster.wait_connected()
            old, target = cluster.primary, cluster.replicas[0]
            assert (await keeper(old).failover(target.name, force=False)).node == target.name
            await cluster.wait_connected()
            await target.crash()
            cluster.world.store.last_will(f"{target.name}-1")
            began = trio.current_time()
            await cluster.wait_agreed()
            assert trio.current_time() - began < 1.0
            gone = cluster.primary
            await crash_all(cluster)
            for node in cluster.world.nodes:
                if node is not gone:
                    node.start(cluster.nursery)
            await cluster.wait_agreed()
            assert not any(node.durable.log for node in cluster.world.nodes)
            cluster.nursery.cancel_scope.cancel()

    run(main, 1)


def test_a_node_without_data_leads_nobody_before_it_could_read_the_history() -> None:
    async def scenario(cluster: Cluster) -> None:
        first, *others = cluster.world.nodes
        await crash_all(cluster)
        first.durable = Durable()
        fair = cluster.world.hook
        cluster.world.store.hook = lambda node, method: LOST if method == "history" else fair(node, method)
        first.start(cluster.nursery)
        await trio.sleep(3 * TTL_S)
        assert not cluster.world.primaries()
        cluster.world.store.hook = fair
        for node in others:
            node.start(cluster.nursery)
        await cluster.wait_agreed()
        assert cluster.primary in others

    play(scenario)
