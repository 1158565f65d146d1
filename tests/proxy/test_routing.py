"""Which node a request goes to, and what its client sees afterwards."""

import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import httpx
import psutil
import pytest

from tests.proxy.site import DATABASE, Site, Stage
from tests.support.nodes import Nodes
from tests.support.waiting import wait_until

# Less than proxy.wait has by default.
HELD_UP_S: Final = 4.5

Pair = tuple[Stage, Stage]

COOKIE = re.compile(r"litereplica=app\.db=([0-9a-f]{16}/[0-9a-f]{16}); Path=/; Max-Age=86400; HttpOnly; SameSite=Lax")


@contextmanager
def not_applying(stage: Stage) -> Iterator[None]:
    """This replica gets everything and applies nothing."""
    pid = stage.node.applier()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def site_of_its_own() -> Iterator[Site]:
    nodes = Nodes()
    made = Site(nodes)
    try:
        yield made
    finally:
        made.print_logs()
        made.tear_down()
        problems = nodes.tear_down()
    assert not problems, problems


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    """A primary and its replica as they are when nothing else is said; a test leaves them well."""
    with site_of_its_own() as made:
        yield made.pair()


@pytest.fixture
def pair(shared: Pair) -> Pair:
    """The same, without a database."""
    for suffix in ("", "-wal", "-shm"):
        (shared[0].node.path(f"{DATABASE}{suffix}")).unlink(missing_ok=True)
    wait_until(lambda: not shared[1].node.path(DATABASE).exists(), "the replica has none")
    return shared


@pytest.fixture(scope="module")
def ruled() -> Iterator[Pair]:
    """Pairs whose settings do not meet, as one."""
    with site_of_its_own() as made:
        yield made.pair(
            rules={
                "passthrough": ["/echo/here*", "*.css"],
                "always_forward": ["/echo/there*", "/socket*", "/download", "/events"],
                "read_only": ["/echo/find*"],
            },
            databases=[DATABASE, "dir/other db.sqlite"],
            timeouts={"primary": "500ms"},
        )


def another(site: Site, primary: Stage, **settings: Any) -> Stage:
    """A replica ``c`` with settings of its own, until the test ends."""
    return site.start(site.nodes.make_replica(primary.node, "c"), **settings)


def cookie(txid: int, checksum: int = 1) -> dict[str, str]:
    return {"Cookie": f"litereplica=app.db={txid:016x}/{checksum:016x}"}


