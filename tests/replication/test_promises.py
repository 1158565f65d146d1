"""What a primary asks its replicas beside sending them records: promises, and what they have."""

from collections.abc import Callable

import trio

from tests.replication.nodes import Line, Node, same, until


async def test_replicas_answer_for_themselves(make_node: Callable[..., Node], primary: Node) -> None:
    primary.grow(3)
    b, c, d = (make_node(name) for name in "bcd")
    asked: list[tuple[int, float]] = []

    def promise(epoch: int, hold_s: float) -> bool:
        asked.append((epoch, hold_s))
        return True

    async with (
        primary.serving() as server,
        b.following(primary.port, promise=promise),
        c.following(primary.port, promise=lambda *_: False),
        d.following(primary.port),
    ):
        await until(lambda: all(same(primary, each) for each in (b, c, d)))
        assert await server.ask_promises(frozenset("bcd"), 5.0, 10.0) == {"b"}
        assert await server.ask_promises(frozenset({"b", "gone"}), 5.0, 10.0) == {"b"}
        assert await server.ask_promises(frozenset(), 5.0, 10.0) == frozenset()
    assert asked == [(1, 5.0), (1, 5.0)]


async def test_who_does_not_answer_in_time_has_not_promised(primary: Node, replica: Node) -> None:
    primary.grow(3)
    line = Line()
    async with (
        primary.serving(timeout_s=30.0) as server,
        line.to(primary.port),
        replica.following(line.port, promise=lambda *_: True, timeout_s=30.0),
    ):
        await until(lambda: same(primary, replica))
        line.go_silent()
        assert await server.ask_promises(frozenset("b"), 5.0, 0.2) == frozenset()
        line.speak()
        # The answer to the first one comes now, and is not taken for one to the second.
        assert await server.ask_promises(frozenset("b"), 5.0, 10.0) == {"b"}
        async with trio.open_nursery() as nursery:
            line.go_silent()
            nursery.start_soon(leave, line)
            assert await server.ask_promises(frozenset("b"), 5.0, 10.0) == frozenset(), "it left"


async def leave(line: Line) -> None:
    await trio.sleep(0.05)
    line.cut()
    line.speak()


async def test_acknowledged_means_logged_as_of_the_call(primary: Node, replica: Node) -> None:
    primary.grow(3)
    primary.grow(3, "b.db")
    line = Line()
    async with primary.serving(timeout_s=30.0) as server, line.to(primary.port):
        assert not await server.acknowledged("b", 0.1), "it is not connected"
        async with replica.following(line.port, timeout_s=30.0):
            await until(lambda: "b" in server.replicas)
            assert await server.acknowledged("b", 10.0)
            assert same(primary, replica)
            assert same(primary, replica, "b.db")
            line.go_silent()
            primary.touch(1, "b.db")
            assert not await server.acknowledged("b", 0.2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak_soon, line)
                assert await server.acknowledged("b", 10.0)
            assert same(primary, replica, "b.db")


async def speak_soon(line: Line) -> None:
    await trio.sleep(0.05)
    line.speak()


async def test_a_node_that_is_about_to_be_primary_is_asked_again_soon(primary: Node, replica: Node) -> None:
    primary.grow(3)
    is_primary = False
    line = Line()
    async with primary.serving(is_primary=lambda: is_primary), line.to(primary.port), replica.following(line.port):
        began = trio.current_time()
        await until(lambda: line.connections >= 8)
        # 0.05 + 0.1 + 5 * 0.2 s, and what eight connections take on a busy machine; else 12 s.
        assert trio.current_time() - began < 8
        is_primary = True
        await until(lambda: same(primary, replica), 2)
