"""Locks between nodes: how they are had, given back and lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from litereplica.cluster.halts import LOCK_LIMIT_S
from litereplica.cluster.messages import Halt
from litereplica.errors import Refused, Unavailable
from litereplica.node.halting import STALE_LIMIT_S, Halted
from tests.cluster_halts.line import LATENCY_S, Group, Node, Outcome, group, started
from tests.store.application import NAME, Application

MOMENT_S = 0.3


async def test_a_lock_of_a_replica_is_sqlite_s_lock_on_the_primary_until_it_is_closed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        b = nodes["b"].client
        handle = await b.hold(NAME)
        assert (nodes.applier.held, nodes.holder()) == (NAME, "b")
        assert b.problem(NAME) is None
        await nodes["a"].halting.turn("b", b.token(NAME), NAME)
        with pytest.raises(Refused, match="is lost"):
            await nodes["a"].halting.turn("b", 12345, NAME)
        handle.release()
        assert b.token(NAME) == 0
        await trio.sleep(MOMENT_S)
        assert (nodes.applier.held, nodes.holder()) == (None, None)
        assert nodes["a"].halting.figures().seconds["lock"] == pytest.approx(LATENCY_S * 2, abs=0.01)


async def test_a_lock_is_renewed_for_as_long_as_it_is_open(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes, trio.open_nursery() as nursery:
        token = (await nodes["b"].client.hold(NAME), nodes["b"].client.token(NAME))[1]
        waiting = started(nursery, nodes["c"].client.hold, NAME)
        await trio.sleep(300)
        assert nodes.holder() == "b"
        assert nodes["b"].client.token(NAME) == token
        assert not waiting.done.is_set()
        nursery.cancel_scope.cancel()


async def test_openers_of_several_nodes_and_of_one_have_it_in_their_order(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes, trio.open_nursery() as nursery:
        had: list[str] = []

        async def use(name: str, label: str) -> None:
            handle = await nodes[name].client.hold(NAME)
            assert nodes.holder() == name
            had.append(label)
            await trio.sleep(1)
            handle.release()

        for name, label in (("b", "b1"), ("c", "c1"), ("b", "b2"), ("a", "a1"), ("c", "c2")):
            nursery.start_soon(use, name, label)
            await trio.sleep(0.05)
    assert had == ["b1", "c1", "b2", "a1", "c2"]


async def test_a_lock_on_the_primary_leaves_sqlite_alone_and_keeps_other_nodes_away(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        a = nodes["a"]
        handle = await a.client.hold(NAME)
        assert (nodes.applier.held, nodes.holder()) == (None, "a")
        assert a.client.problem(NAME) is None
        began = trio.current_time()
        with pytest.raises(Halted, match="node a has it"):
            await a.halting.turn("b", 0, NAME)
        assert trio.current_time() - began == pytest.approx(5.0)
        handle.release()
        await a.halting.turn("b", 0, NAME)
        assert [(change.node, change.ended) for change in a.changes] == [("a", False), ("a", True)]


async def test_a_lock_waits_for_an_application_of_the_primary_that_is_inside_a_transaction(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes, trio.open_nursery() as nursery:
        nodes.applier.kept_by = "process 7 (python3)"
        waiting = started(nursery, nodes["b"].client.hold, NAME)
        await trio.sleep(60)
        assert not waiting.done.is_set()
        nodes.applier.kept_by = ""
        await waiting.done.wait()
        assert waiting.error is None
        assert nodes.holder() == "b"


async def test_an_opener_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes, trio.open_nursery() as nursery:
        handle = await nodes["b"].client.hold(NAME)
        waiting = started(nursery, nodes["c"].client.hold, NAME)
        await trio.sleep(1)
        assert (halt := nodes.halts()) is not None
        assert halt.waiting == 1
        waiting.scope.cancel()
        await trio.sleep(1)
        assert (halt := nodes.halts()) is not None
        assert halt.waiting == 0
        assert nodes["c"].client.statuses() == []
        handle.release()


async def test_a_lock_is_lost_with_the_link_and_in_the_way_until_it_is_closed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes:
        b = nodes["b"]
        handle = await b.client.hold(NAME)
        token = b.client.token(NAME)
        b.cut("the connection was closed")
        assert nodes.applier.held is None
        assert b.client.token(NAME) == 0
        b.join(nodes["a"])
        await trio.sleep(MOMENT_S)
        assert "is lost (the connection was closed)" in (b.client.problem(NAME) or "")
        assert nodes["a"].halting.refusal("b", token, NAME) is not None
        with pytest.raises(Refused, match="end the process that has it open"):
            await b.client.hold(NAME)
        (await nodes["c"].client.hold(NAME)).release()
        handle.release()
        assert b.client.problem(NAME) is None
        await b.client.hold(NAME)
        assert nodes.holder() == "b"
        assert [(each.ended, each.reason) for each in b.changes][:2] == [
            (False, ""),
            (True, "the connection was closed"),
        ]


async def test_a_node_that_does_not_renew_loses_its_lock_to_the_next_and_is_refused_when_it_is_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes:
        b, c = nodes["b"].client, nodes["c"].client
        await b.hold(NAME)
        token = b.token(NAME)
        # As if it had been stopped, with the connection left open.
        nodes["b"].line_delay_s = 30.0
        began = trio.current_time()
        await c.hold(NAME)
        assert trio.current_time() - began == pytest.approx(LOCK_LIMIT_S, abs=4)
        with pytest.raises(Refused, match="is lost"):
            await nodes["a"].halting.turn("b", token, NAME)
        assert "could not be renewed" in (b.problem(NAME) or "")
        await trio.sleep(60)
        assert nodes.holder() == "c"
        assert "is lost" in (b.problem(NAME) or "")


async def test_a_drop_under_a_lock_loses_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        a, b = nodes["a"], nodes["b"]
        await b.client.hold(NAME)
        a.store.databases[NAME].drop()
        await trio.sleep(MOMENT_S)
        assert f"{NAME} was dropped on the primary" in (b.client.problem(NAME) or "")
        assert nodes.applier.held is None
        with pytest.raises(Refused, match=r"has no database other\.db"):
            await b.client.hold("other.db")


async def test_a_lock_is_lost_with_the_applier_that_kept_the_primary_s_applications_away(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        handle = await nodes["b"].client.hold(NAME)
        nodes.applier.die()
        await trio.sleep(MOMENT_S)
        assert "applier" in (nodes["b"].client.problem(NAME) or "")
        handle.release()
        await nodes["b"].client.hold(NAME)
        assert nodes.applier.held == NAME


async def test_a_lock_that_the_applier_could_not_keep_is_lost_and_can_be_had_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes, trio.open_nursery() as nursery:
        handle = await nodes["b"].client.hold(NAME)
        waiting = started(nursery, nodes["c"].client.hold, NAME)
        nodes.applier.lose()
        await trio.sleep(MOMENT_S)
        assert "could not keep it" in (nodes["b"].client.problem(NAME) or "")
        assert "is lost" in (nodes["a"].halting.refusal("b", 1, NAME) or "")
        await waiting.done.wait()
        assert (nodes.holder(), nodes.applier.held) == ("c", NAME)
        handle.release()
        waiting.value.release()
        await nodes["b"].client.hold(NAME)
        assert nodes.holder() == "b"


async def test_another_primary_means_other_locks(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes, trio.open_nursery() as nursery:
        a, b, c = nodes["a"], nodes["b"], nodes["c"]
        held = await a.client.hold(NAME)
        waiting = started(nursery, c.client.hold, NAME)
        also_waiting = started(nursery, b.client.hold, NAME)
        await trio.sleep(1)
        a.follow()
        for node in (b, c):
            node.cut()
        nodes.applier.halting = b.halting
        b.lead()
        for node in (a, c):
            node.join(b)
        await trio.sleep(1)
        assert nodes.holder() in {"b", "c"}
        assert "is lost" in (a.client.problem(NAME) or "")
        first, second = (also_waiting, waiting) if nodes.holder() == "b" else (waiting, also_waiting)
        first.value.release()
        await second.done.wait()
        second.value.release()
        held.release()
        (await a.client.hold(NAME)).release()


async def test_a_handoff_that_is_given_up_lets_those_who_wait_have_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes, trio.open_nursery() as nursery:
        a = nodes["a"]
        handle = await nodes["b"].client.hold(NAME)
        waiting = started(nursery, nodes["c"].client.hold, NAME)
        await trio.sleep(1)
        a.halting.end("the primary hands its role over", handing_over=True)
        assert (halt := nodes.halts()) is not None
        assert halt.kind == "handoff"
        await trio.sleep(1)
        a.halting.begin()
        await waiting.done.wait()
        assert nodes.holder() == "c"
        assert "hands its role over" in (nodes["b"].client.problem(NAME) or "")
        handle.release()


async def test_without_a_primary_an_opener_is_told_after_the_limit(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b") as nodes, trio.open_nursery() as nursery:
        b = nodes["b"]
        b.cut()
        began = trio.current_time()
        with pytest.raises(Unavailable, match="no primary is connected for 10 s"):
            await b.client.hold(NAME)
        assert trio.current_time() - began == pytest.approx(10)
        waiting = started(nursery, b.client.hold, NAME)
        await trio.sleep(9)
        b.join(nodes["a"])
        await waiting.done.wait()
        assert nodes.holder() == "b"


async def test_a_lock_is_worth_nothing_before_this_node_has_what_others_committed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes, trio.open_nursery() as nursery:
        application = Application(nodes["a"].store)
        application.go_on(nodes["a"].store)
        database = nodes["a"].store.databases[NAME]
        page = bytes(database.page_size)
        database.commit([(1, page)], database.page_count, lambda: None)
        behind = nodes["b"].store.databases[NAME]
        waiting = started(nursery, nodes["b"].client.hold, NAME)
        await trio.sleep(5)
        assert not waiting.done.is_set()
        behind.commit([(1, page)], behind.page_count, lambda: None)
        await waiting.done.wait()
        assert waiting.error is None
        waiting.value.release()
        database.commit([(1, page)], database.page_count, lambda: None)
        with pytest.raises(Unavailable, match="too far behind to be locked"):
            await nodes["b"].client.hold(NAME)
        await trio.sleep(MOMENT_S)
        assert nodes.holder() is None


async def test_in_mode_lock_nothing_is_taken_without_one_but_on_the_primary(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b", on_replica="lock") as nodes:
        b = nodes["b"].client
        assert "litereplica lock" in (b.problem(NAME) or "")
        handle = await b.hold(NAME)
        assert b.problem(NAME) is None
        handle.release()
        assert b.problem(NAME) is not None
        assert nodes["a"].client.problem(NAME) is None


# -- leases --------------------------------------------------------------------------------------------------------


async def test_a_stale_node_has_the_lease_when_it_is_told_so(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b", "c") as nodes:
        halting = nodes["a"].halting
        await halting.stale("b", NAME)
        assert (nodes.applier.held, nodes.holder()) == (NAME, "b")
        began = trio.current_time()
        await halting.turn("c", 0, NAME)
        assert trio.current_time() - began == pytest.approx(1.0)
        assert halting.figures().leases == 1
        # The next one not before a second has passed.
        await halting.stale("c", NAME)
        assert nodes.holder() is None
        await trio.sleep(1)
        assert nodes.holder() == "c"


async def test_a_stale_node_is_told_so_even_when_the_lease_cannot_be_had_soon(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        nodes.applier.kept_by = "process 7 (python3)"
        began = trio.current_time()
        await nodes["a"].halting.stale("b", NAME)
        assert trio.current_time() - began == pytest.approx(STALE_LIMIT_S)
        nodes.applier.kept_by = ""
        await trio.sleep(0.01)
        assert nodes.holder() == "b"


async def test_a_lease_ends_soon_after_the_retry(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        halting = nodes["a"].halting
        await halting.stale("b", NAME)
        await trio.sleep(0.1)
        assert halting.refusal("b", 0, NAME) is None
        halting.committed("b", NAME)
        await trio.sleep(0.04)
        assert nodes.holder() == "b"
        await trio.sleep(0.02)
        assert (nodes.holder(), nodes.applier.held) == (None, None)


async def test_no_leases_are_given_where_they_are_turned_off(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with group(tmp_path, "a", "b", lease_s=0) as nodes:
        await nodes["a"].halting.stale("b", NAME)
        await nodes["b"].client.begin(NAME)
        assert nodes["a"].halting.figures().leases == 0


async def test_a_transaction_under_a_journal_has_the_lease_before_it_changes_anything(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        began = trio.current_time()
        await nodes["b"].client.begin(NAME)
        assert nodes.holder() == "b"
        assert trio.current_time() - began < 0.1
        await trio.sleep(3)
        database = nodes["a"].store.databases[NAME]
        database.commit([(1, bytes(database.page_size))], database.page_count, lambda: None)
        with pytest.raises(Refused, match="is stale"):
            await nodes["b"].client.begin(NAME)


async def test_a_transaction_under_a_journal_goes_on_without_a_lease_that_is_not_to_be_had(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        nodes.applier.kept_by = "process 7 (python3)"
        await nodes["b"].client.begin(NAME)
        assert nodes.holder() is None
        nodes["b"].cut()
        with pytest.raises(Unavailable):
            await nodes["b"].client.begin(NAME)


async def test_two_transactions_of_a_database_that_begin_at_once_both_have_an_answer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes, trio.open_nursery() as nursery:
        b = nodes["b"].client
        began = trio.current_time()
        both = [started(nursery, b.begin, NAME) for _ in range(2)]
        for each in both:
            await each.done.wait()
            assert each.error is None
        assert trio.current_time() - began < MOMENT_S


@asynccontextmanager
async def one_that_has_no_answer(folder: Path) -> AsyncIterator[tuple[Group, Node, Outcome]]:
    """A group, its replica, and what becomes of a transaction there whose question is on its way to the primary."""
    async with group(folder, "a", "b") as nodes, trio.open_nursery() as nursery:
        b = nodes["b"]
        b.line_delay_s = 5.0
        waiting = started(nursery, b.client.begin, NAME)
        await trio.sleep(MOMENT_S)
        yield nodes, b, waiting


async def test_a_transaction_that_is_stale_does_not_wait_for_a_primary(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It has SQLite's lock, and a promotion of its node would wait for what is not applied because of that."""
    async with one_that_has_no_answer(tmp_path) as (_, b, waiting):
        b.store.databases[NAME].applied -= 1  # a record comes that the applier cannot bring in
        await trio.sleep(MOMENT_S)
        assert not waiting.done.is_set(), "the primary may still give it the lease"
        began = trio.current_time()
        b.cut()
        await waiting.done.wait()
        assert isinstance(waiting.error, Refused)
        assert "is stale" in str(waiting.error)
        assert trio.current_time() - began < 0.1
        with pytest.raises(Refused, match="is stale"):
            await b.client.begin(NAME)
        assert trio.current_time() - began < 0.1


async def test_a_transaction_that_is_not_goes_on_with_whoever_is_primary_next(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with one_that_has_no_answer(tmp_path) as (nodes, b, waiting):
        b.cut()
        await trio.sleep(1)
        assert not waiting.done.is_set()
        nodes["a"].follow()
        b.lead()
        began = trio.current_time()
        await waiting.done.wait()
        assert waiting.error is None
        assert trio.current_time() - began < 0.1


async def test_a_node_that_does_not_lead_refuses_and_has_it_asked_elsewhere(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with group(tmp_path, "a", "b") as nodes:
        nodes["a"].halting.end("handing over")
        nodes["a"].halting.halt("b", Halt(1, NAME, 7, 10_000))
        assert nodes["a"].halting.statuses() == {}
        await trio.sleep(MOMENT_S)
        assert nodes.applier.held is None
