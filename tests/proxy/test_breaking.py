"""Connections that break and steps that take too long: what the client is told."""

import threading
import time

import httpx
import pytest

from tests.proxy.raw import connected
from tests.proxy.site import Site, Stage
from tests.support.nodes import free_ports


def test_a_request_that_was_lost_after_it_was_sent_is_not_repeated_and_said_to_be_unknown(stage: Stage) -> None:
    with stage.client() as client:
        for method in ("POST", "PUT", "DELETE"):
            answer = client.request(method, "/break?when=before", content=b"body" if method != "DELETE" else None)
            assert answer.status_code == 502
            document = answer.json()
            assert (document["error"], document["outcome"], document["sent"]) == ("connection_lost", "unknown", "all")


@pytest.mark.parametrize("warm", [True, False])
def test_a_get_that_is_a_write_is_not_repeated_either(stage: Stage, warm: bool) -> None:
    path = f"/break/write/{warm}"
    with stage.client() as client:
        if warm:
            client.get("/echo")  # leaves a connection to the application
        answer = client.get(f"{path}?when=before")
        assert answer.status_code == 502
        document = answer.json()
        assert (document["error"], document["outcome"], document["sent"]) == ("connection_lost", "unknown", "all")
        assert client.get("/gone").json()["broken"][path] == 1


def test_a_handshake_that_is_a_write_is_not_repeated_either(stage: Stage) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    with stage.client() as client:
        answer = client.get("/break/write/socket?when=before", headers=headers)
        assert answer.status_code == 502
        document = answer.json()
        assert (document["error"], document["outcome"], document["sent"]) == ("connection_lost", "unknown", "all")
        assert client.get("/gone").json()["broken"]["/break/write/socket"] == 1


@pytest.mark.parametrize("path", ["/break/read", "/break/read.css"])
def test_a_read_on_a_connection_that_was_just_closed_is_asked_again(stage: Stage, path: str) -> None:
    with stage.client() as client:
        client.get("/echo")
        answer = client.get(f"{path}?when=before&times=1")
        assert (answer.status_code, answer.text) == (200, "well")
        answer = client.get(f"{path}/for/good?when=before")
        assert (answer.status_code, answer.json()["error"], answer.json()["outcome"]) == (
            502,
            "connection_lost",
            "unknown",
        )


def test_a_get_that_is_a_write_goes_to_one_primary_only_though_that_dies(site: Site) -> None:
    """Its node ends in the middle, and nobody listens there any more: that it has not arrived does not follow."""
    a, b = site.pair(rules={"always_forward": ["/slow"]}, timeouts={"primary": "1s", "stop": "1s"})
    answers = []

    def ask() -> None:
        with b.client() as client:
            answers.append(client.get("/slow?seconds=60"))

    with b.client() as client:
        assert client.post("/rows", content="x").status_code == 201  # leaves a connection to the proxy of a
    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    a.node.kill()
    asking.join(30)
    document = answers[0].json()
    assert (answers[0].status_code, document["error"], document["outcome"]) == (502, "connection_lost", "unknown")


@pytest.mark.parametrize("query", ["", "&length"])
def test_an_answer_that_broke_does_not_look_whole(stage: Stage, query: str) -> None:
    with stage.client() as client, pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        client.get(f"/break?when=inside{query}")


def test_an_application_that_does_not_answer_ends_in_a_timeout(stage: Stage) -> None:
    begin = time.monotonic()
    with stage.client() as client:
        answer = client.post("/slow?seconds=30", content=b"x")
    assert answer.status_code == 504
    assert answer.json()["outcome"] == "unknown"
    assert 1.5 < time.monotonic() - begin < 20


def test_time_counts_from_the_end_of_the_request(stage: Stage) -> None:
    def slowly() -> object:
        for _ in range(5):
            time.sleep(0.5)
            yield b"x"

    with stage.client() as client:
        assert client.post("/upload", content=slowly()).json()["size"] == 5  # type: ignore[arg-type]


def test_a_client_that_stops_in_the_middle_of_its_request_is_told(stage: Stage) -> None:
    with connected(stage.proxy_port) as connection:
        connection.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        status, _, body = connection.answer()
    assert status == 408
    assert b"client_too_slow" in body


def test_an_answer_that_stands_still_is_cut(stage: Stage) -> None:
    begin = time.monotonic()
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET /events?pause=20 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.head()[0] == 200
        rest = connection.rest()
    assert not rest.endswith(b"0\r\n\r\n")
    assert time.monotonic() - begin < 15


def test_an_application_that_is_away_is_named(site: Site) -> None:
    stage = site.standalone()
    stage.application.kill()
    with stage.client() as client:
        for method in ("GET", "POST"):
            answer = client.request(method, "/rows")
            assert answer.status_code == 502
            assert answer.json()["error"] == "no_application"
            assert answer.json()["outcome"] == "not_done"
            assert f"127.0.0.1:{stage.application_port}" in answer.json()["message"]
        stage.start_application()
        assert client.get("/rows").status_code == 200


def test_an_address_that_swallows_everything_ends_in_time(site: Site) -> None:
    import socket

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fill = [socket.socket() for _ in range(4)]
        for each in fill:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        node = site.nodes.make()
        proxy_port = free_ports(1)[0]
        node.configure(
            proxy={
                "listen": f"127.0.0.1:{proxy_port}",
                "target": f"http://127.0.0.1:{port}",
                "databases": ["app.db"],
                "timeouts": {"connect": "500ms", "response": "1s", "stop": "1s"},
            }
        )
        node.start()
        answer = httpx.post(f"http://127.0.0.1:{proxy_port}/x", timeout=20, trust_env=False)
        assert answer.status_code == 502
        for each in fill:
            each.close()
