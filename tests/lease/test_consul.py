"""What only a lease in Consul can meet: agents that die, hang or forget, sessions, and keys of others."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from litereplica.cluster.lease import Holding, View
from litereplica.errors import Refused, Unavailable
from litereplica.lease.consul_client import call_limit_s
from tests.lease.agents import Proxy, silent
from tests.lease.support import LIMIT_S, TTL_S, Place, endpoint, held, member, place, until_done
from tests.support.consul import Agent, Consuls

pytestmark = pytest.mark.timeout(90)
# A call's own limit, and what a busy machine adds.
CALL_S = call_limit_s(TTL_S) + 1.0


@pytest.fixture
async def kept(shared_agent: Agent) -> AsyncIterator[Place]:
    async with place(shared_agent) as made:
        yield made


def entry(agent: Agent, key: str) -> Any:
    found = agent.ask("GET", f"/v1/kv/{key}?consistent")
    return found[0] if found else None


def end_session(agent: Agent, key: str) -> None:
    assert agent.ask("PUT", f"/v1/session/destroy/{entry(agent, key)['Session']}") is True


# ----------------------------------------------------------------------------------------------- keys that are not ours
@pytest.mark.parametrize(
    "value", [b"hello", b"", b"{}", b'{"format":"other/1"}', b"[1]", b'{"format":"litereplica/x"}']
)
@pytest.mark.parametrize("where", ["", "/cluster"])
async def test_a_key_that_something_else_uses_is_refused_and_left_alone(kept: Place, value: bytes, where: str) -> None:
    assert kept.agent is not None
    key = f"{kept.options['key']}{where}"
    assert kept.agent.ask("PUT", f"/v1/kv/{key}", value) is True
    at = endpoint("a")
    with pytest.raises(Refused, match=r"is used by something else: set lease\.consul\.key"):
        await kept.lease(at).join("", member(at))
    assert entry(kept.agent, key)["LockIndex"] == 0
    assert kept.agent.ask("GET", f"/v1/kv/{kept.options['key']}?keys") == [key]


async def test_a_key_that_something_else_takes_later_is_left_alone(kept: Place) -> None:
    assert kept.agent is not None
    lease, mine = await held(kept)
    key = str(kept.options["key"])
    assert kept.agent.ask("PUT", f"/v1/kv/{key}", b"hello") is True
    with pytest.raises(Refused):
        await lease.renew(mine)
    with pytest.raises(Unavailable, match="used by something else"):
        await lease.watch(None, LIMIT_S)
    assert entry(kept.agent, key)["Value"] == "aGVsbG8="


@pytest.mark.parametrize("field", ["format", "protocol"])
async def test_what_a_newer_version_wrote_is_refused(kept: Place, field: str) -> None:
    assert kept.agent is not None
    newer = {"format": "litereplica/1", "protocol": 1} | {field: "litereplica/2" if field == "format" else 2}
    assert kept.agent.ask("PUT", f"/v1/kv/{kept.options['key']}/members/z", newer) is True
    at = endpoint("a")
    with pytest.raises(Refused, match=r"newer litereplica .*update this node"):
        await kept.lease(at).join("", member(at))


async def test_another_clusters_id_is_refused_with_what_to_do(kept: Place) -> None:
    await held(kept)
    other = endpoint("b")
    with pytest.raises(
        Refused, match=r"belongs to cluster .* and this node's data to cluster 0000.*lease\.consul\.key"
    ):
        await kept.lease(other).join("0" * 32, member(other))


# ----------------------------------------------------------------------------------------------- tokens, TLS, addresses
def _token(agent: Agent, rules: str) -> str:
    policy = agent.ask("PUT", "/v1/acl/policy", {"Name": f"p{len(rules)}", "Rules": rules})
    return str(agent.ask("PUT", "/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"])


async def test_tokens_without_rights_are_refused_with_the_rights_to_give(consuls: Consuls) -> None:
    agent = consuls.single(acl=True)
    enough = _token(agent, 'key_prefix "litereplica/" { policy = "write" } session_prefix "" { policy = "write" }')
    without = {
        "no session": _token(agent, 'key_prefix "litereplica/" { policy = "write" }'),
        "no key": _token(agent, 'session_prefix "" { policy = "write" }'),
        "read only": _token(agent, 'key_prefix "" { policy = "read" } session_prefix "" { policy = "write" }'),
        "unknown": "00000000-0000-0000-0000-00000000abcd",
        "none": "",
    }
    async with place(agent) as kept:
        lease, mine = await held(kept, token=enough)
        await lease.release(await lease.renew(mine))
        for token in without.values():
            other = endpoint("b")
            with pytest.raises(Refused, match=r'lease\.consul\.token the rights key_prefix "litereplica/" write'):
                await kept.lease(other, token=token).join("", member(other))


async def test_one_dead_agent_of_several_is_not_noticed(kept: Place) -> None:
    assert kept.agent is not None
    at = endpoint("a")
    lease = kept.lease(at, urls=["http://127.0.0.1:1", kept.agent.url, "http://127.0.0.1:2"])
    await lease.join("", member(at))
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    assert (await lease.renew(mine)).epoch == mine.epoch


async def test_an_agent_that_hangs_is_left_within_one_call(kept: Place) -> None:
    assert kept.agent is not None
    with silent() as url:
        at = endpoint("a")
        lease = kept.lease(at, urls=[url, kept.agent.url])
        await until_done(lease.join, "", member(at), limit_s=3 * CALL_S)
        mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
        assert (await lease.renew(mine)).epoch == mine.epoch


async def test_a_long_watch_stays_with_an_agent_that_answers(kept: Place) -> None:
    assert kept.agent is not None
    with silent() as url:
        lease, _ = await kept.joined("a", urls=[kept.agent.url, url])
        vacant = await lease.watch(None, LIMIT_S)
        assert await lease.watch(vacant, 3.0) == vacant


async def test_without_an_answer_every_call_ends_within_its_limit(kept: Place) -> None:
    at = endpoint("a")
    mine = Holding(at, 3, 1, TTL_S, 9)
    with silent() as url:
        lease = kept.lease(at, urls=[url])
        calls = [
            lambda: lease.join("", member(at)),
            lambda: lease.watch(None, 0.1),
            lambda: lease.watch(View(mine, 9), 0.1),
            lambda: lease.acquire(View(None, 0), at, TTL_S, 0),
            lambda: lease.renew(mine),
            lambda: lease.release(mine),
            lambda: lease.publish(member(at)),
            lease.members,
            lease.history,
        ]
        for call in calls:
            began = trio.current_time()
            with pytest.raises(Unavailable):
                await call()
            assert trio.current_time() - began < CALL_S + 5


async def test_what_is_not_consul_is_named(kept: Place, consuls: Consuls) -> None:
    at = endpoint("a")
    with pytest.raises(Unavailable, match="cannot be reached"):
        await kept.lease(at, urls=["http://127.0.0.1:1"]).join("", member(at))
    assert kept.agent is not None
    with pytest.raises(Refused, match=r"does not speak TLS: write http://"):
        await kept.lease(at, urls=[kept.agent.url.replace("http:", "https:")]).join("", member(at))


# ----------------------------------------------------------------------------------------------------- unknown outcomes
@pytest.fixture
def proxy(shared_agent: Agent) -> Any:
    made = Proxy(shared_agent.http_port)
    yield made
    made.close()


async def test_a_renewal_whose_answer_was_lost_is_found_by_the_next(kept: Place, proxy: Proxy) -> None:
    lease, mine = await held(kept, urls=[proxy.url])
    proxy.loses_answers = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            await lease.renew(mine, "b")
    assert proxy.lost >= 1
    proxy.loses_answers = False
    again = await lease.renew(mine)
    assert again.counter > mine.counter + 1
    assert again.offered_to == ""
    assert (await lease.watch(None, LIMIT_S)).holding == again


async def test_whose_promises_count_is_recorded_although_the_answer_was_lost(kept: Place, proxy: Proxy) -> None:
    """The lease says so and was renewed since; the first attempt may have changed its record, or may not."""
    assert kept.agent is not None
    lease, mine = await held(kept, urls=[proxy.url])
    proxy.loses_answers = True
    with pytest.raises(Unavailable):
        await lease.renew(replace(mine, counts_on=("a", "b")))
    proxy.loses_answers = False
    await lease.renew(mine)
    end_session(kept.agent, str(kept.options["key"]))
    other, _ = await kept.joined("c")
    seen = await other.watch(None, LIMIT_S)
    assert seen.gone
    assert seen.holding is not None
    assert seen.holding.counts_on == ()


async def test_a_renewal_that_changes_nobody_it_counts_on_writes_the_leases_key_alone(kept: Place) -> None:
    assert kept.agent is not None
    lease, mine = await held(kept)
    record = f"{kept.options['key']}/cluster"
    written = [entry(kept.agent, record)["ModifyIndex"]]
    for counts_on in ((), (), ("a", "b"), ("a", "b"), ("a", "b")):
        mine = await lease.renew(replace(mine, counts_on=counts_on))
        written.append(entry(kept.agent, record)["ModifyIndex"])
    assert written[0] == written[1] == written[2] < written[3]
    assert written[3] == written[4] == written[5]


async def test_an_acquisition_whose_answer_was_lost_is_found_by_the_next(kept: Place, proxy: Proxy) -> None:
    at = endpoint("a")
    lease = kept.lease(at, urls=[proxy.url])
    await lease.join("", member(at))
    seen = await lease.watch(None, LIMIT_S)
    other, _ = await kept.joined("b")
    writes = 0

    async def lose_the_answer_of_a_write() -> None:
        """Of the transaction: reads come before it."""
        nonlocal writes
        view = await other.watch(seen, 30.0)
        assert view.holding is not None
        proxy.loses_answers = True
        writes += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose_the_answer_of_a_write)
        try:
            mine = await lease.acquire(seen, at, TTL_S, 0)
        except Unavailable:
            proxy.loses_answers = False
            mine = await lease.acquire(seen, at, TTL_S, 0)
    proxy.loses_answers = False
    assert writes == 1
    assert mine.epoch > 0
    found = await other.watch(None, LIMIT_S)
    assert found.holding is not None
    assert (found.holding.holder, found.holding.epoch) == (at, mine.epoch)


async def test_a_release_whose_answer_was_lost_is_found_by_the_next(kept: Place, proxy: Proxy) -> None:
    lease, mine = await held(kept, urls=[proxy.url])
    proxy.loses_answers = True
    with pytest.raises(Unavailable):
        await lease.release(mine)
    proxy.loses_answers = False
    await lease.release(mine)
    assert (await lease.watch(None, LIMIT_S)).holding is None


# ------------------------------------------------------------------------------------------------------------- sessions
async def test_a_session_that_ended_does_not_make_the_lease_vacant(kept: Place) -> None:
    assert kept.agent is not None
    key = str(kept.options["key"])
    _, mine = await held(kept)
    other, _ = await kept.joined("b")
    before = await other.watch(None, LIMIT_S)
    end_session(kept.agent, key)
    assert entry(kept.agent, key) is None
    after = await other.watch(before, LIMIT_S)
    assert after.holding is not None
    assert (after.holding.holder, after.holding.epoch) == (mine.holder, mine.epoch)


async def test_a_holder_whose_session_ended_goes_on_in_the_same_epoch(kept: Place) -> None:
    assert kept.agent is not None
    key = str(kept.options["key"])
    lease, mine = await held(kept)
    other, second = await kept.joined("b")
    end_session(kept.agent, key)
    seen = await other.watch(None, LIMIT_S)
    renewed = await lease.renew(mine)
    assert renewed.epoch == mine.epoch
    assert renewed.counter > mine.counter
    assert entry(kept.agent, key)["Session"]
    with pytest.raises(Refused):
        await other.acquire(seen, second, TTL_S, 0)


async def test_a_lease_whose_session_ended_can_be_taken_over_and_its_holder_is_told(kept: Place) -> None:
    assert kept.agent is not None
    lease, mine = await held(kept)
    other, second = await kept.joined("b")
    end_session(kept.agent, str(kept.options["key"]))
    theirs = await other.acquire(await other.watch(None, LIMIT_S), second, TTL_S, 0)
    assert theirs.epoch > mine.epoch
    with pytest.raises(Refused):
        await lease.renew(mine)


async def test_a_node_that_starts_after_a_session_ended_does_not_see_a_vacant_lease_either(kept: Place) -> None:
    assert kept.agent is not None
    _, mine = await held(kept)
    end_session(kept.agent, str(kept.options["key"]))
    newcomer, _ = await kept.joined("n")
    found = await newcomer.watch(None, LIMIT_S)
    assert found.holding is not None
    assert found.holding.holder == mine.holder


async def test_a_holder_that_a_node_found_in_the_record_only_is_remembered_when_that_is_gone_too(kept: Place) -> None:
    assert kept.agent is not None
    _, mine = await held(kept)
    end_session(kept.agent, str(kept.options["key"]))
    at = endpoint("n")
    newcomer = kept.lease(at)
    cluster = await newcomer.join("", member(at))
    await newcomer.watch(None, LIMIT_S)
    kept.forget()
    await newcomer.join(cluster, member(at))
    seen = await newcomer.watch(None, LIMIT_S)
    assert seen.gone
    assert seen.holding is not None
    assert (seen.holding.holder, seen.holding.epoch) == (mine.holder, mine.epoch)


async def test_the_session_is_kept_alive_and_made_anew_with_the_members_entry(kept: Place) -> None:
    assert kept.agent is not None
    lease, at = await kept.joined("a")
    key = f"{kept.options['key']}/members/a"
    first = entry(kept.agent, key)["Session"]
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.run)
        end_session(kept.agent, key)
        with trio.fail_after(20):
            while (found := entry(kept.agent, key)) is None:
                await trio.sleep(0.1)
        assert found["Session"] != first
        nursery.cancel_scope.cancel()
    assert await lease.members() == (member(at),)


async def test_the_entry_of_a_node_that_died_goes_away_by_itself(kept: Place) -> None:
    other, _ = await kept.joined("b")
    await kept.joined("a")  # and nobody keeps its session alive
    async with trio.open_nursery() as nursery:
        await nursery.start(other.run)
        with trio.fail_after(40):
            while len(await other.members()) == 2:
                await trio.sleep(0.25)
        nursery.cancel_scope.cancel()
    assert [each.endpoint.node for each in await other.members()] == ["b"]


async def test_a_watch_of_a_vacant_lease_does_not_follow_every_write_to_other_keys(kept: Place) -> None:
    agent = kept.agent
    assert agent is not None
    lease, _ = await kept.joined("a")
    seen = await lease.watch(None, LIMIT_S)

    async def write() -> None:
        for number in range(40):
            assert await trio.to_thread.run_sync(agent.ask, "PUT", "/v1/kv/other", str(number).encode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        assert await lease.watch(seen, 1.0) == seen
