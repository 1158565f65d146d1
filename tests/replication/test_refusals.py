"""Who is not served, and how it learns why."""

import socket

import pytest
import structlog
import trio

from litereplica.cluster.decoding import decode
from litereplica.cluster.encoding import encode
from litereplica.cluster.messages import (
    LENGTH,
    MESSAGE_LIMIT_BYTES,
    PROTOCOL,
    PROTOCOL_NAME,
    Goodbye,
    Heartbeat,
    Hello,
    Records,
    Tip,
    Welcome,
)
from litereplica.config.units import Address
from litereplica.errors import Refused
from litereplica.ltx.position import Point, Position
from tests.replication.nodes import TIMEOUT_S, Node, same, until


async def answer(port: int, data: bytes) -> bytes:
    """Everything that the server says to ``data`` before it closes."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    received = b""
    async with stream:
        await stream.send_all(data)
        with trio.fail_after(TIMEOUT_S + 3):
            while piece := await stream.receive_some():
                received += piece
    return received


def message(data: bytes) -> Goodbye:
    found = decode(data[LENGTH.size :])
    assert isinstance(found, Goodbye)
    return found


async def test_an_http_request_to_the_replication_port(primary: Node) -> None:
    with structlog.testing.capture_logs() as lines:
        async with primary.serving():
            reply = await answer(primary.port, b"GET /status HTTP/1.1\r\nhost: a\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"http.listen" in reply
    assert [line["reason"] for line in lines if line["log_level"] == "warning"] == [
        "an HTTP request came to the replication port: the HTTP interface is another port"
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff" * 64,
        bytes(64),
        LENGTH.pack(MESSAGE_LIMIT_BYTES + 1) + b"x" * 100,
        LENGTH.pack(3) + b"abc",
        encode(Heartbeat(1, 1)),
    ],
    ids=["tls", "ssh", "ones", "zeroes", "too long", "no msgpack", "no hello"],
)
async def test_garbage_is_answered_with_the_reason_and_closed(primary: Node, replica: Node, data: bytes) -> None:
    primary.grow(2)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving():
            reply = await answer(primary.port, data)
            async with replica.following(primary.port):
                await until(lambda: same(primary, replica))
    assert message(reply).code == "malformed"
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["replication_connection_refused"]


async def test_a_peer_that_says_nothing_is_closed(primary: Node) -> None:
    async with primary.serving():
        assert await answer(primary.port, b"") == b""
        assert await answer(primary.port, b"\x00\x00") == b""


async def test_a_replica_of_another_protocol_version_is_refused(primary: Node) -> None:
    import msgpack

    hello = msgpack.packb((1, PROTOCOL_NAME, PROTOCOL + 1, "b", 1, {}, {}, "and more"))
    async with primary.serving():
        reply = message(await answer(primary.port, LENGTH.pack(len(hello)) + hello))
    assert reply.code == "protocol"
    assert str(PROTOCOL + 1) in reply.message
    assert "same version" in reply.message


async def follow(replica: Node, port: int, event: str = "replication_interrupted") -> str:
    with structlog.testing.capture_logs() as lines:
        async with replica.following(port):
            await until(lambda: any(line["event"] == event and line["log_level"] == "warning" for line in lines))
    return next(str(line["reason"]) for line in lines if line["event"] == event)


async def served(reply: bytes, replica: Node, *, wait: bool = True) -> str:
    """What the replica says about a primary that answers its Hello with ``reply``."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            if wait:
                await stream.receive_some()
            await stream.send_all(reply)
            with trio.move_on_after(1):
                while await stream.receive_some():
                    pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        port = listeners[0].socket.getsockname()[1]
        reason = await follow(replica, port)
        nursery.cancel_scope.cancel()
    return reason


async def test_a_primary_of_another_protocol_version_is_refused(replica: Node) -> None:
    import msgpack

    welcome = msgpack.packb((2, PROTOCOL_NAME, PROTOCOL + 1, "a", 1, {}, {}, {}))
    assert "same version" in await served(LENGTH.pack(len(welcome)) + welcome, replica)
    newer = encode(Goodbye("protocol", "run the same version", 1, PROTOCOL + 1))
    assert "run the same version" in await served(newer, replica)


async def test_the_replica_says_that_it_has_found_an_http_port(replica: Node) -> None:
    assert "HTTP port" in await served(b"HTTP/1.1 400 Bad Request\r\n\r\n", replica)


async def test_a_primary_of_a_lower_epoch_is_refused(make_old: Node, replica: Node) -> None:
    async with make_old.serving():
        with structlog.testing.capture_logs() as lines:
            async with replica.following(make_old.port, epoch=9):
                await until(lambda: any(line["event"] == "replication_interrupted" for line in lines))
        assert "epoch 9" in next(str(line["reason"]) for line in lines if line["event"] == "replication_interrupted")
    # The replica's own Hello would be refused as well; here it is the Welcome that is.
    reason = await served(encode(Welcome("a", 3, {})), Node(replica.root / "second", "c"))
    assert reason


async def test_records_of_another_epoch_than_the_welcome_are_refused(replica: Node) -> None:
    data = encode(Welcome("a", 5, {"app.db": Tip(Position(1, 1), 1)})) + encode(Records(4, "app.db", b"LRX1"))
    assert "epoch 4" in await served(data, replica)
    assert replica.store.get("app.db") is None


@pytest.fixture
def make_old(primary: Node) -> Node:
    primary.store.epoch = 3
    return primary


async def test_a_node_that_is_not_primary_says_so(primary: Node, replica: Node) -> None:
    async with primary.serving(is_primary=lambda: False):
        assert "not the primary" in await follow(replica, primary.port)


async def test_a_replica_named_like_the_primary_is_refused(make_twin: Node, primary: Node) -> None:
    async with primary.serving():
        assert "node.name" in await follow(make_twin, primary.port)


@pytest.fixture
def make_twin(primary: Node) -> Node:
    primary.store.node = "b"
    primary.name = "b"
    return Node(primary.root / "twin", "b")


async def test_an_address_where_nobody_listens(replica: Node) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        reason = await follow(replica, port)
    assert str(Address("127.0.0.1", port)) in reason
    assert "Connection refused" in reason


async def test_a_port_that_is_taken_is_refused_with_the_setting_to_change(primary: Node) -> None:
    async with primary.serving():
        with pytest.RaisesGroup(Refused, flatten_subgroups=True) as caught:
            async with primary.serving(primary.port):
                pass
        assert "replication.listen" in str(caught.value.exceptions[0])


async def test_a_hello_of_very_many_databases(primary: Node, replica: Node) -> None:
    databases = {f"folder/{number}.db": Point(number, number, 1) for number in range(20_000)}
    primary.grow(2)
    async with primary.serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", primary.port)
        async with stream:
            await stream.send_all(encode(Hello("b", 1, databases)))
            await until(lambda: "b" in server.replicas)
