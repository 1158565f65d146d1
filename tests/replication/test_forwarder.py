"""What a replica makes of a primary's answers when another one has taken over in between."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from litereplica.cluster.messages import (
    OUTCOME_BUSY,
    OUTCOME_COMMITTED,
    OUTCOME_NOT_PRIMARY,
    OUTCOME_REFUSED,
    OUTCOME_STALE,
    Message,
    Outcome,
    SyncTo,
)
from litereplica.errors import LitereplicaError, Refused, Unavailable
from litereplica.ltx.position import Position
from litereplica.mount.elsewhere import Lost
from litereplica.replication.client import ReplicationClient
from litereplica.store.local import Stale
from litereplica.store.receive import LogReceiver
from tests.replication.forwarding import WritingNode
from tests.replication.nodes import same, until

NO = (OUTCOME_BUSY, OUTCOME_REFUSED)


@pytest.fixture
def node_class() -> type[WritingNode]:
    return WritingNode


@dataclass
class TwinLine:
    """A connection with a primary, which answers every question as it is told."""

    node: WritingNode
    epoch: int
    code: str = OUTCOME_COMMITTED
    answers: bool = True
    # Of the database there; as far as the transaction's base.
    position: Position | None = None
    sent: int = 0
    asked: list[Message] = field(default_factory=list)

    def say(self, message: Message) -> None:
        self.asked.append(message)
        if isinstance(message, SyncTo):
            outcome = Outcome(self.epoch, message.number, self.code, Position.ZERO, "")
            trio.lowlevel.current_trio_token().run_sync_soon(self.node.writes.told, outcome)

    def send(self, parcel: Iterator[bytes]) -> None:
        """All of it goes."""
        number = max(each.number for each in self.node.forwarder._journeys.values())
        base = next(each.awaited.base for each in self.node.forwarder._journeys.values() if each.number == number)
        assert list(parcel)
        self.sent += 1
        if self.answers:
            outcome = Outcome(self.epoch, number, self.code, self.position or base, f"says epoch {self.epoch}")
            trio.lowlevel.current_trio_token().run_sync_soon(self.node.writes.told, outcome)


# -- what is durable --------------------------------------------------------------------------------------------------


async def test_a_primary_of_another_history_makes_nothing_durable(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with primary.leading(), replica.forwarding(primary.port):
        await until(lambda: same(primary, replica))
        await replica.write()
    line = TwinLine(replica, epoch=2)
    replica.client = cast("ReplicationClient", SimpleNamespace(foreign={"app.db"}))
    replica.writes.connected(line)
    with pytest.raises(Unavailable, match="another history"):
        await replica.forwarder.make_durable("app.db")
    replica.client.foreign.clear()
    await replica.forwarder.make_durable("app.db")
    assert len(line.asked) == 1


async def test_what_was_lost_is_not_durable_though_the_next_primary_has_a_transaction_of_its_number(
    make_node: Callable[..., WritingNode], primary: WritingNode, replica: WritingNode
) -> None:
    other = make_node("c")
    primary.grow(10)
    async with primary.leading():
        async with other.forwarding(primary.port):
            await until(lambda: same(primary, other))
        async with replica.forwarding(primary.port):
            await until(lambda: same(primary, replica))
            await replica.write()
    other.store.epoch = 2
    async with other.leading(), replica.forwarding(other.port):
        other.touch(3)
        await until(lambda: same(other, replica))
        with pytest.raises(Lost):
            await replica.forwarder.make_durable("app.db")
        await replica.write()
        await replica.forwarder.make_durable("app.db")


async def test_what_an_earlier_primary_made_durable_is_not_so_on_the_one_that_commits_it(replica: WritingNode) -> None:
    """Its answer overtook the record, and it died before that was whole here."""
    replica.grow(10)
    first, second = TwinLine(replica, 1), TwinLine(replica, 2, answers=False)
    replica.writes.connected(first)
    returned = trio.Event()

    async def write() -> None:
        await replica.write(durable=True)
        returned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await until(lambda: first.sent > 0)
        # What it answers is heard.
        await trio.testing.wait_all_tasks_blocked(0.05)
        replica.writes.disconnected("it died")
        replica.writes.connected(second)
        await until(lambda: second.sent > 0)
        (journey,) = replica.forwarder._journeys.values()
        number, transaction = journey.number, journey.transaction
        LogReceiver(transaction.database).feed(transaction.read(0, transaction.length), 2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert journey.awaited.committed
        assert not returned.is_set()
        replica.writes.told(Outcome(2, number, OUTCOME_COMMITTED, replica.position(), ""))
        with trio.fail_after(3):
            await returned.wait()
    assert replica.forwarded == {"committed": 1}


# -- a node that stops ------------------------------------------------------------------------------------------------


async def told_at_the_stop(replica: WritingNode, line: TwinLine | None, *, durable: bool = False) -> LitereplicaError:
    """What the application of a held commit is told when its node stops."""
    replica.grow(10)
    if line is not None:
        replica.writes.connected(line)
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.testing.wait_all_tasks_blocked(0.05)
            await replica.forwarder.stop(0.2)

        nursery.start_soon(stop)
        with trio.fail_after(3), pytest.raises(LitereplicaError, match="this node stops") as told:
            await replica.write(durable=durable)
    return told.value


@pytest.mark.parametrize("durable", [True, False])
async def test_of_what_was_sent_a_node_that_stops_says_that_it_may_be_committed(
    replica: WritingNode, *, durable: bool
) -> None:
    told = await told_at_the_stop(replica, TwinLine(replica, 1, answers=False), durable=durable)
    assert isinstance(told, Unavailable)
    assert replica.forwarded == {"unknown": 1}


async def test_what_was_never_sent_is_refused_at_a_stop_and_nothing_is_taken_after_it(replica: WritingNode) -> None:
    told = await told_at_the_stop(replica, None)
    assert isinstance(told, Refused)
    line = TwinLine(replica, 1)
    replica.writes.connected(line)
    with trio.fail_after(3), pytest.raises(Refused, match="this node stops"):
        await replica.write()
    assert not line.sent


async def test_a_sync_that_waits_for_the_primary_ends_at_a_stop_and_promises_nothing(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with primary.leading(), replica.forwarding(primary.port):
        await until(lambda: same(primary, replica))
        await replica.write()
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.testing.wait_all_tasks_blocked(0.05)
            await replica.forwarder.stop(0.2)

        nursery.start_soon(stop)
        with trio.fail_after(3), pytest.raises(Unavailable, match="not known"):
            await replica.forwarder.make_durable("app.db")


async def test_what_the_primary_answers_in_time_is_committed_at_a_stop(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with primary.leading(), replica.forwarding(primary.port):
        await until(lambda: same(primary, replica))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            while not replica.forwarder._journeys:
                await trio.lowlevel.checkpoint()
            await replica.forwarder.stop(5)
        assert replica.forwarded == {"committed": 1}


# -- what was refused -------------------------------------------------------------------------------------------------


async def said_of_one_sent_to_both(replica: WritingNode, first: TwinLine, second: TwinLine) -> LitereplicaError:
    """What the application is told of a transaction that went to the one, and then to the other."""

    async def change_over() -> None:
        await until(lambda: first.sent > 0)
        # What it answers is heard.
        await trio.testing.wait_all_tasks_blocked(0.05)
        replica.writes.disconnected("it died")
        replica.writes.connected(second)

    replica.grow(10)
    replica.writes.connected(first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(change_over)
        with pytest.raises(LitereplicaError, match=f"says epoch {second.epoch}") as told:
            await replica.write()
    return told.value


@pytest.mark.parametrize("code", NO)
async def test_what_an_earlier_primary_may_come_back_with_is_not_refused(replica: WritingNode, code: str) -> None:
    told = await said_of_one_sent_to_both(replica, TwinLine(replica, 1, answers=False), TwinLine(replica, 2, code))
    assert isinstance(told, Unavailable)
    assert replica.forwarded == {"unknown": 1}


@pytest.mark.parametrize("code", NO)
async def test_what_one_primary_alone_was_sent_is_refused(replica: WritingNode, code: str) -> None:
    told = await said_of_one_sent_to_both(replica, TwinLine(replica, 1, answers=False), TwinLine(replica, 1, code))
    assert isinstance(told, Refused)


@pytest.mark.parametrize("code", NO)
async def test_what_the_earlier_primary_has_said_it_has_not_is_refused(replica: WritingNode, code: str) -> None:
    told = await said_of_one_sent_to_both(
        replica, TwinLine(replica, 1, OUTCOME_NOT_PRIMARY), TwinLine(replica, 2, code)
    )
    assert isinstance(told, Refused)


@pytest.mark.parametrize("code", NO)
async def test_what_the_earlier_primary_has_logged_and_lost_its_lease_is_not_refused(
    replica: WritingNode, code: str
) -> None:
    """It was committed there, and the lease ran out before it was durable."""
    beyond = Position(99, 99)
    told = await said_of_one_sent_to_both(
        replica, TwinLine(replica, 1, OUTCOME_NOT_PRIMARY, position=beyond), TwinLine(replica, 2, code)
    )
    assert isinstance(told, Unavailable)
    assert replica.forwarded == {"unknown": 1}


async def test_what_came_second_is_refused_by_any_primary(replica: WritingNode) -> None:
    told = await said_of_one_sent_to_both(
        replica, TwinLine(replica, 1, answers=False), TwinLine(replica, 2, OUTCOME_STALE)
    )
    assert isinstance(told, Stale)
