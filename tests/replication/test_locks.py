"""Locks beside transactions: what a lock waits for, and what becomes of a transaction whose lock is over."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from litereplica.cluster.framing import MessageReader
from litereplica.cluster.messages import (
    HALT_GRANTED,
    HALT_LOST,
    OUTCOME_NOT_PRIMARY,
    OUTCOME_REFUSED,
    Forward,
    Halt,
    HaltState,
    Hello,
    Message,
    Outcome,
    Records,
)
from litereplica.errors import Refused
from litereplica.ltx.position import Position
from litereplica.mount.elsewhere import HoldHandle
from litereplica.replication.channel import Channel
from litereplica.replication.client import ReplicationClient
from litereplica.replication.sender import BATCH_PARTS, Sender
from litereplica.store.database import Database
from tests.replication.forwarding import WritingNode
from tests.replication.nodes import same, until

NAME = "app.db"
FOR_A_MOMENT_S = 0.05


@pytest.fixture
def node_class() -> type[WritingNode]:
    return WritingNode


@asynccontextmanager
async def joined(primary: WritingNode, replica: WritingNode) -> AsyncIterator[ReplicationClient]:
    """The replica follows, and has what the primary has."""
    primary.grow(10)
    async with primary.leading(), replica.forwarding(primary.port) as client:
        await until(lambda: same(primary, replica))
        yield client


class Holding:
    """An application that opens ``DB-halt``, and notes what the database is at when it has it."""

    def __init__(self, node: WritingNode) -> None:
        self.node = node
        self.handle: HoldHandle | None = None
        self.position = Position.ZERO

    async def run(self) -> None:
        self.handle = await self.node.forwarder.hold(NAME)
        self.position = self.node.position()

    async def waits(self) -> bool:
        await trio.testing.wait_all_tasks_blocked(FOR_A_MOMENT_S)
        return self.handle is None


# -- a lock on the primary --------------------------------------------------------------------------------------------


async def test_a_lock_on_the_primary_waits_for_a_transaction_that_its_applier_has(
    primary: WritingNode, replica: WritingNode
) -> None:
    async with joined(primary, replica), trio.open_nursery() as nursery:
        primary.applier.busy = True
        nursery.start_soon(replica.write)
        await until(lambda: primary.applier.commits == 1)
        before = primary.position()
        holding = Holding(primary)
        nursery.start_soon(holding.run)
        assert await holding.waits()
        primary.applier.busy = False
        primary.applier.run()
        await until(lambda: holding.handle is not None)
        assert holding.position == primary.position() != before


async def test_a_lock_on_the_primary_waits_no_longer_than_that_transaction(
    primary: WritingNode, replica: WritingNode
) -> None:
    async with joined(primary, replica), trio.open_nursery() as nursery:
        primary.applier.busy = True
        outcome: list[str] = []

        async def write() -> None:
            try:
                await replica.write()
            except Refused as error:
                outcome.append(error.message)

        nursery.start_soon(write)
        await until(lambda: primary.applier.commits == 1)
        holding = Holding(primary)
        nursery.start_soon(holding.run)
        assert await holding.waits()
        primary.applier.give_up(NAME, 1)
        await until(lambda: holding.handle is not None and bool(outcome))
        assert holding.handle is not None
        holding.handle.release()


async def test_a_lock_on_the_primary_waits_for_a_transaction_that_outlived_its_node_s_lock(
    primary: WritingNode, replica: WritingNode
) -> None:
    async with joined(primary, replica), trio.open_nursery() as nursery:
        handle = await replica.forwarder.hold(NAME)
        primary.applier.busy = True
        nursery.start_soon(replica.write)
        await until(lambda: primary.applier.commits == 1)
        holding = Holding(primary)
        nursery.start_soon(holding.run)
        assert await holding.waits()
        handle.release()
        await trio.sleep(0.3)
        assert holding.handle is None
        primary.applier.busy = False
        primary.applier.run()
        await until(lambda: holding.handle is not None)
        assert holding.position == primary.position() == replica.position()


async def test_who_no_longer_waits_for_that_leaves_nothing_behind(primary: WritingNode, replica: WritingNode) -> None:
    async with joined(primary, replica), trio.open_nursery() as nursery:
        primary.applier.busy = True
        nursery.start_soon(replica.write)
        await until(lambda: primary.applier.commits == 1)
        with trio.move_on_after(FOR_A_MOMENT_S):
            await primary.forwarder.hold(NAME)
        primary.applier.busy = False
        primary.applier.run()
        await until(lambda: replica.forwarded == {"committed": 1})
        assert primary.writes.halting.statuses() == {}
        await replica.write()


# -- another history --------------------------------------------------------------------------------------------------


class Line:
    """A connection with a primary that grants every lock, and answers each transaction with the next of ``codes``."""

    epoch = 1

    def __init__(self, node: WritingNode, *codes: str) -> None:
        self.node = node
        self.codes = list(codes)
        self.tokens: list[int] = []
        self.locks: list[int] = []
        node.writes.connected(self)

    def tell(self, token: int, state: str) -> None:
        answer = HaltState(self.epoch, NAME, token, state, Position.ZERO, 10_000, "as told")
        trio.lowlevel.current_trio_token().run_sync_soon(self.node.writes.told, answer)

    def say(self, message: Message) -> None:
        if isinstance(message, Halt) and message.token:
            self.locks.append(message.token)
            self.tell(message.token, HALT_GRANTED)

    def send(self, parcel: Iterator[bytes]) -> None:
        first = messages(b"".join(parcel))[0]
        assert isinstance(first, Forward)
        self.tokens.append(first.token)
        outcome = Outcome(self.epoch, first.number, self.codes.pop(0), Position.ZERO, "as told")
        trio.lowlevel.current_trio_token().run_sync_soon(self.node.writes.told, outcome)


def messages(data: bytes) -> list[Message]:
    reader, found = MessageReader(), []
    while data:
        room = reader.room()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        reader.received(count)
        while (message := reader.next()) is not None:
            found.append(message)
    return found


async def test_a_lock_is_worth_nothing_while_the_database_is_of_another_history(replica: WritingNode) -> None:
    replica.grow(10)
    replica.client = cast("ReplicationClient", SimpleNamespace(foreign={NAME}))
    Line(replica)
    holding = Holding(replica)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holding.run)
        assert await holding.waits()
        replica.client.foreign.clear()
        await until(lambda: holding.handle is not None)


async def test_a_node_that_comes_back_with_another_history_has_the_lock_when_it_has_gone_back(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    replica.grow(12)
    replica.touch(3)  # beyond what the primary has
    async with primary.leading(), trio.open_nursery() as nursery:
        holding = Holding(replica)
        nursery.start_soon(holding.run)
        assert await holding.waits()
        async with replica.forwarding(primary.port):
            await until(lambda: holding.handle is not None)
            assert holding.position == primary.position()
            await replica.write()


async def test_a_lock_is_lost_when_its_database_is_found_to_be_of_another_history(
    primary: WritingNode, replica: WritingNode
) -> None:
    async with joined(primary, replica) as client:
        handle = await replica.forwarder.hold(NAME)
        client.resync(NAME, "a test wants it")
        await until(lambda: not client.foreign)
        assert "is lost" in (replica.forwarder.problem(NAME) or "")
        handle.release()
        assert replica.forwarder.problem(NAME) is None
        await replica.write()


# -- a transaction whose lock is over ---------------------------------------------------------------------------------


async def test_a_transaction_whose_lock_was_lost_before_it_was_sent_is_refused(
    replica: WritingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.grow(10)
    line = Line(replica, OUTCOME_REFUSED)
    handle = await replica.forwarder.hold(NAME)
    ready = replica.forwarder.ready

    async def lose(database: Database) -> None:
        """The mount has looked whether the lock is held, and the transaction is about to be put together."""
        await ready(database)
        line.tell(line.locks[0], HALT_LOST)
        await until(lambda: replica.forwarder.problem(NAME) is not None)

    monkeypatch.setattr(replica.forwarder, "ready", lose)
    with pytest.raises(Refused, match="is lost"):
        await replica.write()
    assert line.tokens == []
    assert replica.forwarded == {"refused": 1}
    handle.release()


async def test_a_transaction_is_sent_again_under_the_lock_that_it_was_made_under(replica: WritingNode) -> None:
    replica.grow(10)
    line = Line(replica, OUTCOME_NOT_PRIMARY, OUTCOME_REFUSED)
    handle = await replica.forwarder.hold(NAME)
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(Refused):
                await replica.write()

        nursery.start_soon(write)
        await until(lambda: len(line.tokens) == 1)
        line.tell(line.locks[0], HALT_LOST)
        handle.release()
        await until(lambda: len(line.tokens) == 2)
    assert line.tokens == [line.locks[0]] * 2


async def test_a_lock_that_is_given_back_refuses_no_transaction_that_left_before(
    primary: WritingNode, replica: WritingNode
) -> None:
    async with joined(primary, replica), trio.open_nursery() as nursery:
        handle = await replica.forwarder.hold(NAME)
        nursery.start_soon(replica.write)  # by somebody who knows nothing of the lock
        # It waits there until the lock is given back.
        primary.writes.committer.pause()
        await until(lambda: bool(replica.forwarder._journeys))
        await trio.testing.wait_all_tasks_blocked(FOR_A_MOMENT_S)
        handle.release()
        await until(lambda: not primary.writes.halting.statuses())
        primary.writes.committer.resume()
    assert replica.forwarded == {"committed": 1}


async def test_nothing_is_sent_of_others_transactions_before_a_lock_that_is_lost(
    make_node: Callable[..., WritingNode], primary: WritingNode
) -> None:
    names = [f"{number:03}.db" for number in range(BATCH_PARTS)]
    for name in names:
        primary.grow(2, name)
    lost = HaltState(1, names[-1], 1, HALT_LOST, Position.ZERO, 0, "it was not renewed")
    sent: list[Message] = []

    class Wire:
        async def send(self, *parts: bytes) -> None:
            first = not sent
            sent.extend(messages(b"".join(parts)))
            if first:
                # The socket is full for a while.
                await trio.lowlevel.checkpoint()
                sender.say(lost)
                primary.touch(1, names[-1])

    hello = Hello("b", 1, {})
    sender = Sender(primary.store, cast("Channel", Wire()), hello, node="a", epoch=1, key="b")
    for name in names:
        sender.changed(primary.database(name))
    await sender._one_round()
    (record,) = (at for at, each in enumerate(sent) if isinstance(each, Records) and each.database == names[-1])
    assert lost in sent[:record]
