"""What reaches the application, and what comes back: every byte, and nothing that belongs to one connection."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.proxy.application import PIECE
from tests.proxy.raw import connected
from tests.proxy.site import Stage
from tests.support.waiting import wait_until

MEBIBYTE = 2**20


def seen(answer: httpx.Response) -> dict[str, Any]:
    """What the application says that it got."""
    found: dict[str, Any] = answer.json()
    return found


def values(document: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in document["headers"] if key.lower() == name.lower()]


TARGETS = [
    "/echo",
    "/echo/a%2Fb",
    "/echo/%zz",
    "/echo/../echo",
    "/echo//x;y=1",
    "/echo?x=%20&y=[]&z='\"",
    "/echo/ü".encode().decode("latin-1"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_path_arrives_as_it_was_sent(stage: Stage, target: str) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"))
        status, _, body = connection.answer()
    with connected(stage.application_port) as connection:
        connection.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"))
        directly = connection.answer()
    assert status == directly[0]
    if status == 200:
        assert json.loads(body)["target"] == json.loads(directly[2])["target"]


def test_an_absolute_form_is_understood(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET http://elsewhere.example/echo/x?y=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, body = connection.answer()
    assert (status, json.loads(body)["target"]) == (200, "/echo/x?y=1")


@pytest.mark.parametrize("target", ["@evil.example/", "x", "*"])
def test_a_target_that_is_no_path_is_refused(stage: Stage, target: str) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.answer()[0] == 400


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_every_method_arrives(stage: Stage, method: str) -> None:
    with stage.client() as client:
        document = seen(client.request(method, "/echo", content=b"body" if method not in {"GET", "OPTIONS"} else None))
    assert document["method"] == method
    assert document["body"] == ("" if method in {"GET", "OPTIONS"} else "body")


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_methods_that_are_not_for_applications_are_refused(stage: Stage, method: str) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(f"{method} /echo HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.answer()[0] in {400, 405}


def test_where_a_request_comes_from_is_told(stage: Stage) -> None:
    with stage.client() as client:
        first = seen(client.get("/echo", headers={"Host": "shop.example"}))
        second = seen(client.get("/echo", headers={"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Proto": "https",
                                                   "X-Forwarded-Host": "shop.example"}))  # fmt: skip
    assert values(first, "Host") == ["shop.example"]
    assert values(first, "X-Forwarded-For") == ["127.0.0.1"]
    assert values(first, "X-Forwarded-Proto") == ["http"]
    assert values(first, "X-Forwarded-Host") == ["shop.example"]
    assert values(second, "X-Forwarded-For") == ["10.1.1.1, 127.0.0.1"]
    assert values(second, "X-Forwarded-Proto") == ["https"]
    assert values(second, "Via") == ["1.1 litereplica"]


def test_headers_of_one_connection_end_there(stage: Stage) -> None:
    with stage.client() as client:
        sent = {"X-Mine": "1", "TE": "trailers", "Cookie": "a=b", "Litereplica-Hops": "x", "Upgrade": "h2c"}
        answer = client.get("/echo", headers={"Connection": "keep-alive, X-Mine, Cookie"} | sent)
    document = seen(answer)
    for name in ("X-Mine", "TE", "Upgrade", "Litereplica-Hops"):
        assert values(document, name) == [], name
    assert values(document, "Cookie") == ["a=b"], "a client cannot have the application's own headers taken away"
    assert "X-Private" not in answer.headers


def test_nothing_is_added_that_the_client_did_not_send(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        names = [name for name, _ in json.loads(connection.answer()[2])["headers"]]
    assert sorted(names) == ["Host", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"]


def test_every_cookie_of_the_application_arrives(stage: Stage) -> None:
    with stage.client() as client:
        assert client.get("/echo").headers.get_list("set-cookie") == ["one=1", "two=2; Path=/"]


def test_an_answer_to_head_has_no_body_and_its_length(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(
            b"HEAD /download?pieces=3&length HTTP/1.1\r\nHost: x\r\n\r\nGET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        status, headers = connection.head()
        assert (status, headers["content-length"]) == (200, str(3 * len(PIECE)))
        assert connection.answer()[0] == 200, "the next answer follows at once"


def test_answers_follow_pipelined_requests_in_order(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"".join(b"GET /echo/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(200)))
        targets = [json.loads(connection.answer()[2])["target"] for _ in range(200)]
    assert targets == [f"/echo/{number}" for number in range(200)]


def test_a_client_of_http_1_0_gets_everything_and_an_end(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET /download?pieces=3 HTTP/1.0\r\n\r\n")
        status, headers = connection.head()
        assert status == 200
        assert "transfer-encoding" not in headers
        assert connection.rest() == 3 * PIECE


# ---------------------------------------------------------------------------------------------------------- smuggling
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: +5",
        b"Content-Length: 5, 5",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"X: y\r\n Transfer-Encoding: chunked",
        b"Transfer-Encoding : chunked",
        b"X: a\x00b",
        b"X Y: z",
    ],
)
def test_a_request_of_two_minds_reaches_nobody(stage: Stage, head: bytes) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(
            b"POST /echo HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n0\r\n\r\nGET /echo/smuggled HTTP/1.1\r\n\r\n"
        )
        status, _ = connection.head()
        assert status == 400
        assert b"smuggled" not in connection.rest()


def test_a_connection_on_which_a_request_was_wrong_ends(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert connection.head()[0] == 400
        connection.rest()


def test_requests_that_are_none_leave_nothing_in_the_log(stage: Stage) -> None:
    before = len(stage.node.log)
    for data in (
        b"nonsense\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ):
        with connected(stage.proxy_port) as connection:
            connection.send(data)
            assert connection.head()[0] == 400
    assert stage.node.log[before:] == ""


@pytest.mark.parametrize("head", [b"X: " + b"a" * 70_000, b"\r\n".join(b"X-%d: 1" % n for n in range(1000))])
def test_headers_have_a_limit(stage: Stage, head: bytes) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET /echo HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        assert connection.head()[0] in {400, 431}


def test_a_large_cookie_is_no_problem(stage: Stage) -> None:
    with stage.client() as client:
        assert values(seen(client.get("/echo", headers={"Cookie": "a=" + "b" * 8000})), "Cookie")[0].endswith("bbb")


# ------------------------------------------------------------------------------------------------------------- bodies
def pieces(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * MEBIBYTE


def expected(count: int) -> str:
    digest = hashlib.sha256()
    for piece in pieces(count):
        digest.update(piece)
    return digest.hexdigest()


class Memory:
    """The largest resident memory that a process had while it was looked at."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.first = self._process.memory_info().rss
        self.most = self.first

    def look(self) -> None:
        self.most = max(self.most, self._process.memory_info().rss)

    @property
    def grown_mib(self) -> float:
        return (self.most - self.first) / MEBIBYTE


