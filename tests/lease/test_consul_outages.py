"""A Consul that dies, stands still, forgets, or loses its leader."""

import signal
from dataclasses import replace

import pytest
import trio

from litereplica.cluster.election import Sight, judge
from litereplica.cluster.lease import LEAST_LEAP, Timing, View
from litereplica.cluster.role import Event
from litereplica.errors import Refused, Unavailable
from litereplica.lease.consul_client import call_limit_s
from litereplica.node.keeper_renewal import Renewal
from tests.lease.support import LIMIT_S, TTL_S, endpoint, held, member, place, until_done
from tests.support.consul import Agent, Consuls, leader_of

pytestmark = pytest.mark.timeout(90)


async def test_an_agent_that_is_killed_and_started_again_is_used_again(consuls: Consuls) -> None:
    agent = consuls.single()
    async with place(agent) as kept:
        lease, mine = await held(kept)
        agent.kill()
        with pytest.raises(Unavailable):
            await lease.renew(mine)
        await trio.to_thread.run_sync(lambda: agent.start(wait=False))
        renewed = await until_done(lease.renew, mine)
        assert renewed.epoch == mine.epoch


async def test_a_stopped_agent_answers_nothing_and_what_arrived_late_does_no_harm(consuls: Consuls) -> None:
    agent = consuls.single()
    async with place(agent) as kept:
        lease, mine = await held(kept)
        other, _ = await kept.joined("b")
        agent.signal(signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await lease.renew(mine, "b")
        agent.signal(signal.SIGCONT)
        renewed = await until_done(lease.renew, mine)
        assert renewed.offered_to == ""
        seen = await until_done(other.watch, None, LIMIT_S)
        assert seen.holding is not None
        assert seen.holding.offered_to == ""


async def test_a_wiped_consul_brings_back_neither_old_epochs_nor_another_cluster(consuls: Consuls) -> None:
    agent = consuls.single()
    async with place(agent) as kept:
        first = endpoint("a")
        lease = kept.lease(first)
        cluster = await lease.join("", member(first))
        mine = await lease.acquire(await lease.watch(None, LIMIT_S), first, TTL_S, 10_000)
        other, second = await kept.joined("b", cluster=cluster)
        await other.watch(None, LIMIT_S)
        await trio.to_thread.run_sync(agent.wipe)
        seen = await until_done(other.watch, None, LIMIT_S)
        assert seen.holding == mine, "who saw a holder waits for its ttl, whatever Consul forgot"
        renewed = await until_done(lease.renew, mine)
        assert renewed.epoch == mine.epoch
        again = endpoint("c")
        assert await kept.lease(again).join("", member(again)) == cluster
        await lease.release(renewed)
        theirs = await other.acquire(await other.watch(None, LIMIT_S), second, TTL_S, 0)
        assert theirs.epoch > mine.epoch


async def test_a_wiped_consul_and_a_dead_primary(consuls: Consuls) -> None:
    agent = consuls.single()
    async with place(agent) as kept:
        first = endpoint("a")
        lease = kept.lease(first)
        cluster = await lease.join("", member(first))
        mine = await lease.acquire(await lease.watch(None, LIMIT_S), first, TTL_S, 10_000)
        other, second = await kept.joined("b", cluster=cluster)
        await other.watch(None, LIMIT_S)
        await trio.to_thread.run_sync(agent.wipe)
        seen = await until_done(other.watch, None, LIMIT_S)
        theirs = await until_done(other.acquire, seen, second, TTL_S, 0)
        assert theirs.epoch > mine.epoch
        again = endpoint("c")
        assert await kept.lease(again).join("", member(again)) == cluster
        with pytest.raises(Refused):
            await lease.renew(mine)


@pytest.mark.parametrize("former", ["its holder", "to whom it was offered"])
async def test_a_restored_consul_makes_nobody_the_primary_beside_the_one_that_lives(
    consuls: Consuls, former: str
) -> None:
    agent = consuls.single()
    async with place(agent) as kept:
        lease, at = await kept.joined("a")
        other, second = await kept.joined("b")
        living, third = await kept.joined("c")
        mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
        if former != "its holder":
            await lease.renew(mine, "b")
            lease, at = other, second
        saved = await trio.to_thread.run_sync(agent.snapshot)
        theirs = await living.acquire(await living.watch(None, LIMIT_S), third, TTL_S, 0)
        before = await lease.watch(None, LIMIT_S)
        await trio.to_thread.run_sync(agent.restore, saved)
        seen = await until_done(lease.watch, before, LIMIT_S)
        assert seen.gone
        assert seen.holding == theirs
        assert await until_done(lease.watch, None, LIMIT_S) == await until_done(lease.watch, seen, 0.3) == seen
        assert judge(seen, at, 0.0) is Sight.HELD
        assert judge(seen, at, TTL_S) is Sight.LAPSED
        assert judge(await until_done(living.watch, None, LIMIT_S), third, 0.0) is Sight.HELD
        renewed = await until_done(living.renew, theirs)
        assert renewed.epoch == theirs.epoch
        assert await until_done(lease.watch, seen, LIMIT_S) == View(renewed, renewed.index)
        with pytest.raises(Refused):
            await lease.acquire(seen, at, TTL_S, 0)
        kept.end_session(third)
        newcomer, _ = await kept.joined("n")
        left = await newcomer.watch(None, LIMIT_S)
        assert left.holding is not None
        assert (left.holding.holder, left.holding.epoch) == (third, theirs.epoch)
        assert (await living.renew(renewed)).epoch == theirs.epoch
        await living.close()
        assert (await lease.watch(None, LIMIT_S)).holding is None


async def test_a_restored_consul_and_a_dead_primary(consuls: Consuls) -> None:
    agent = consuls.single()
    async with place(agent) as kept:
        lease, before = await held(kept)
        other, second = await kept.joined("b")
        saved = await trio.to_thread.run_sync(agent.snapshot)
        theirs = await other.acquire(await other.watch(None, LIMIT_S), second, TTL_S, 0)
        await lease.watch(None, LIMIT_S)
        await trio.to_thread.run_sync(agent.restore, saved)
        seen = await until_done(lease.watch, None, LIMIT_S)
        mine = await until_done(lease.acquire, seen, before.holder, TTL_S, 0)
        assert mine.epoch >= theirs.epoch + LEAST_LEAP, "somebody who is away may know a newer one"
        with pytest.raises(Refused):
            await other.renew(theirs)
        assert (await other.watch(None, LIMIT_S)).holding == mine


async def test_who_was_not_alone_neither_makes_anew_nor_gives_up_what_a_restored_consul_has_forgotten(
    consuls: Consuls,
) -> None:
    agent = consuls.single()
    async with place(agent) as kept:
        lease, mine = await held(kept)
        at = mine.holder
        saved = await trio.to_thread.run_sync(agent.snapshot)
        newer = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
        assert newer.epoch > mine.epoch
        await trio.to_thread.run_sync(agent.restore, saved)
        assert judge(await until_done(lease.watch, None, LIMIT_S), at, 0.0) is Sight.HELD
        with pytest.raises(Refused, match="may have taken it"):
            await until_done(lambda: lease.renew(newer, alone=False))
        with pytest.raises(Refused, match="not known who took it last"):
            await lease.release(newer, alone=False)
        assert (await lease.renew(newer)).epoch == newer.epoch


async def test_who_knows_a_newer_epoch_than_a_restored_consul_follows_whoever_renews_nevertheless(
    consuls: Consuls,
) -> None:
    """A node that has heard of nothing since has taken the lease, when its last holder had been silent for a ttl."""
    agent = consuls.single()
    async with place(agent) as kept:
        lease, at = await kept.joined("a")
        other, second = await kept.joined("b")
        late, third = await kept.joined("n")
        await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
        saved = await trio.to_thread.run_sync(agent.snapshot)
        await other.acquire(await other.watch(None, LIMIT_S), second, TTL_S, 5_000_000)
        known = await lease.watch(None, LIMIT_S)
        await trio.to_thread.run_sync(agent.restore, saved)
        taken = await until_done(late.acquire, await until_done(late.watch, None, LIMIT_S), third, TTL_S, 0)
        assert known.holding is not None
        assert taken.epoch < known.holding.epoch
        assert (await lease.watch(None, LIMIT_S)).gone
        renewed = await late.renew(taken)
        assert await lease.watch(None, LIMIT_S) == View(renewed, renewed.index)


async def test_the_lease_survives_the_death_of_consuls_leader(consuls: Consuls) -> None:
    agents = consuls.three()
    leader = leader_of(agents)
    others = [each for each in agents if each is not leader]
    urls = [each.url for each in (leader, *others)]
    async with place(leader, urls=urls, ttl_s=6.0) as kept:
        lease, mine = await held(kept)
        mine = replace(mine, ttl_s=6.0)
        watcher, _ = await kept.joined("b")
        before = await watcher.watch(None, LIMIT_S)
        leader.kill()
        renewed = await until_done(lease.renew, mine)
        assert renewed.epoch == mine.epoch
        after = await until_done(watcher.watch, before, LIMIT_S)
        assert after.holding is not None
        assert after.holding.counter > mine.counter


async def test_a_server_without_the_others_gives_no_stale_answers(consuls: Consuls) -> None:
    agents = consuls.three()
    leader = leader_of(agents)
    async with place(leader) as kept:
        lease, mine = await held(kept)
        seen = await lease.watch(None, LIMIT_S)
        for each in agents:
            if each is not leader:
                each.signal(signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await lease.watch(None, 0.5)
        with pytest.raises(Unavailable):
            await lease.watch(seen, 0.5)
        with pytest.raises(Unavailable):
            await lease.renew(mine)
        for each in agents:
            if each is not leader:
                each.signal(signal.SIGCONT)
        await until_done(lease.renew, mine)


def _others_first(agents: list[Agent]) -> list[Agent]:
    leader = leader_of(agents)
    return [*(each for each in agents if each is not leader), leader]


async def test_a_watch_leaves_an_agent_that_stands_still_within_a_call(consuls: Consuls) -> None:
    """Other calls of the same node go on to the next agent meanwhile."""
    ttl_s, wait_s = 6.0, 2.0
    agents = _others_first(consuls.three())
    async with place(agents[1], ttl_s=ttl_s) as kept:
        holder, mine = await held(kept)
        watcher, _ = await kept.joined("b", urls=[each.url for each in agents])
        view = await watcher.watch(None, LIMIT_S)

        async def ask_for_members() -> None:
            while True:
                await until_done(watcher.members)
                await trio.sleep(0.2)

        async def stand_still_and_renew() -> None:
            await trio.sleep(0.5)
            agents[0].signal(signal.SIGSTOP)
            await until_done(holder.renew, mine)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_members)
            nursery.start_soon(stand_still_and_renew)
            # The read that is under way runs out of its time, and the next one is another agent's.
            seen = await until_done(watcher.watch, view, wait_s, limit_s=wait_s + 4 * call_limit_s(ttl_s))
            nursery.cancel_scope.cancel()
        assert seen.holding is not None
        assert seen.holding.counter > mine.counter


async def test_a_primary_leaves_an_agent_that_stands_still_before_its_lease_is_over(consuls: Consuls) -> None:
    """Renewals are given up sooner than any other call."""
    ttl_s = 6.0
    agents = _others_first(consuls.three())
    async with place(agents[0], urls=[each.url for each in agents], ttl_s=ttl_s) as kept:
        lease, mine = await held(kept)
        events: list[Event] = []

        async def nobody_promises(_nodes: frozenset[str], _limit_s: float) -> bool:
            return False

        renewal = Renewal(
            lease,
            Timing(ttl_s),
            trio.current_time,
            lambda event, _reason: events.append(event),
            nobody_promises,
            lambda: (),
            lambda _outcome: None,
        )
        renewal.hold(mine, trio.current_time())
        agents[0].signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renewal.run)
            renewal.begin()
            with trio.fail_after(2 * ttl_s):
                while not events:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert events == [Event.RENEWED]
