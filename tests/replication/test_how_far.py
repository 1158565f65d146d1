"""Who has the same is equally far, however it came to have it: over TCP, with real stores."""

from collections.abc import Callable

from litereplica.node.how_far import how_far
from tests.replication.nodes import Node, same, until
from tests.replication.test_divergence import forget, share


def far(node: Node) -> tuple[int, int]:
    return how_far(node.store.databases.values())


async def follow(primary: Node, replica: Node) -> None:
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: all(same(primary, replica, name) for name in primary.store.databases))


async def test_a_database_that_only_one_node_had_puts_it_ahead_of_nobody(primary: Node, replica: Node) -> None:
    await share(primary, replica)
    replica.grow(12, "mine.db")
    replica.touch(300, "mine.db")
    primary.store.epoch = 2
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: not replica.database("mine.db").exists)
        primary.touch(1)
        await until(lambda: same(primary, replica))
    assert far(replica) == far(primary)
    primary.touch(50)
    assert far(replica) < far(primary)


async def test_a_dropped_database_counts_alike_by_records_and_by_snapshot(
    primary: Node, replica: Node, make_node: Callable[..., Node]
) -> None:
    primary.grow(8, "gone.db")
    primary.touch(30, "gone.db")
    await share(primary, replica)
    primary.checkpoint("gone.db")
    # Its log goes back to the drop alone.
    await primary.begin_segment("gone.db")
    primary.database("gone.db").drop()
    await follow(primary, replica)
    assert far(replica) == far(primary)
    await forget(primary, 10)
    late = make_node("late")
    await follow(primary, late)
    await follow(primary, replica)
    assert late.database("gone.db").log.last_txid < late.database("gone.db").log.first_txid
    assert far(late) == far(replica) == far(primary)
    primary.store.epoch = 2
    primary.touch(1)
    await follow(primary, late)
    await follow(primary, replica)
    assert far(late) == far(replica) == far(primary) == (2, primary.position().txid)


async def test_who_has_not_heard_of_a_drop_is_behind_who_has(primary: Node, replica: Node) -> None:
    primary.grow(8, "gone.db")
    await share(primary, replica)
    await follow(primary, replica)
    primary.database("gone.db").drop()
    assert far(replica) < far(primary)
