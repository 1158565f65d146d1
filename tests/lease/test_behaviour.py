"""What every implementation of a lease does: one table, against memory and against a real Consul."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio

from litereplica.cluster.election import Sight, judge, may_take_over
from litereplica.cluster.lease import LEAST_LEAP, Holding, Reign, View
from litereplica.errors import Refused
from tests.lease.support import TTL_S, Place, endpoint, member, place

pytestmark = pytest.mark.timeout(60)
LIMIT_S = 5.0


@pytest.fixture(params=["memory", "consul"])
async def kept(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    agent = None if request.param == "memory" else request.getfixturevalue("shared_agent")
    async with place(agent) as made:
        yield made


async def test_the_first_node_makes_the_clusters_id_and_the_others_learn_it(kept: Place) -> None:
    first, second = endpoint("a"), endpoint("b")
    cluster = await kept.lease(first).join("", member(first))
    assert cluster
    assert await kept.lease(second).join("", member(second)) == cluster
    again = endpoint("a")
    assert await kept.lease(again, "a").join(cluster, member(again)) == cluster


async def test_a_node_of_another_cluster_is_refused(kept: Place) -> None:
    await kept.joined("a")
    other = endpoint("b")
    with pytest.raises(Refused, match="cluster"):
        await kept.lease(other).join("0" * 32, member(other))
    assert [each.endpoint.node for each in await kept.lease(endpoint("c")).members()] == ["a"]


async def test_an_id_that_a_node_knows_is_used_when_there_is_none(kept: Place) -> None:
    at = endpoint("a")
    assert await kept.lease(at).join("f" * 32, member(at)) == "f" * 32


async def test_members_are_seen_by_all_as_they_published_themselves(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    await lease.publish(member(at, epoch=4, total=77, vacancy=9))
    await lease.publish(member(at, epoch=4, total=78, vacancy=9))
    found = await other.members()
    assert [each.endpoint.node for each in found] == ["a", "b"]
    assert found[0] == member(at, epoch=4, total=78, vacancy=9)


async def test_a_second_living_node_of_a_name_is_refused(kept: Place) -> None:
    lease, at = await kept.joined("a", node_id="one")
    other = endpoint("a")
    with pytest.raises(Refused, match=r"another node named 'a' .*node\.name"):
        await kept.lease(other, "two").join("", member(other))
    await lease.publish(member(at, total=1))
    assert [each.endpoint for each in await lease.members()] == [at]


async def test_a_node_that_starts_again_takes_its_own_name_at_once(kept: Place) -> None:
    await kept.joined("a", node_id="one")
    again, at = await kept.joined("a", node_id="one")
    assert [each.endpoint for each in await again.members()] == [at]


async def test_of_two_starts_of_a_node_the_earlier_one_is_refused(kept: Place) -> None:
    lease, at = await kept.joined("a", node_id="one")
    later, later_at = await kept.joined("a", node_id="one")
    with pytest.raises(Refused, match="started a second time"):
        await lease.publish(member(at))
    await later.publish(member(later_at, total=3))
    assert await later.members() == (member(later_at, total=3),)


async def test_a_vacant_lease_is_taken_with_a_positive_epoch(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    before = await lease.watch(None, LIMIT_S)
    assert before.holding is None
    mine = await lease.acquire(before, at, TTL_S, 0)
    assert mine.epoch > 0
    assert (mine.holder, mine.ttl_s, mine.offered_to) == (at, TTL_S, "")
    assert await other.watch(None, LIMIT_S) == View(mine, mine.index)


async def test_only_one_takes_what_two_saw_vacant(kept: Place) -> None:
    one, first = await kept.joined("a")
    two, second = await kept.joined("b")
    seen = await one.watch(None, LIMIT_S)
    await two.watch(None, LIMIT_S)
    await one.acquire(seen, first, TTL_S, 0)
    with pytest.raises(Refused):
        await two.acquire(seen, second, TTL_S, 0)


async def test_five_contenders_get_one_holder_each_time_and_epochs_rise(kept: Place) -> None:
    nodes = [await kept.joined(name) for name in "abcde"]
    watcher, _ = nodes[0]
    epochs = []
    for _ in range(6):
        seen = await watcher.watch(None, LIMIT_S)
        won: list[Holding] = []

        async def contend(number: int, seen: View, won: list[Holding]) -> None:
            lease, at = nodes[number]
            with contextlib.suppress(Refused):
                won.append(await lease.acquire(seen, at, TTL_S, 0))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(contend, number, seen, won)
        (holding,) = won
        epochs.append(holding.epoch)
        assert (await watcher.watch(None, LIMIT_S)).holding == holding
    assert epochs == sorted(set(epochs))


async def test_the_epoch_is_above_everything_that_anybody_has_seen(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, second = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 5_000_000)
    assert mine.epoch > 5_000_000
    await lease.release(mine)
    assert (await other.acquire(await other.watch(None, LIMIT_S), second, TTL_S, 0)).epoch > mine.epoch
    await lease.publish(member(at, epoch=7_000_000))
    view = await lease.watch(None, LIMIT_S)
    assert (await lease.acquire(view, at, TTL_S, 0)).epoch > 7_000_000


async def test_taking_ones_own_lease_again_begins_a_new_epoch(kept: Place) -> None:
    lease, at = await kept.joined("a")
    seen = await lease.watch(None, LIMIT_S)
    mine = await lease.acquire(seen, at, TTL_S, 0)
    again = await lease.acquire(seen, at, TTL_S, 0)
    assert again.epoch > mine.epoch
    anew = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    assert anew.epoch > again.epoch
    assert (await lease.renew(anew)).epoch == anew.epoch


async def test_what_was_offered_in_an_old_epoch_is_not_offered_in_the_new_one(kept: Place) -> None:
    """A holder whose offer had no answer takes its own lease again: the target of the offer must not find it there."""
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    offered = await lease.renew(replace(mine, counts_on=("a", "b")), "b")
    assert offered.offered_to == "b"
    again = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    assert (again.offered_to, again.counts_on) == ("", ())
    seen = await other.watch(None, LIMIT_S)
    assert seen.holding is not None
    assert (seen.holding.offered_to, seen.holding.counts_on) == ("", ())


async def test_a_renewal_is_seen_and_its_counter_rises(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    for _ in range(3):
        renewed = await lease.renew(mine)
        assert renewed.counter > mine.counter
        assert renewed.index != mine.index
        assert renewed == replace(mine, counter=renewed.counter, index=renewed.index)
        assert await other.watch(None, LIMIT_S) == View(renewed, renewed.index)
        mine = renewed


@pytest.mark.parametrize("watcher", ["who saw it", "a new start"])
async def test_whose_promises_count_is_still_known_when_the_holders_session_has_ended(
    kept: Place, watcher: str
) -> None:
    """Its holder may go on by them without the store, for as long as it likes."""
    lease, at = await kept.joined("a")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    other, _ = await kept.joined("c")
    mine = await lease.renew(replace(mine, counts_on=("a", "b", "d")))
    mine = await lease.renew(replace(mine, counts_on=("a", "b")))
    mine = await lease.renew(mine)
    if watcher == "who saw it":
        assert (await other.watch(None, LIMIT_S)).holding == mine
    kept.end_session(at)
    seen = await other.watch(None, LIMIT_S)
    assert seen.gone
    assert seen.holding is not None
    assert (seen.holding.holder, seen.holding.epoch, seen.holding.counts_on) == (at, mine.epoch, ("a", "b"))
    assert judge(seen, endpoint("c"), TTL_S) is Sight.LAPSED
    assert not may_take_over(seen, "c")
    assert may_take_over(seen, "b")


async def test_a_holder_that_counts_on_nobody_any_more_may_be_followed_by_anybody(kept: Place) -> None:
    lease, at = await kept.joined("a")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    other, _ = await kept.joined("c")
    mine = await lease.renew(replace(mine, counts_on=("a", "b")))
    await lease.renew(replace(mine, counts_on=()), "b")
    kept.end_session(at)
    seen = await other.watch(None, LIMIT_S)
    assert seen.gone
    assert may_take_over(seen, "c")


async def test_a_renewal_with_an_old_holding_goes_on_from_what_is_there(kept: Place) -> None:
    lease, at = await kept.joined("a")
    old = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    newer = await lease.renew(await lease.renew(old))
    assert (await lease.renew(old)).counter > newer.counter


async def test_a_holding_that_was_not_renewed_is_taken_over_and_its_holder_is_told(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, second = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    theirs = await other.acquire(await other.watch(None, LIMIT_S), second, TTL_S, 0)
    assert theirs.epoch > mine.epoch
    with pytest.raises(Refused):
        await lease.renew(mine)
    with pytest.raises(Refused):
        await lease.release(mine)
    assert (await other.renew(theirs)).epoch == theirs.epoch


async def test_a_renewal_in_time_defeats_a_takeover(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, second = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    seen = await other.watch(None, LIMIT_S)
    await lease.renew(mine)
    with pytest.raises(Refused):
        await other.acquire(seen, second, TTL_S, 0)


async def test_an_offer_is_seen_and_taken(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, second = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    await lease.renew(mine, "b")
    seen = await other.watch(None, LIMIT_S)
    assert seen.holding is not None
    assert seen.holding.offered_to == "b"
    theirs = await other.acquire(seen, second, TTL_S, 0)
    assert theirs.offered_to == ""
    with pytest.raises(Refused):
        await lease.renew(mine)


async def test_an_offer_that_nobody_took_is_withdrawn(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, second = await kept.joined("b")
    offer = await lease.renew(await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0), "b")
    seen = await other.watch(None, LIMIT_S)
    assert (await lease.renew(offer)).offered_to == ""
    with pytest.raises(Refused):
        await other.acquire(seen, second, TTL_S, 0)


async def test_a_released_lease_is_vacant_at_once_and_once_is_enough(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, second = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    held = await other.watch(None, LIMIT_S)
    await lease.release(await lease.renew(mine))
    vacant = await other.watch(held, LIMIT_S)
    assert vacant.holding is None
    assert vacant.index != held.index
    theirs = await other.acquire(vacant, second, TTL_S, 0)
    assert theirs.epoch > mine.epoch


async def test_what_the_store_has_forgotten_is_made_anew_by_who_was_alone_only(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    await other.watch(None, LIMIT_S)
    kept.forget()
    with pytest.raises(Refused, match="may have taken it"):
        await lease.renew(mine, alone=False)
    for each in (lease, other):
        view = await each.watch(None, LIMIT_S)
        assert view.gone
        assert view.holding == mine
    renewed = await lease.renew(mine)
    assert renewed.epoch == mine.epoch
    assert await other.watch(None, LIMIT_S) == View(renewed, renewed.index)


async def test_nobody_gives_up_what_the_store_has_forgotten(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    await other.watch(None, LIMIT_S)
    kept.forget()
    with pytest.raises(Refused, match="not known who took it last"):
        await lease.release(mine)
    view = await other.watch(None, LIMIT_S)
    assert view.gone
    assert view.holding == mine


@pytest.mark.parametrize("how", ["release", "close"])
async def test_who_was_not_alone_does_not_give_up_what_somebody_made_anew_who_did_not_hear_of_the_next(
    kept: Place, how: str
) -> None:
    lease, at = await kept.joined("a")
    other, second = await kept.joined("b")
    third = endpoint("c")
    late = kept.lease(third)
    cluster = await late.join("", member(third))
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    await late.watch(None, LIMIT_S)
    offer = await lease.renew(mine, "b")
    await other.acquire(await other.watch(None, LIMIT_S), second, TTL_S, 0)
    kept.forget()
    await late.join(cluster, member(third))
    if how == "close":
        await lease.close()
    else:
        with pytest.raises(Refused, match="not known who took it last"):
            await lease.release(offer, alone=False)
    seen = await late.watch(None, LIMIT_S)
    assert seen.gone
    assert seen.holding is not None
    assert (seen.holding.holder, seen.holding.epoch) == (at, mine.epoch)


async def test_a_lease_that_was_released_and_then_forgotten_is_not_vacant(kept: Place) -> None:
    lease, at = await kept.joined("a")
    await lease.release(await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0))
    assert (await lease.watch(None, LIMIT_S)).holding is None
    kept.forget()
    view = await lease.watch(None, LIMIT_S)
    assert view.gone
    assert view.holding is not None
    assert view.holding.holder == at


@pytest.mark.parametrize("first", ["who saw it", "a new start"])
async def test_who_saw_a_lease_given_up_only_does_not_take_a_store_that_has_forgotten_for_that(
    kept: Place, first: str
) -> None:
    """Whoever has it since goes on; or, when that is silent, it is taken after a ttl, and not in the next epoch."""
    lease, at = await kept.joined("a")
    await lease.release(await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0))
    third, new = endpoint("c"), endpoint("n")
    late = kept.lease(third)
    cluster = await late.join("", member(third))
    assert (await late.watch(None, LIMIT_S)).holding is None
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)

    async def forget() -> View:
        kept.forget()
        if first == "a new start":
            await kept.lease(new).join(cluster, member(new))
        await late.join(cluster, member(third))
        seen = await late.watch(None, LIMIT_S)
        assert judge(seen, third, 0.0) is Sight.HELD
        assert judge(seen, third, TTL_S) is Sight.LAPSED
        return seen

    await forget()
    mine = await lease.renew(mine)
    seen = await forget()
    assert (await late.acquire(seen, third, TTL_S, 0)).epoch >= mine.epoch + LEAST_LEAP


async def test_who_knows_less_does_not_keep_the_holder_from_making_it_anew(kept: Place) -> None:
    lease, at = await kept.joined("a")
    third = endpoint("c")
    late = kept.lease(third)
    cluster = await late.join("", member(third))
    mine = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    seen = await late.watch(None, LIMIT_S)
    assert seen.holding == mine
    await lease.release(mine)
    newer = await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    kept.forget()
    await late.join(cluster, member(third))
    assert (await lease.renew(newer)).epoch == newer.epoch
    assert (await late.watch(None, LIMIT_S)).holding is not None


@pytest.mark.parametrize("times", [1, 2])
async def test_an_epoch_that_only_its_holder_knew_is_not_given_again_by_a_store_that_has_forgotten(
    kept: Place, times: int
) -> None:
    """Each time another one takes it, who knows the first epoch and none of those after it."""
    at = endpoint("a")
    lease = kept.lease(at)
    cluster = await lease.join("", member(at))
    known = (await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)).epoch
    await lease.close()
    epochs = []
    for number in range(times + 1):
        if number:
            kept.forget()
        # It has started since, with what its data directory knows.
        node = endpoint(f"n{number}")
        other = kept.lease(node)
        await other.join(cluster, member(node))
        epochs.append((await other.acquire(await other.watch(None, LIMIT_S), node, TTL_S, known)).epoch)
    assert len(set(epochs)) == len(epochs)
    assert epochs[0] > known
    assert min(epochs[1:]) >= known + LEAST_LEAP


async def test_a_watch_ends_with_a_change_or_at_its_limit(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    vacant = await other.watch(None, LIMIT_S)
    began = trio.current_time()
    assert await other.watch(vacant, 0.3) == vacant
    assert 0.25 < trio.current_time() - began < 15
    seen: list[View] = []

    async def look() -> None:
        seen.append(await other.watch(vacant, 20.0))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(0.2)
            mine = await lease.acquire(vacant, at, TTL_S, 0)
    assert seen[0].holding is not None
    assert seen[0].holding.holder == at
    with trio.fail_after(10):
        await other.watch(seen[0], 0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(0.2)
            await lease.renew(mine)


async def test_a_watch_ends_when_it_is_cancelled(kept: Place) -> None:
    lease, _ = await kept.joined("a")
    view = await lease.watch(None, LIMIT_S)
    began = trio.current_time()
    with trio.move_on_after(0.2):
        await lease.watch(view, 60.0)
    assert trio.current_time() - began < 15


async def test_the_history_is_in_order_without_doubles_and_bounded(kept: Place) -> None:
    lease, _ = await kept.joined("a")
    other, _ = await kept.joined("b")
    for epoch in (3, 1, 2, 3, *range(10, 110)):
        await lease.add_reign(Reign(epoch, "a", 1000 + epoch, "elected", {"app.db": "0" * 33}))
    found = await other.history()
    assert [each.epoch for each in found] == list(range(10, 110))
    assert found[0] == Reign(10, "a", 1010, "elected", {"app.db": "0" * 33})


async def test_who_leaves_gives_up_its_lease_and_its_entry(kept: Place) -> None:
    lease, at = await kept.joined("a")
    other, _ = await kept.joined("b")
    await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)
    await lease.close()
    assert (await other.watch(None, LIMIT_S)).holding is None
    assert [each.endpoint.node for each in await other.members()] == ["b"]
