"""What a replica makes of a primary's answers when another one has taken over in between."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from litereplica.cluster.messages import OUTCOME_COMMITTED, Message, Outcome, SyncTo
from litereplica.errors import Unavailable
from litereplica.ltx.position import Position
from litereplica.mount.elsewhere import Lost
from litereplica.replication.client import ReplicationClient
from tests.replication.forwarding import WritingNode
from tests.replication.nodes import same, until


@pytest.fixture
def node_class() -> type[WritingNode]:
    return WritingNode


@dataclass
class TwinLine:
    """A connection with a primary, which answers every question as it is told."""

    node: WritingNode
    epoch: int
    code: str = OUTCOME_COMMITTED
    asked: list[Message] = field(default_factory=list)

    def say(self, message: Message) -> None:
        self.asked.append(message)
        if isinstance(message, SyncTo):
            outcome = Outcome(self.epoch, message.number, self.code, Position.ZERO, "")
            trio.lowlevel.current_trio_token().run_sync_soon(self.node.writes.told, outcome)

    def send(self, parcel: Iterator[bytes]) -> None:
        """All of it goes."""


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
