"""Whoever answers at another node's URL, and however: an answer in time, or one line that says why not."""

import re

import pytest
import trio

from litereplica.errors import Unavailable
from litereplica.http.peers import Peers

LIMIT_S = 1.0


async def reason(answer: list[bytes], *, every_s: float = 0.0, forever: bool = False) -> str:
    """What is said about something that answers with these pieces."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            try:
                while True:
                    for piece in answer:
                        await stream.send_all(piece)
                        await trio.sleep(every_s)
                    if not forever:
                        return
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(10), pytest.raises(Unavailable) as raised:
            await Peers().ask(f"http://localhost:{port}", "/status", LIMIT_S)
        nursery.cancel_scope.cancel()
    return raised.value.message


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


async def test_garbage_is_no_node() -> None:
    assert "Server disconnected" in await reason([])
    assert re.search("illegal|protocol|invalid", await reason([b"SSH-2.0-OpenSSH\r\n\r\n"]), re.IGNORECASE)
    for body in (b"<html>", b"[]", b"[" * 100_000):
        assert await reason([HEAD, body]) == "it answers, and not as a node does: check the address"


async def test_somebody_who_sends_a_byte_now_and_then_is_given_up() -> None:
    assert await reason([HEAD, b" ", b" ", b" "], every_s=0.4, forever=True) == "no answer within 1 s"


async def test_an_answer_without_end_takes_neither_memory_nor_more_than_its_time() -> None:
    assert await reason([HEAD, b" " * 1_000_000], forever=True) == "no answer within 1 s"


async def test_an_answer_that_is_too_long_is_no_node_s() -> None:
    assert await reason([HEAD, *[b" " * 1_000_000] * 20]) == "its answer is longer than a node's: check the address"


async def test_a_url_that_is_none_is_a_reason_too() -> None:
    for url in ("http://[::1", "nothing", "http://localhost:1"):
        with pytest.raises(Unavailable):
            await Peers().ask(url, "/status", LIMIT_S)
