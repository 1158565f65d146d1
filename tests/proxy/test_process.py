"""The proxy as a process: alone, supervised, stopped, killed, and with a wrong configuration."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from litereplica.config import Settings, load_settings
from litereplica.node.proxy_child import STOP_ALLOWANCE_S, ProxyChild, _told
from tests.proxy.raw import connected
from tests.proxy.site import DATABASE, Process, Site, Stage, listens
from tests.support.nodes import ROOT, Nodes, free_ports
from tests.support.waiting import wait_until


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LITEREPLICA")}
    return subprocess.run(
        [sys.executable, "-m", "litereplica", "-c", str(config), *arguments],
        capture_output=True, text=True, timeout=30, check=False, env=ours | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@contextlib.contextmanager
def of_its_own(stage: Stage, folder: Path) -> Iterator[tuple[Process, str]]:
    """Another proxy of the same node, and its URL."""
    port = free_ports(1)[0]
    document = json.loads(stage.node.config.read_text())
    document["proxy"]["listen"] = f"127.0.0.1:{port}"
    config = folder / "proxy.yml"
    config.write_text(json.dumps(document))
    proxy = Process(folder, "proxy", [sys.executable, "-m", "litereplica", "-c", str(config), "proxy"]).start()
    try:
        wait_until(lambda: listens(port), "the proxy listens", 20)
        yield proxy, f"http://127.0.0.1:{port}"
    finally:
        proxy.kill()


def test_a_proxy_of_its_own_needs_no_supervision(site: Site, tmp_path: Path) -> None:
    with of_its_own(site.standalone(), tmp_path) as (proxy, url):
        answer = httpx.post(f"{url}/rows", content="x", timeout=20, trust_env=False)
        assert answer.status_code == 201
        assert "litereplica=app.db=" in answer.headers["Set-Cookie"]
        assert proxy.terminate() == 0
        assert "proxy_stopping" in proxy.log


def test_a_proxy_of_its_own_ends_while_its_node_stands_still(site: Site, tmp_path: Path) -> None:
    stage = site.standalone(timeouts={"stop": "1s"})
    with of_its_own(stage, tmp_path) as (proxy, url):
        assert "Set-Cookie" in httpx.post(f"{url}/rows", content="x", timeout=20, trust_env=False).headers
        stage.node.signal(signal.SIGSTOP)
        try:
            answer = httpx.post(f"{url}/echo", content="x", timeout=20, trust_env=False)
            assert answer.headers["Litereplica-Behind"] == DATABASE, "where it is cannot be read"
            assert proxy.terminate(1 + STOP_ALLOWANCE_S) == 0
        finally:
            stage.node.signal(signal.SIGCONT)


def test_a_proxy_that_is_killed_is_started_again_and_no_connection_is_refused(site: Site) -> None:
    stage = site.standalone()
    pid = stage.proxy_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in stage.node.children(), "it is gone")
    with stage.client() as client:
        assert client.post("/rows", content="x").status_code == 201, "it waits in the socket's queue"
    assert stage.proxy_pid() != pid
    assert stage.node.log_lines("proxy_ended")


def test_a_proxy_ends_with_its_node_however_that_ends(site: Site) -> None:
    stage = site.standalone()
    stage.node.kill()
    wait_until(lambda: not listens(stage.proxy_port), "nobody listens")


def test_a_stop_finishes_what_is_under_way(site: Site) -> None:
    stage = site.standalone(timeouts={"stop": "5s"})
    answers: list[httpx.Response] = []

    def ask() -> None:
        with stage.client() as client:
            answers.append(client.post("/slow?seconds=1.5", content=b"x"))

    asking = threading.Thread(target=ask)
    asking.start()
    with connected(stage.proxy_port) as idle:
        idle.send(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.answer()[0] == 200
        time.sleep(0.5)
        begin = time.monotonic()
        stage.node.stop()
        assert idle.is_closed()
    asking.join(10)
    assert [each.text for each in answers] == ["done"]
    assert time.monotonic() - begin < 15


def test_a_stop_does_not_wait_for_ever(site: Site) -> None:
    stage = site.standalone()
    with connected(stage.proxy_port) as connection:
        connection.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.head()[0] == 200
        stage.node.stop()


def test_health_is_for_load_balancers_and_metrics_for_prometheus(site: Site) -> None:
    stage = site.standalone()
    with stage.client() as client:
        answer = client.get("/litereplica/health")
        assert answer.status_code == 200
        document = answer.json()
        assert (document["ready"], document["node"], document["role"]) == (True, "a", "primary")
        assert client.head("/litereplica/health").status_code == 200
        assert client.post("/litereplica/health").status_code == 405
        client.post("/rows", content="x")
        text = client.get("/litereplica/health/metrics").text
        assert 'litereplica_proxy_requests_total{kind="write",to="here"} 1.0' in text
        stage.application.kill()
        wait_until(lambda: client.get("/litereplica/health").status_code == 503, "it is seen")
        assert client.get("/litereplica/health").json()["application_answers"] is False


def test_health_may_have_another_path_or_none(site: Site) -> None:
    stage = site.standalone(health="/echo/well")
    with stage.client() as client:
        assert client.get("/echo/well").json()["ready"] is True
        assert client.get("/litereplica/health").status_code == 404, "that is the application's now"


def test_a_port_that_is_taken_is_named(site: Site, nodes: Nodes) -> None:
    stage = site.standalone()
    other = nodes.make("other")
    other.configure(proxy=stage.settings)
    other.start(wait=False)
    assert other.wait_ended() == 1
    assert "set proxy.listen to another address" in other.log


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"target": "http://127.0.0.1:1"}, "'proxy.databases' is missing"),
        ({"databases": ["/app.db"]}, "expected a path below the mount"),
        ({"databases": ["a", "a"]}, "names a database twice"),
        ({"databases": [f"database-{n}.db" for n in range(200)]}, "makes a cookie of"),
        ({"databases": ["a"], "rules": {"read_only": ["x"]}}, "'proxy.rules.read_only': expected a path"),
        ({"databases": ["a"], "rules": {"passthrough": ["~("]}}, "'proxy.rules.passthrough': expected a regular"),
        ({"databases": ["a"], "rules": {"pass_through": ["/x"]}}, "did you mean 'proxy.rules.passthrough'?"),
        ({"databases": ["a"], "writes": "forwards"}, "expected forward, redirect, fly-replay or local"),
        ({"databases": ["a"], "target": "http://u:p@127.0.0.1:1"}, "must not hold a user"),
        ({"databases": ["a"], "target": "http://127.0.0.1:20299"}, "is the proxy itself"),
        ({"databases": ["a"], "cookie": "a b"}, "'proxy.cookie' must be a word"),
        ({"databases": ["a"], "health": "x"}, "'proxy.health' must be a path"),
        ({"databases": ["a"], "wait": "2m"}, "'proxy.wait' must be at most 1m"),
        ({"databases": ["a"], "timeouts": {"idle": "0"}}, "'proxy.timeouts.idle' must be more than 0"),
        ({"databases": ["a"], "listen": "127.0.0.1:20202"}, "must have different ports, both have 20202"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, section: dict[str, Any], complaint: str) -> None:
    config = tmp_path / "f.yml"
    config.write_text(json.dumps({"proxy": {"listen": "127.0.0.1:20299"} | section}, indent=1))
    done = run(config, "config", "check", str(config))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert f"{config}:" in done.stderr


def test_the_primary_of_a_cluster_needs_an_address_for_the_others(tmp_path: Path) -> None:
    config = tmp_path / "f.yml"
    at = {"name": "a", "http": "http://10.0.0.1:20202", "replication": "10.0.0.1:20203"}
    document: dict[str, Any] = {
        "node": {"name": "a"},
        "replication": {"listen": "10.0.0.1:20203"},
        "lease": {"type": "static", "static": {"primary": at}},
        "proxy": {"listen": "0.0.0.0:8080", "databases": [DATABASE]},
    }
    config.write_text(json.dumps(document))
    assert "'proxy.advertise'" in run(config, "config", "check", str(config)).stderr
    document["proxy"]["advertise"] = "http://10.0.0.1:8080"
    config.write_text(json.dumps(document))
    assert run(config, "config", "check", str(config)).returncode == 0
    document["proxy"].pop("advertise")
    document["node"]["name"] = "b"
    config.write_text(json.dumps(document))
    assert run(config, "config", "check", str(config)).returncode == 0, "nobody sends writes to a replica"


@pytest.mark.parametrize(
    "sections",
    [
        {"mount": {"dir": "/var/lib/litereplica/mnt"}, "data": {"dir": "/srv/${data}"}},
        {"proxy": {"listen": "0.0.0.0:20203"}},
    ],
)
def test_what_the_node_accepts_its_proxy_accepts(tmp_path: Path, sections: dict[str, dict[str, str]]) -> None:
    """One that ends at once is started for ever, while the node holds its socket and clients hang."""
    document: dict[str, Any] = {
        "http": {"advertise": "http://10.0.0.1:20202"},
        "replication": {"listen": "0.0.0.0:20400", "advertise": "10.0.0.1:20400"},
        "lease": {"type": "consul", "consul": {"token": "a-secret"}},
        "proxy": {"listen": "0.0.0.0:8080", "advertise": "http://10.0.0.1:8080", "databases": [DATABASE]},
    }
    for name, values in sections.items():
        document[name] = document.get(name, {}) | values
    config = tmp_path / "f.yml"
    config.write_text(json.dumps(document).replace("${", "$${"))
    settings = load_settings(config, {})
    with _told(settings) as told:
        text = Path(f"/dev/fd/{told}").read_text(encoding="utf-8")
        found = load_settings(Path(f"/dev/fd/{told}"), {})
    assert (found.proxy, found.mount, found.http) == (settings.proxy, settings.mount, settings.http)
    assert "a-secret" not in text


def test_without_a_section_there_is_no_proxy(tmp_path: Path) -> None:
    config = tmp_path / "f.yml"
    config.write_text("log: {level: info}\n")
    done = run(config, "proxy")
    assert done.returncode == 2
    assert "set proxy.listen" in done.stderr


def test_a_node_does_not_load_the_proxys_library() -> None:
    code = "import sys, litereplica.node.main, litereplica.cli.run; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30, cwd=ROOT).returncode == 0


async def test_a_proxy_that_cannot_be_started_for_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    tried = 0

    def refused(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refused)
    with socket.socket() as listener, trio.move_on_after(60) as scope:
        await ProxyChild(Settings(), listener).run()
    assert scope.cancelled_caught
    assert 5 < tried < 20, "it waits longer each time"