def waits_that_reached(client: httpx.Client) -> float:
    metrics = client.get("/litereplica/health/metrics").text
    found = re.search(r'^litereplica_proxy_waits_total\{outcome="reached"\} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def rows(answer: httpx.Response) -> tuple[str, list[str]]:
    document = answer.json()
    return document["node"], document["rows"]


# -------------------------------------------------------------------------------------------------------------- reads
def test_whoever_wrote_reads_it_back_on_any_node_at_once(pair: Pair) -> None:
    a, b = pair
    with a.client() as on_a, b.client() as on_b:
        written = []
        for number in range(40):
            source, target = (on_a, on_b) if number % 2 else (on_b, on_a)
            answer = source.post("/rows", content=f"{number}")
            written.append(f"{number}")
            assert answer.status_code == 201
            assert answer.json()["node"] == "a", "all writes go to the primary"
            assert answer.headers["Litereplica-Node"] == "a"
            match = COOKIE.fullmatch(answer.headers["Set-Cookie"])
            assert match
            assert match[1] == a.node.position(DATABASE)
            for client, name in ((source, None), (target, None)):
                client.cookies.set("litereplica", answer.headers["Set-Cookie"].partition("=")[2].partition(";")[0])
                node, found = rows(client.get("/rows"))
                assert found == written, (name, node)
        assert {rows(on_a.get("/rows"))[0], rows(on_b.get("/rows"))[0]} == {"a", "b"}, "reads are local"
        assert "Set-Cookie" not in on_b.get("/rows").headers


def test_a_read_waits_until_its_node_has_what_the_client_wrote(pair: Pair) -> None:
    _, b = pair
    with b.client() as client:
        client.post("/rows", content="first")
        client.get("/rows")
        before = waits_that_reached(client)
        with not_applying(b):
            client.post("/rows", content="second")
            begin = time.monotonic()
            threading.Timer(1.0, os.kill, (b.node.applier(), signal.SIGCONT)).start()
            answer = client.get("/rows")
        assert rows(answer) == ("b", ["first", "second"])
        assert time.monotonic() - begin > 0.5
        assert "Litereplica-Behind" not in answer.headers
        assert waits_that_reached(client) > before


@pytest.mark.parametrize("behind", ["serve", "refuse"])
def test_a_node_that_does_not_get_there_serves_what_it_has_or_refuses(pair: Pair, site: Site, behind: str) -> None:
    c = another(site, pair[0], behind=behind, wait="800ms")
    with c.client() as client:
        client.post("/rows", content="first")
        client.get("/rows")
        with not_applying(c):
            client.post("/rows", content="second")
            begin = time.monotonic()
            answer = client.get("/rows")
            assert 0.7 < time.monotonic() - begin < 15
            if behind == "serve":
                assert rows(answer) == ("c", ["first"])
                assert answer.headers["Litereplica-Behind"] == "app.db"
            else:
                assert (answer.status_code, answer.json()["error"]) == (503, "behind")
                assert answer.headers["Retry-After"] == "1"
            assert client.get("/rows", headers={"Cookie": ""}).status_code == 200, "nobody else is held up"


@pytest.mark.parametrize("on", ["primary", "replica"])
def test_a_client_with_transactions_that_were_lost_is_told_and_moved_on(pair: Pair, on: str) -> None:
    a, b = pair
    stage = a if on == "primary" else b
    with stage.client() as client:
        client.post("/rows", content="first")
        client.get("/rows")
        client.cookies.clear()
        position = a.node.position(DATABASE)
        newest = int(position[:16], 16)
        # Of another history: at a TXID that is here, and at one that the primary has not reached.
        for txid in (newest, newest + 1000):
            begin = time.monotonic()
            answer = client.get("/rows", headers=cookie(txid))
            assert time.monotonic() - begin < HELD_UP_S
            assert rows(answer) == (stage.name, ["first"])
            assert answer.headers["Litereplica-Other-History"] == "app.db"
            match = COOKIE.fullmatch(answer.headers["Set-Cookie"])
            assert match
            assert match[1] == position
            # The client has it now, and is told nothing any more.
            again = client.get("/rows")
            assert "Litereplica-Other-History" not in again.headers
            client.cookies.clear()


def test_a_read_of_a_file_is_not_held_up(ruled: Pair) -> None:
    _, b = ruled
    with b.client() as client:
        begin = time.monotonic()
        answer = client.get("/echo/x.css", headers=cookie(10**6))
        assert answer.status_code == 200
        assert "Set-Cookie" not in answer.headers or "litereplica" not in answer.headers["Set-Cookie"]
        assert time.monotonic() - begin < HELD_UP_S


# ------------------------------------------------------------------------------------------------------------- writes
def test_rules_send_requests_elsewhere_than_their_method_says(ruled: Pair) -> None:
    _, b = ruled
    with b.client() as client:
        assert client.get("/echo/there").json()["node"] == "a"
        assert client.post("/echo/here", content=b"x").json()["node"] == "b"
        assert client.post("/echo/find", content=b"x").json()["node"] == "b"
        assert client.post("/echo/else", content=b"x").json()["node"] == "a"


def test_a_large_body_and_a_stream_pass_both_proxies(ruled: Pair) -> None:
    _, b = ruled
    with b.client() as client:
        answer = client.post("/upload", content=(bytes(2**20) for _ in range(50)))
        assert (answer.json()["node"], answer.json()["size"]) == ("a", 50 * 2**20)
        assert len(client.get("/download?pieces=300").content) == 300 * 65536
        with client.stream("GET", "/events?count=4&pause=0.2") as stream:
            times = [time.monotonic() for _ in stream.iter_lines()]
        assert times[-1] - times[0] > 0.4


def test_a_redirect_names_the_primary_and_keeps_the_path(site: Site) -> None:
    a, b = site.pair(writes="redirect")
    with b.client() as client:
        answer = client.post("/rows?x=%20", content="one")
        assert answer.status_code == 307
        assert answer.headers["Location"] == f"{a.url}/rows?x=%20"
        followed = client.post("/rows", content="one", follow_redirects=True)
        assert followed.json()["node"] == "a"
    with a.client() as client:
        assert client.post("/rows", content="two").status_code == 201


def test_fly_is_asked_to_replay_on_the_primary(site: Site) -> None:
    a, b = site.pair(writes="fly-replay")
    with b.client() as client:
        answer = client.post("/rows", content="one")
        assert (answer.status_code, answer.headers["Fly-Replay"]) == (409, "instance=a")
    with a.client() as client:
        assert client.post("/rows", content="two").status_code == 201


def test_writes_may_stay_with_the_application_here(shared: Pair, site: Site) -> None:
    c = another(site, shared[0], writes="local")
    with c.client() as client:
        assert client.post("/echo", content=b"x").json()["node"] == "c"


def test_a_write_waits_for_a_primary_and_says_in_time_that_there_is_none(site: Site) -> None:
    a, b = site.pair(timeouts={"primary": "1s"})
    os.kill(a.proxy_pid(), signal.SIGKILL)
    a.node.kill()
    with b.client() as client:
        begin = time.monotonic()
        answer = client.post("/rows", content="x")
        assert answer.status_code == 503
        assert answer.json()["error"] == "no_primary"
        assert answer.json()["outcome"] == "not_done"
        assert answer.headers["Retry-After"] == "1"
        assert 0.8 < time.monotonic() - begin < 15
        assert client.get("/echo").json()["node"] == "b"


def test_a_request_that_was_not_sent_waits_for_the_primarys_proxy_to_come_back(pair: Pair) -> None:
    a, b = pair
    with b.client() as client:
        client.post("/rows", content="one")
        pid = a.proxy_pid()
        os.kill(pid, signal.SIGKILL)
        # A request on a connection that breaks just then may have been sent: there must be none.
        other = psutil.Process(b.proxy_pid())
        wait_until(
            lambda: not [each for each in other.net_connections() if a.proxy_port in each.raddr[1:]],
            "no connection is left",
            5,
        )
        # Its socket is open all the while: the node holds it.
        assert client.post("/rows", content="two").status_code == 201
        assert rows(client.get("/rows")) == ("b", ["one", "two"])


def test_requests_that_go_in_a_circle_end(ruled: Pair) -> None:
    a, b = ruled
    with b.client() as client:
        answer = client.post("/rows", content="x", headers={"Litereplica-Hops": "a, c"})
        assert (answer.status_code, answer.json()["error"]) == (508, "circle")
        assert "a" in answer.json()["message"]
        many = ", ".join(f"n{number}" for number in range(8))
        assert client.post("/rows", content="x", headers={"Litereplica-Hops": many}).status_code == 508
    with a.client() as client:
        assert client.post("/rows", content="x", headers={"Litereplica-Hops": "b"}).status_code == 201


def test_a_primary_without_a_proxy_is_named_with_what_to_do(site: Site) -> None:
    a = site.nodes.primary()
    b = site.start(site.nodes.make_replica(a), timeouts={"primary": "500ms"})
    with b.client() as client:
        answer = client.post("/rows", content="x")
        assert answer.status_code == 503
        assert "proxy.advertise" in answer.json()["message"]


def test_a_new_database_is_waited_for(pair: Pair) -> None:
    _, b = pair
    with b.client() as client:
        assert client.post("/rows", content="one").status_code == 201
        assert rows(client.get("/rows")) == ("b", ["one"])


def test_a_cookie_covers_every_named_database(ruled: Pair) -> None:
    a, _ = ruled
    with a.client() as client:
        client.post("/rows", content="one")
        (a.node.mount / "dir").mkdir()
        with closing(sqlite3.connect(a.node.mount / "dir" / "other db.sqlite")) as connection:
            connection.execute("CREATE TABLE t (x)")
        value = client.post("/rows", content="two").headers["Set-Cookie"]
    assert re.match(r"litereplica=app\.db=[0-9a-f/]{33}&dir%2Fother%20db\.sqlite=[0-9a-f/]{33}; ", value), value


def test_the_proxy_goes_on_when_its_node_is_started_again(pair: Pair) -> None:
    _, b = pair
    with b.client() as client:
        client.post("/rows", content="one")
        b.node.stop()
        b.node.start()
        b.wait_ready()
        assert rows(client.get("/rows")) == ("b", ["one"])
        answer = client.post("/rows", content="two")
        assert COOKIE.fullmatch(answer.headers["Set-Cookie"])
        wait_until(lambda: rows(client.get("/rows"))[1] == ["one", "two"], "both rows")
