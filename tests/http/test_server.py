"""The server under clients that break rules or do not read: they end their own connections, and nothing else."""

import base64
import errno
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import hpack
import hypercorn.protocol.h11
import pytest
import structlog
import trio

from litereplica.http import connection
from tests.http.twin import TwinCluster, running
from tests.support.mounts import is_mounted
from tests.support.nodes import Nodes

LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
FIGURES = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
WEBSOCKET = (
    b"GET /events HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CHUNKED = b"GET /cluster HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, SETTINGS = 0, 1, 2, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request2(method: bytes = b"GET", path: bytes = b"/livez", *, more: bool = False) -> bytes:
    """A request of HTTP/2."""
    fields = [(b":method", method), (b":path", path), (b":scheme", b"http"), (b":authority", b"a")]
    return frame(HEADERS, 4 if more else 5, 1, hpack.Encoder().encode(fields))


def upgrade(settings: str) -> bytes:
    head = "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    return f"{head}HTTP2-Settings: {settings}\r\n\r\n".encode()


def settings(*values: int) -> str:
    return base64.urlsafe_b64encode(struct.pack(">HI", *values)).decode()


FIRST = PREFACE + frame(SETTINGS, 0, 0)
MALFORMED = {
    "settings that are not base64": [upgrade("A")],
    "settings of half a length": [upgrade("YWJjZA==")],
    "settings with an impossible value": [upgrade(settings(5, 1))],
    "a path of HTTP/2 that is not ASCII": [FIRST + request2(path=b"/\xff\xfe")],
    "a method of HTTP/2 that is not ASCII": [FIRST + request2(method=b"G\xff")],
    "more priorities than anybody counts": [
        FIRST + b"".join(frame(PRIORITY, 0, 2 * each + 1, struct.pack(">IB", 0, 1)) for each in range(1500))
    ],
    "a body behind its answer": [
        FIRST + request2(b"POST", b"/nope", more=True),
        frame(DATA, 0, 1, b"x" * 100) + frame(DATA, 1, 1, b"x"),
    ],
    "a frame behind a handshake": [WEBSOCKET + b"\x81\x85\x00\x00\x00\x00hello"],
    "a request behind a handshake": [WEBSOCKET + LIVE],
    "bytes behind half a handshake": [
        b"GET /events HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello"
    ],
}


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


async def connect(cluster: TwinCluster) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port(cluster["a"].url))


async def ask(cluster: TwinCluster, *parts: bytes, pause_s: float = 0.0, limit_s: float = 0.3) -> bytes:
    """What comes back on a connection of its own until the node ends it, or the limit."""
    found = b""
    async with await connect(cluster) as stream:
        try:
            for part in parts:
                await stream.send_all(part)
                await trio.sleep(pause_s)
            with trio.move_on_after(limit_s):
                async for data in stream:
                    found += data
        except trio.BrokenResourceError:
            pass
    return found


async def lives(cluster: TwinCluster) -> bool:
    answer = await ask(cluster, LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), limit_s=10)
    return answer.startswith(b"HTTP/1.1 200 ")


async def ask_again(stream: trio.SocketStream) -> int:
    """The status of an answer on a connection that stays."""
    await stream.send_all(LIVE)
    answer = b""
    with trio.fail_after(10):
        while not answer.endswith(b"}"):
            answer += await stream.receive_some()
    return int(answer.split()[1])


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def wait_for(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.01)


