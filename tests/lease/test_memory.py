"""What only the lease in memory has: accidents on demand, repeatable."""

import math

import pytest
import trio
from trio.testing import MockClock

from litereplica.cluster.lease import Holding, View
from litereplica.errors import Refused, Unavailable
from litereplica.lease.memory import LOST, UNANSWERED, MemoryLease, MemoryStore, Turn
from tests.lease.support import TTL_S, endpoint, member

LIMIT_S = 5.0


class Weather:
    """What becomes of the next call of a node's method; fair when nothing is said."""

    def __init__(self) -> None:
        self.turns: dict[tuple[str, str], Turn] = {}

    def __call__(self, node: str, method: str) -> Turn:
        return self.turns.pop((node, method), Turn())


async def held(store: MemoryStore) -> tuple[MemoryLease, Holding]:
    at = endpoint("a")
    lease = MemoryLease(store, "a", TTL_S)
    await lease.join("", member(at))
    return lease, await lease.acquire(await lease.watch(None, LIMIT_S), at, TTL_S, 0)


async def other_of(store: MemoryStore) -> MemoryLease:
    lease = MemoryLease(store, "b", TTL_S)
    await lease.join("", member(endpoint("b")))
    return lease


async def test_a_lost_request_has_no_effect_and_an_unanswered_one_has(autojump_clock: MockClock) -> None:
    weather = Weather()
    store = MemoryStore(weather)
    lease, mine = await held(store)
    weather.turns["a", "renew"] = LOST
    with pytest.raises(Unavailable):
        await lease.renew(mine)
    assert store.holding == mine
    weather.turns["a", "renew"] = UNANSWERED
    with pytest.raises(Unavailable):
        await lease.renew(mine, "b")
    assert store.holding is not None
    assert store.holding.offered_to == "b"
    assert (await lease.renew(mine)).offered_to == ""


async def test_a_late_request_changes_nothing_after_a_later_one(autojump_clock: MockClock) -> None:
    weather = Weather()
    store = MemoryStore(weather)
    lease, mine = await held(store)
    weather.turns["a", "renew"] = Turn(request_s=3.0)
    with pytest.raises(Unavailable):
        await lease.renew(mine, "b")
    renewed = await lease.renew(mine)
    await trio.sleep(5)
    assert store.holding == renewed


async def test_a_late_request_arrives_when_its_caller_is_gone(autojump_clock: MockClock) -> None:
    weather = Weather()
    store = MemoryStore(weather)
    lease, mine = await held(store)
    weather.turns["a", "renew"] = Turn(request_s=0.4)
    with trio.move_on_after(0.1):
        await lease.renew(mine)
    assert store.holding == mine
    await trio.sleep(1)
    assert store.holding is not None
    assert store.holding.counter == mine.counter + 1


async def test_a_stale_server_shows_the_past_and_cannot_unseat_anybody(autojump_clock: MockClock) -> None:
    weather = Weather()
    store = MemoryStore(weather)
    lease, mine = await held(store)
    other = await other_of(store)
    await lease.renew(mine)
    weather.turns["b", "watch"] = Turn(behind=1)
    stale = await other.watch(None, LIMIT_S)
    assert stale == View(mine, mine.index)
    with pytest.raises(Refused):
        await other.acquire(stale, endpoint("b"), TTL_S, 0)


async def test_a_watch_without_an_answer_ends_at_its_limit(autojump_clock: MockClock) -> None:
    weather = Weather()
    store = MemoryStore(weather)
    lease, _ = await held(store)
    weather.turns["a", "watch"] = Turn(request_s=math.inf)
    began = trio.current_time()
    with pytest.raises(Unavailable):
        await lease.watch(None, LIMIT_S)
    assert trio.current_time() - began == pytest.approx(LIMIT_S + 0.5)


async def test_a_session_that_ended_leaves_the_holding_and_a_last_will_does_not(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    lease, mine = await held(store)
    other = await other_of(store)
    store.end_session(mine.holder.instance)
    view = await other.watch(None, LIMIT_S)
    assert view.holding == mine
    assert view.index != mine.index
    renewed = await lease.renew(mine)
    assert renewed.epoch == mine.epoch
    store.last_will(mine.holder.instance)
    assert (await other.watch(None, LIMIT_S)).holding is None


async def test_a_wiped_store_brings_back_neither_old_epochs_nor_another_cluster(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    lease, mine = await held(store)
    other = await other_of(store)
    await other.watch(None, LIMIT_S)
    store.wipe()
    seen = await other.watch(None, LIMIT_S)
    assert seen.holding == mine
    theirs = await other.acquire(seen, endpoint("b"), TTL_S, 0)
    assert theirs.epoch > mine.epoch
    assert store.cluster == "memory"
    with pytest.raises(Refused):
        await lease.renew(mine)