@pytest.mark.parametrize("chunked", [True, False])
def test_an_upload_of_200_mb_passes_in_little_memory(stage: Stage, chunked: bool) -> None:
    memory = Memory(stage.proxy_pid())

    def watched() -> Iterator[bytes]:
        for piece in pieces(200):
            memory.look()
            yield piece

    headers = {} if chunked else {"Content-Length": str(200 * MEBIBYTE)}
    with stage.client() as client:
        document = seen(client.post("/upload", content=watched(), headers=headers))
    assert (document["size"], document["sha256"]) == (200 * MEBIBYTE, expected(200))
    assert memory.grown_mib < 16, memory.grown_mib


@pytest.mark.parametrize("query", ["", "&length"])
def test_a_download_of_200_mb_passes_in_little_memory(stage: Stage, query: str) -> None:
    memory = Memory(stage.proxy_pid())
    size = 0
    with stage.client() as client, client.stream("GET", f"/download?pieces=3200{query}") as answer:
        for piece in answer.iter_raw(MEBIBYTE):
            size += len(piece)
            memory.look()
    assert size == 3200 * len(PIECE)
    assert memory.grown_mib < 16, memory.grown_mib


def test_a_client_that_does_not_read_holds_the_application_up_and_not_the_memory(stage: Stage) -> None:
    memory = Memory(stage.proxy_pid())
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET /download?pieces=3200 HTTP/1.1\r\nHost: x\r\n\r\n")
        # The limit for a body that stands still is 1 s here.
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            memory.look()
            time.sleep(0.05)
        assert len(connection.rest()) < 3200 * len(PIECE), "it was cut off, and that is seen"
    assert memory.grown_mib < 16, memory.grown_mib


def test_a_client_that_expects_to_be_told_is_told_when_somebody_takes_its_body(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert connection.head() == (100, {})
        connection.send(b"hello")
        status, _, body = connection.answer()
    assert (status, json.loads(body)["size"]) == (200, 5)


def test_any_other_expectation_is_refused(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET /echo HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n")
        assert connection.answer()[0] == 417


def test_an_answer_before_the_end_of_the_request_arrives(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
        status, _ = connection.head()
    assert status == 413


def test_an_upload_that_is_cut_short_is_cut_short_for_the_application(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
    with stage.client() as client:
        assert client.get("/echo").status_code == 200


def test_events_arrive_as_they_come(stage: Stage) -> None:
    times: list[float] = []
    with stage.client() as client, client.stream("GET", "/events?count=5&pause=0.2") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        times += [time.monotonic() for _ in answer.iter_lines()]
    assert times[-1] - times[0] > 0.6


def test_whoever_goes_is_gone_for_the_application_too(stage: Stage) -> None:
    def gone() -> int:
        return int(client.get("/gone").json()["cancelled"])

    with stage.client() as client:
        before = gone()
        with connected(stage.proxy_port) as connection:
            connection.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\nGET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.head()[0] == 200
        with connected(stage.proxy_port) as connection:
            connection.send(b"POST /slow?seconds=30 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            time.sleep(0.3)
        wait_until(lambda: gone() == before + 2, "the application has noticed")
