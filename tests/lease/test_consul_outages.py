"""A Consul that dies, stands still, forgets, or loses its leader."""

import signal
from dataclasses import replace

import pytest
import trio

from litereplica.errors import Refused, Unavailable
from tests.lease.support import LIMIT_S, TTL_S, endpoint, held, member, place, until_done
from tests.support.consul import Consuls, leader_of

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
