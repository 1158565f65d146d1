"""``GET /events``: a line for each event, and an end when nobody listens."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.http.twin import LISTENERS, client, running

TX = {"type": "tx", "db": "app.db", "data": {"txID": "0000000000000027", "commit": 2}}


class Listener:
    """A client of its own: httpx's iterators do not like to be left in the middle."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def line(self) -> bytes | None:
        """The next line of head or body, without its end; None at the end of the connection."""
        while b"\n" not in self._buffer:
            with trio.fail_after(10):
                data = await self._stream.receive_some()
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    async def event(self) -> dict[str, Any]:
        """The next event; what stands between them is chunked encoding's, or of the head."""
        while line := await self.line() or b" ":
            if line.startswith(b"{"):
                return dict(json.loads(line))
        raise AssertionError


@asynccontextmanager
async def listening(url: str, query: str = "") -> AsyncIterator[Listener]:
    host, _, port = url.removeprefix("http://").partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"GET /events{query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        yield Listener(stream)


async def wait_for(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.01)


async def test_the_first_line_says_what_the_node_is_and_each_event_is_one_line() -> None:
    async with running("a") as cluster, listening(cluster["a"].url) as listener:
        first = await listener.event()
        cluster["a"].events.tell(TX)
        second = await listener.event()
    assert first == {"type": "init", "data": {"isPrimary": True, "hostname": "a"}}
    assert second == TX


async def test_a_client_that_goes_away_ends_its_stream() -> None:
    async with running("a") as cluster:
        async with listening(cluster["a"].url) as listener:
            await listener.event()
            (channel,) = cluster["a"].events.channels
            assert channel.statistics().open_receive_channels == 1
        await wait_for(lambda: channel.statistics().open_receive_channels == 0)


async def test_a_listener_that_was_cut_off_sees_the_end_after_the_events_before_it() -> None:
    async with running("a") as cluster, client() as asking, trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def listen() -> None:
            answers.append(await asking.get(cluster["a"].url + "/events"))

        nursery.start_soon(listen)
        await wait_for(lambda: bool(cluster["a"].events.channels))
        for _ in range(600):
            cluster["a"].events.tell(TX)
        cluster["a"].events.cut_off()
        await wait_for(lambda: bool(answers))
    assert answers[0].headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["type"] for line in answers[0].text.splitlines()] == ["init"] + ["tx"] * 600


async def test_too_many_listeners_are_503() -> None:
    async with running("a") as cluster, client() as asking, AsyncExitStack() as listeners:
        for _ in range(LISTENERS):
            await (await listeners.enter_async_context(listening(cluster["a"].url))).event()
        answer = await asking.get(cluster["a"].url + "/events")
    assert (answer.status_code, answer.json()["error"]) == (503, "busy")


@pytest.mark.parametrize(("query", "transactions"), [("", True), ("?tx=1", True), ("?tx=0", False)])
async def test_transactions_are_left_out_for_who_does_not_want_them(query: str, transactions: bool) -> None:
    async with running("a") as cluster, listening(cluster["a"].url, query) as listener:
        assert (await listener.event())["type"] == "init"
        assert cluster["a"].events.asked_for_transactions == [transactions]


async def test_a_wish_that_is_none_is_refused() -> None:
    async with running("a") as cluster, client() as asking:
        answer = await asking.get(cluster["a"].url + "/events?tx=no")
    assert (answer.status_code, answer.json()["error"]) == (400, "bad_request")


async def test_head_is_answered_without_listening() -> None:
    async with running("a") as cluster, client() as asking:
        answer = await asking.head(cluster["a"].url + "/events")
        assert cluster["a"].events.channels == []
    assert answer.status_code == 200
