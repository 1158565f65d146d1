"""WebSockets through a proxy."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.proxy.raw import connected
from tests.proxy.site import Site, Stage
from tests.support.waiting import wait_until


def talk(
    stage: Stage, what: Callable[[aiohttp.ClientWebSocketResponse], Awaitable[None]], protocols: tuple[str, ...] = ()
) -> None:
    """Run a client's side of a conversation."""

    async def run() -> None:
        async with (
            asyncio.timeout(20),
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{stage.url}/socket", max_msg_size=2**25, protocols=protocols) as socket,
        ):
            await what(socket)

    asyncio.run(run())


def test_messages_of_both_kinds_pass_both_ways(stage: Stage) -> None:
    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        assert json.loads(await socket.receive_str()) == {"node": "a", "protocol": None}
        for number in range(200):
            await socket.send_str(f"hello {number} ü")
            assert await socket.receive_str() == f"a: hello {number} ü"
        for size in (0, 1, 125, 126, 65535, 65536, 3_000_000):
            await socket.send_bytes(bytes(size))
            assert len(await socket.receive_bytes()) == size

    talk(stage, what)


def test_the_application_chooses_the_protocol(stage: Stage) -> None:
    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        assert socket.protocol == "chat"
        assert json.loads(await socket.receive_str())["protocol"] == "chat"

    talk(stage, what, protocols=("other", "chat"))


def test_a_close_arrives_with_its_code_and_reason(stage: Stage) -> None:
    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_str()
        await socket.send_str("close")
        message = await socket.receive()
        assert message.type is WSMsgType.CLOSE
        assert (message.data, message.extra) == (4001, "as asked")

    talk(stage, what)


def test_a_handshake_that_the_application_refuses_is_refused(stage: Stage) -> None:
    async def run() -> aiohttp.WSServerHandshakeError:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"{stage.url}/socket?refuse")
            return caught.value

    error = asyncio.run(run())
    assert error.status == 403
    assert error.headers is not None
    assert error.headers["X-Why"] == "because"


def test_a_message_that_is_too_large_ends_the_conversation(stage: Stage) -> None:
    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_str()
        # Who is still sending when the other end closes sees a reset.
        with contextlib.suppress(ConnectionError):
            await socket.send_bytes(bytes(17 * 2**20))
            message = await socket.receive()
            assert message.type in {WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR}
            assert socket.close_code in {1009, 1006}

    talk(stage, what)
    with stage.client() as client:
        assert client.get("/echo").status_code == 200


def test_a_silent_socket_lives_longer_than_any_limit_for_bodies(stage: Stage) -> None:
    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_str()
        await asyncio.sleep(2.5)
        await socket.send_str("still here")
        assert await socket.receive_str() == "a: still here"

    talk(stage, what)


def test_a_socket_of_an_application_that_dies_ends(site: Site) -> None:
    stage = site.standalone()

    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_str()
        stage.application.kill()
        message = await socket.receive(timeout=10)
        assert message.type in {WSMsgType.CLOSE, WSMsgType.CLOSED}
        assert socket.close_code != 1000

    talk(stage, what)


@pytest.mark.parametrize("how", ["abort", "end"])
def test_a_code_that_says_that_there_was_none_is_never_sent(stage: Stage, how: str) -> None:
    """The application's end breaks without a word: RFC 6455, 7.4.1 has 1006 for that, and not on the wire."""
    key = "AAAAAAAAAAAAAAAAAAAAAA=="
    with connected(stage.proxy_port) as connection:
        connection.send(
            "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert connection.head()[0] == 101
        first = connection.stream.read(2)
        connection.stream.read(first[1])
        connection.send(bytes([0x81, 0x80 | len(how), 0, 0, 0, 0]) + how.encode())  # masked with zeros
        kind, _ = connection.stream.read(2)
        code = int.from_bytes(connection.stream.read(2), "big")
    assert (kind & 0x0F, code) == (8, 1011)


def test_an_application_whose_client_breaks_off_is_told_that_it_did_not_end_well(stage: Stage) -> None:
    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_str()
        socket._response.connection.transport.abort()  # type: ignore[union-attr]

    with stage.client() as client:
        before = len(client.get("/gone").json()["closed"])
        talk(stage, what)
        closed = wait_until(lambda: client.get("/gone").json()["closed"][before:], "the application was told")
    assert closed in ([1001], [1011])


def test_a_client_that_goes_without_a_word_is_gone_for_the_application(stage: Stage) -> None:
    async def what(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_str()
        transport = socket.get_extra_info("socket")
        assert transport is not None
        socket._response.connection.transport.abort()  # type: ignore[union-attr]

    talk(stage, what)
    with stage.client() as client:
        wait_until(lambda: _under_way(client.get("/litereplica/health/metrics").text) == 1, "it is gone")


def _under_way(text: str) -> int:
    line = next(each for each in text.splitlines() if each.startswith("litereplica_proxy_under_way "))
    return int(float(line.split()[1]))