def reads_little(at: int) -> socket.socket:
    """A client whose side of the connection holds next to nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", at))
    client.setblocking(False)
    return client


async def ask_without_reading(at: int, request: bytes, pause: Callable[[float], Awaitable[Any]]) -> socket.socket:
    """Until the node takes no more requests, because it cannot get rid of its answers."""
    client = reads_little(at)
    full = 0
    while full < 30:
        try:
            client.send(request * 5000)
            full = 0
        except BlockingIOError:
            full += 1
        except ConnectionResetError:
            break
        await pause(0.02)
    return client


@pytest.mark.parametrize("parts", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_leaves_the_node_alive(parts: list[bytes]) -> None:
    async with running("a") as cluster:
        await ask(cluster, *parts, pause_s=0.1)
        assert await lives(cluster)


@pytest.mark.parametrize(
    ("request_", "expected"), [(upgrade("AAMAAABk"), b"HTTP/1.1 200 "), (WEBSOCKET, b"HTTP/1.1 200 "), (FIRST, b"")]
)
async def test_what_this_endpoint_does_not_need_is_not_spoken(request_: bytes, expected: bytes) -> None:
    async with running("a") as cluster:
        answer = await ask(cluster, request_)
    assert answer.startswith(expected or b"HTTP/1.1 4")
    assert b"101 " not in answer.partition(b"\r\n")[0]


async def test_an_error_of_one_connection_is_logged_once_and_ends_that_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = hypercorn.protocol.h11.H11Protocol.handle

    async def fails(self: Any, event: Any) -> None:
        if getattr(event, "data", b"").startswith(b"bug"):
            raise KeyError(7)
        await handle(self, event)

    monkeypatch.setattr(hypercorn.protocol.h11.H11Protocol, "handle", fails)
    async with running("a") as cluster, await connect(cluster) as other:
        assert await ask_again(other) == 200
        before = descriptors()
        with structlog.testing.capture_logs() as lines:
            for _ in range(20):
                with trio.fail_after(10):
                    assert await ask(cluster, b"bug", limit_s=5) == b""
        await wait_for(lambda: descriptors() <= before)
        assert await ask_again(other) == 200
    assert [(each["event"], each["log_level"]) for each in lines] == [("http_connection_failed", "warning")] * 20
    assert lines[0]["reason"] == "KeyError: 7"
    assert lines[0]["client"].startswith("127.0.0.1:")
    assert "exc_info" not in lines[0]


async def test_garbage_leaves_the_node_alive_and_no_connection_behind() -> None:
    generator = random.Random(7)
    known = [
        LIVE,
        FIGURES,
        WEBSOCKET,
        FIRST,
        request2(),
        request2(b"POST", b"/failover", more=True),
        upgrade("AAMAAABk"),
        upgrade(settings(2, 7)),
        frame(DATA, 1, 1, b"x" * 50),
        frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 1)),
        b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /failover HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{}        ",
        CHUNKED + b"5\r\nabcde\r\n" * 30 + b"0\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000,
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00",
    ]

    async def one(cluster: TwinCluster) -> None:
        data = bytearray(b"".join(generator.choice(known) for _ in range(generator.randint(1, 4))))
        if generator.random() < 0.4:
            del data[generator.randint(0, len(data)) :]
        if data and generator.random() < 0.4:
            for _ in range(3):
                data[generator.randrange(len(data))] = generator.randrange(256)
        stream = await connect(cluster)
        if generator.random() < 0.3:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with stream:
            try:
                with trio.move_on_after(1):
                    await stream.send_all(data)
                with trio.move_on_after(generator.random() * 0.05):
                    await stream.receive_some()
                if generator.random() < 0.3:
                    await stream.send_eof()
            except (trio.BrokenResourceError, OSError):
                pass

    async def several(cluster: TwinCluster) -> None:
        for _ in range(60):
            await one(cluster)

    async with running("a", "b") as cluster:
        assert await lives(cluster)
        before = descriptors()
        with structlog.testing.capture_logs() as lines:
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(several, cluster)
            assert await lives(cluster)
            # Who asks for something else behind a stream of events is not heard until that ends.
            cluster["a"].events.cut_off()
            await wait_for(lambda: descriptors() <= before)
    assert lines == []


async def test_who_goes_away_in_the_middle_of_a_question_is_no_bug() -> None:
    head = b"POST /failover HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    async with running("a") as cluster:
        before = descriptors()
        with structlog.testing.capture_logs() as lines:
            await ask(cluster, head + b"{}", limit_s=0.1)
            await wait_for(lambda: descriptors() <= before)
    assert lines == []


async def test_a_client_that_closes_an_idle_connection_leaves_nothing_behind() -> None:
    async with running("a") as cluster:
        before = descriptors()
        async with await connect(cluster) as stream:
            assert await ask_again(stream) == 200
        await wait_for(lambda: descriptors() <= before, 5)


async def test_a_client_that_has_said_everything_gets_its_answer() -> None:
    async with running("a") as cluster, await connect(cluster) as stream:
        await stream.send_all(LIVE)
        await stream.send_eof()
        answer = b""
        with trio.fail_after(5):
            async for data in stream:
                answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"}")


async def test_a_body_that_no_route_reads_does_not_keep_its_connection() -> None:
    async with running("a", "b") as cluster:
        await ask(cluster, b"GET /cluster HTTP/1.1\r\nHost: a\r\n\r\n")
        before = descriptors()
        answer = await ask(cluster, CHUNKED + b"5\r\nabcde\r\n" * 40, limit_s=2)
        assert answer.startswith(b"HTTP/1.1 200 ")
        await wait_for(lambda: descriptors() <= before, 3)


async def test_a_client_that_reads_nothing_does_not_hold_up_a_stop() -> None:
    async with running("a") as cluster:
        reader = await ask_without_reading(port(cluster["a"].url), FIGURES, trio.sleep)
        with reader, trio.fail_after(3):
            await cluster.stop("a")


async def test_a_client_that_goes_away_without_reading_leaves_nothing_behind() -> None:
    async with running("a") as cluster:
        before = descriptors()
        client = await ask_without_reading(port(cluster["a"].url), FIGURES, trio.sleep)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await wait_for(lambda: descriptors() <= before, 5)


async def test_a_client_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_LIMIT_S", 0.3)
    async with running("a") as cluster:
        before = descriptors()
        with await ask_without_reading(port(cluster["a"].url), FIGURES, trio.sleep):
            # The client's own socket is left.
            await wait_for(lambda: descriptors() <= before + 1)
        assert await lives(cluster)


async def test_a_listener_that_reads_nothing_leaves_its_place_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_LIMIT_S", 0.3)
    async with running("a") as cluster:
        with reads_little(port(cluster["a"].url)) as client:
            client.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            await wait_for(lambda: bool(cluster["a"].events.channels))
            (channel,) = cluster["a"].events.channels
            with trio.fail_after(20):
                while channel.statistics().open_receive_channels:
                    try:
                        channel.send_nowait({"type": "tx", "data": "x" * 1000})
                    except trio.WouldBlock:
                        await trio.sleep(0.01)
                    except trio.BrokenResourceError:
                        break


async def test_a_bug_in_a_route_is_logged_with_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running("a") as cluster:

        def fails() -> Any:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(cluster["a"], "history", fails)
        with structlog.testing.capture_logs() as lines:
            answer = await ask(cluster, b"GET /history HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"ZeroDivisionError: see the node's log" in answer
    (line,) = lines
    assert (line["event"], line["log_level"], line["request"]) == ("http_request_failed", "error", "GET /history")
    assert isinstance(line["exc_info"], ZeroDivisionError)


async def test_a_disk_that_cannot_be_read_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running("a") as cluster:

        def fails() -> Any:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(cluster["a"], "history", fails)
        with structlog.testing.capture_logs() as lines:
            answer = await ask(cluster, b"GET /history HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"check the disk" in answer
    (line,) = lines
    assert (line["event"], line["log_level"], line["request"]) == ("log_unreadable", "warning", "GET /history")


async def test_a_bug_in_the_middle_of_an_answer_is_logged_and_ends_the_answer() -> None:
    async with running("a") as cluster:
        with structlog.testing.capture_logs() as lines:
            async with trio.open_nursery() as nursery:
                asking = partial(ask, cluster, b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n", limit_s=10)
                nursery.start_soon(asking)
                await wait_for(lambda: bool(cluster["a"].events.channels))
                cluster["a"].events.tell({"type": {1, 2}})
        assert await lives(cluster)
    (line,) = lines
    assert (line["event"], line["request"]) == ("http_request_failed", "GET /events")


async def test_a_node_stops_in_time_under_a_client_that_reads_nothing(nodes: Nodes) -> None:
    node = await trio.to_thread.run_sync(nodes.standalone)
    with await ask_without_reading(node.http_port, FIGURES, trio.sleep):
        assert node.get("/readyz")[0] == 200
        await trio.to_thread.run_sync(node.stop, 10)


async def test_a_malformed_request_does_not_end_a_node(nodes: Nodes) -> None:
    node = await trio.to_thread.run_sync(nodes.standalone)
    for parts in MALFORMED.values():
        with socket.create_connection(("127.0.0.1", node.http_port)) as client:
            client.sendall(b"".join(parts))
            await trio.sleep(0.1)
    assert node.get("/readyz")[0] == 200
    assert is_mounted(node.mount)
