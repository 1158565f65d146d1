"""Transactions of a replica's applications, committed by the primary."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from litereplica.errors import Refused, Unavailable
from litereplica.node import intake
from litereplica.store.local import Stale
from litereplica.store.spool import Spool
from tests.replication.forwarding import Pages, WritingNode
from tests.replication.nodes import PAGE, Line, content, same, until


@pytest.fixture
def node_class() -> type[WritingNode]:
    return WritingNode


@asynccontextmanager
async def joined(primary: WritingNode, replica: WritingNode) -> AsyncIterator[None]:
    """The replica follows, and has what the primary has."""
    async with primary.leading(), replica.forwarding(primary.port):
        await until(lambda: same(primary, replica))
        yield


async def refused(
    replica: WritingNode, error: type[Exception] | tuple[type[Exception], ...], words: str | None = None
) -> None:
    """A transaction that is not committed."""
    with pytest.raises(error, match=words):
        await replica.write()


def origin_of(node: WritingNode, txid: int) -> str | None:
    origin = node.database().origin_at(txid)
    return origin.node if origin is not None else None


async def test_a_transaction_of_a_replica_is_the_primarys_next_and_read_back_at_once(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        txid = await replica.write()
        assert replica.completed == [txid]
        assert replica.position() == primary.position()
        assert replica.database().applied == txid
        assert origin_of(primary, txid) == origin_of(replica, txid) == "b"
        assert content(primary.database()) == content(replica.database())
        primary.touch(3)
        await until(lambda: same(primary, replica))
        assert await replica.write() == txid + 4
        assert replica.forwarded == {"committed": 2}
        assert primary.writes.counts.figures().taken == {"committed": 2}


async def test_a_database_that_a_replica_makes(primary: WritingNode, replica: WritingNode) -> None:
    async with primary.leading(), replica.forwarding(primary.port) as client:
        await until(lambda: client.connected)
        pages = Pages({1: bytes(PAGE - 1) + b"x", 2: replica.random.randbytes(PAGE)}, 2)
        assert await replica.write(pages, "new.db") == 1
        assert primary.position("new.db") == replica.position("new.db")
        primary.database("new.db").drop()
        await until(lambda: same(primary, replica, "new.db"))
        assert await replica.write(pages, "new.db") == 3


async def test_a_transaction_of_many_pieces(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(2000)
    async with joined(primary, replica):
        await replica.write(Pages({pgno: replica.random.randbytes(PAGE) for pgno in range(1, 1501)}, 2000))
        assert same(primary, replica)
        assert not list(primary.store.forwarded.iterdir())
        assert not list(replica.store.forwarded.iterdir())


async def test_a_transaction_on_an_older_state_is_refused_and_nowhere(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        primary.applier.busy = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, replica, Stale)
            await until(lambda: primary.applier.commits == 1)
            # The applier still waits for the lock; the answer does not wait for that.
            primary.touch(1)
        assert replica.completed == []
        primary.applier.busy = False
        primary.applier.run()
        await until(lambda: same(primary, replica))
        assert await replica.write() == primary.position().txid
        assert content(primary.database()) == content(replica.database())
        assert replica.forwarded == {"stale": 1, "committed": 1}


async def test_a_transaction_that_is_stale_here_already_is_not_sent(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        replica.applies = False
        primary.touch(1)
        await until(lambda: same(primary, replica))
        with pytest.raises(Stale):
            await replica.write()
        assert primary.applier.commits == 0
        replica.applies = True
        assert await replica.write() == primary.position().txid


async def test_a_lock_that_an_application_keeps_is_busy_and_nothing_is_committed(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        before = primary.position()
        primary.applier.busy = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, replica, Refused, "process 1")
            await until(lambda: primary.applier.commits == 1)
            primary.applier.give_up("app.db", 1)
        assert primary.position() == before
        assert replica.forwarded == {"busy": 1}


async def test_two_replicas_and_a_database_each_commit_in_some_order(
    make_node: Callable[..., WritingNode], primary: WritingNode
) -> None:
    primary.grow(10)
    replicas = [make_node(name) for name in "bcd"]
    done: list[str] = []

    async def write(node: WritingNode) -> None:
        while done.count(node.name) < 10:
            await until(lambda: same(primary, node))
            try:
                await node.write()
            except Refused:
                continue
            done.append(node.name)

    b, c, d = replicas
    async with primary.leading(), b.forwarding(primary.port), c.forwarding(primary.port), d.forwarding(primary.port):
        for each in replicas:
            await until(lambda each=each: same(primary, each))  # type: ignore[misc]
        first = primary.position().txid
        async with trio.open_nursery() as nursery:
            for each in replicas:
                nursery.start_soon(write, each)
        assert primary.position().txid == first + 30
        for each in replicas:
            await until(lambda each=each: same(primary, each))  # type: ignore[misc]
            assert content(each.database()) == content(primary.database())
        found = [origin_of(primary, txid) for txid in range(first + 1, first + 31)]
        assert {name: found.count(name) for name in "bcd"} == dict.fromkeys("bcd", 10)


# -- connections that end --------------------------------------------------------------------------------------------


async def test_an_answer_that_is_lost_is_asked_for_again_and_committed_once(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with primary.leading(), Line().to(primary.port) as line, replica.forwarding(line.port):
        await until(lambda: same(primary, replica))
        primary.applier.busy = True
        first = primary.position().txid
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            await until(lambda: primary.applier.commits == 1)
            line.cut()
            await until(lambda: line.connections == 2)
            primary.applier.busy = False
            primary.applier.run()
        assert primary.position().txid == replica.position().txid == first + 1
        assert primary.applier.commits == 1
        assert replica.forwarded == {"committed": 1}
        await until(lambda: not primary.writes.committer._under_way)


async def test_cut_at_any_byte_a_transaction_is_committed_once_or_refused(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with primary.leading(), Line().to(primary.port) as line, replica.forwarding(line.port):
        await until(lambda: same(primary, replica))
        for number in range(8):
            line.sent_bytes, line.cut_after_bytes = 0, 1 + number * 1250
            before = primary.position().txid
            await replica.write()
            line.cut_after_bytes = None
            await until(lambda: same(primary, replica))
            assert primary.position().txid == before + 1
            assert content(primary.database()) == content(replica.database())


async def test_without_a_primary_a_commit_is_refused_after_the_limit(
    make_node: Callable[..., WritingNode], primary: WritingNode
) -> None:
    replica = make_node("b", timeout_s=0.3)
    primary.grow(10)
    async with primary.leading(), Line().to(primary.port) as line:
        async with replica.forwarding(line.port):
            await until(lambda: same(primary, replica))
        with pytest.raises(Refused, match="no primary could be reached"):
            await replica.write()
        assert replica.forwarded == {"refused": 1}
        assert replica.database().awaited is None


async def test_a_commit_waits_for_a_primary_that_comes_within_the_limit(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with primary.leading():
        async with replica.forwarding(primary.port):
            await until(lambda: same(primary, replica))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            await trio.sleep(0.1)
            async with replica.forwarding(primary.port):
                await until(lambda: replica.forwarded == {"committed": 1})


async def test_without_an_answer_the_outcome_is_unknown_and_what_comes_later_is_applied(
    make_node: Callable[..., WritingNode], primary: WritingNode
) -> None:
    replica = make_node("b", timeout_s=0.5)
    primary.grow(10)
    async with primary.leading(), Line().to(primary.port) as line, replica.forwarding(line.port):
        await until(lambda: same(primary, replica))
        primary.applier.busy = True
        with pytest.raises(Unavailable, match="may be committed"):
            await replica.write()
        assert replica.forwarded == {"unknown": 1}
        primary.applier.busy = False
        primary.applier.run()
        await until(lambda: same(primary, replica))
        assert replica.completed == []
        assert replica.database().applied == primary.position().txid
        assert origin_of(replica, primary.position().txid) == "b"


async def test_a_replica_that_comes_back_waits_for_what_it_sent_before(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with primary.leading(), Line().to(primary.port) as line, replica.forwarding(line.port):
        await until(lambda: same(primary, replica))
        primary.applier.busy = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            await until(lambda: primary.applier.commits == 1)
            for connections in (2, 3):
                line.cut()
                await until(lambda: line.connections >= connections)  # noqa: B023
            await trio.sleep(0.1)
            assert primary.applier.commits == 1, "one at a time"
            # Another transaction is first after all: all three sendings are stale.
            nursery.cancel_scope.cancel()
        primary.applier.busy = False
        primary.applier.run()
        await until(lambda: not primary.writes.committer._under_way)


@pytest.mark.parametrize("why", ["no place", "no room"])
async def test_what_cannot_be_taken_in_again_is_not_refused_while_it_is_under_way(
    primary: WritingNode, replica: WritingNode, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """The first sending is at the applier, and commits after the second one has been turned away."""

    def no_room(self: Spool, data: bytes) -> None:
        raise OSError(errno.ENOSPC, f"no room for {len(data)} bytes")

    primary.grow(10)
    async with primary.leading(), Line().to(primary.port) as line, replica.forwarding(line.port):
        await until(lambda: same(primary, replica))
        primary.applier.busy = True

        async def cut() -> None:
            await until(lambda: primary.applier.commits == 1)
            if why == "no place":
                monkeypatch.setattr(intake, "COUNT_LIMIT", 1)
            else:
                monkeypatch.setattr(Spool, "append", no_room)
            line.cut()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            await refused(replica, Unavailable, "an earlier sending of it is under way still")
        assert replica.forwarded == {"unknown": 1}
        primary.applier.busy = False
        primary.applier.run()
        await until(lambda: same(primary, replica))
        assert origin_of(replica, primary.position().txid) == "b"


# -- the primary ------------------------------------------------------------------------------------------------------


async def test_an_applier_that_dies_is_asked_again(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        primary.applier.dead = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            await until(lambda: bool(primary.writes.committer._under_way))
            primary.applier.dead = False
            primary.applier.die()
        assert replica.forwarded == {"committed": 1}


async def test_an_applier_that_dies_after_the_commit_is_not_asked_again(
    primary: WritingNode, replica: WritingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        first = primary.position().txid
        monkeypatch.setattr(primary.writes.committer, "on_committed", lambda _database, _number: None)
        await replica.write()
        primary.applier.die()
        await until(lambda: not primary.writes.committer._under_way)
        assert primary.position().txid == first + 1


async def test_a_closed_fence_makes_the_replica_ask_again(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        primary.access.accepts_until = 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            await until(lambda: primary.writes.counts.figures().taken.get("not_primary", 0) >= 2)
            primary.access.accepts_until = float("inf")
        assert replica.forwarded == {"committed": 1}


async def test_a_durable_commit_is_answered_when_the_primary_has_it_on_its_disk(
    primary: WritingNode, replica: WritingNode
) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        txid = await replica.write(durable=True)
        assert primary.database().log.durable_txid >= txid
        await replica.write()
        await replica.forwarder.make_durable("app.db")
        assert primary.database().log.durable_txid >= txid + 1


async def test_a_disk_that_fails_makes_no_commit_durable(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        primary.disk.loses = True
        with pytest.raises(Unavailable):
            await replica.write(durable=True)
        assert primary.access.fenced is not None
        assert replica.completed == [primary.position().txid], "it is committed all the same"


async def test_a_full_disk_of_the_primary_refuses(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        primary.disk.full = True
        with pytest.raises(Refused, match="data directory"):
            await replica.write()
        primary.disk.full = False
        await replica.write()


# -- changes of role --------------------------------------------------------------------------------------------------


async def test_a_node_that_is_promoted_commits_what_it_holds_itself(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with primary.leading():
        async with replica.forwarding(primary.port):
            await until(lambda: same(primary, replica))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            await trio.sleep(0.05)
            replica.store.epoch = 2
            replica.lead()
        assert replica.position().txid == primary.position().txid + 1
        assert origin_of(replica, replica.position().txid) is None
        assert replica.forwarded == {"became_primary": 1}


@pytest.mark.parametrize("committed", [False, True])
async def test_what_was_sent_to_the_last_primary_is_committed_once(
    make_node: Callable[..., WritingNode], primary: WritingNode, replica: WritingNode, committed: bool
) -> None:
    """The replica is cut off before the answer; another node becomes primary, with the transaction or without it."""
    other = make_node("c")
    primary.grow(10)
    async with trio.open_nursery() as nursery:
        async with (
            primary.leading(),
            other.forwarding(primary.port),
            Line().to(primary.port) as line,
            replica.forwarding(line.port),
        ):
            await until(lambda: same(primary, replica) and same(primary, other))
            before = primary.position().txid
            primary.applier.busy = True
            nursery.start_soon(replica.write)
            await until(lambda: primary.applier.commits == 1)
            line.go_silent()
            if committed:
                primary.applier.busy = False
                primary.applier.run()
                await until(lambda: other.position().txid == before + 1)
        other.store.epoch = 2
        async with other.leading(), replica.forwarding(other.port):
            await until(lambda: replica.forwarded == {"committed": 1})
    assert replica.position() == other.position()
    assert other.position().txid == before + 1
    assert origin_of(other, before + 1) == "b"
    assert other.applier.commits == (0 if committed else 1)
    assert replica.completed == [before + 1]


async def test_nothing_is_begun_while_the_role_is_handed_over(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        primary.writes.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.write)
            await trio.sleep(0.2)
            assert primary.applier.commits == 0
            primary.writes.resume()
        assert replica.forwarded == {"committed": 1}


async def test_a_demotion_ends_an_applier_that_waits_for_a_lock(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    async with joined(primary, replica):
        primary.applier.busy = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, replica, (Refused, Unavailable))
            await until(lambda: primary.applier.commits == 1)
            primary.access.accepts_until = 0.0
            await primary.writes.end()
            assert primary.applier.kills == 1
            primary.access.primary = False


# -- replicas that cannot ---------------------------------------------------------------------------------------------


async def test_a_replica_of_another_history_forwards_nothing(primary: WritingNode, replica: WritingNode) -> None:
    primary.grow(10)
    replica.grow(12)
    async with primary.leading(), replica.forwarding(primary.port) as client:
        await until(lambda: client.connected)
        if "app.db" in client.foreign:
            assert "not the primary's yet" in (replica.forwarder.problem("app.db") or "")
        await until(lambda: same(primary, replica))
        assert replica.forwarder.problem("app.db") is None
        await replica.write()


async def test_a_replica_may_not_forward_in_anothers_name(
    make_node: Callable[..., WritingNode], primary: WritingNode
) -> None:
    replica = make_node("b", timeout_s=0.5)
    primary.grow(10)
    async with joined(primary, replica):
        replica.store.node = "z"
        with pytest.raises(Unavailable):
            await replica.write()
        assert primary.applier.commits == 0
