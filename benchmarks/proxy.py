"""What does the HTTP proxy add to a request, and how many requests does it let through.

A web application on a primary and on a replica, each behind its proxy; the client asks the application itself and then
the proxy, in turns, one connection for the time of a request and many for the throughput. All of it shares the
machine's cores: the proxy's work is taken from the application's, which two machines would not do.
"""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.figures import Answer, Figure, Goal
from benchmarks.harness.node import Node, new_node
from benchmarks.harness.processes import REPOSITORY, daemon, tree_of, wait_until
from benchmarks.harness.procfs import memory_of
from benchmarks.harness.question import Effort, Question
from benchmarks.harness.relay import free_port
from benchmarks.harness.systems import Lab

DATABASE = "benchmark-proxy.db"
MANY = 32
ADDED_LIMIT_MS = 1.0
START_LIMIT_S = 20.0
LOAD_SLACK_S = 60.0

BARE = "application"
PROXY = "proxy"
READ = "GET on the primary"
READ_BEHIND = "GET on a replica, with a cookie"
WRITE = "POST on the primary"
FORWARDED = "POST on a replica, forwarded"


@dataclass(frozen=True, slots=True)
class Stage:
    """A node whose application listens at one port and its proxy at another."""

    node: Node
    application: int
    proxy: int


def proxy_of(node_pid: int) -> int:
    """The proxy that a node supervises: its process."""
    for pid in tree_of(node_pid):
        with contextlib.suppress(OSError):
            if b"--supervised" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise BenchmarkError("the node has no proxy")


def load(port: int, method: str, connections: int, seconds: float, cookie: str = "") -> dict[str, Any]:
    """One client, run to its end."""
    options = {"port": port, "method": method, "connections": connections, "seconds": seconds, "cookie": cookie}
    done = run("load", json.dumps(options), limit_s=seconds + LOAD_SLACK_S)
    found: dict[str, Any] = json.loads(done)
    return found


def run(*arguments: str, limit_s: float = START_LIMIT_S) -> str:
    command = [sys.executable, "-m", "benchmarks.web", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"the client did not end within {limit_s:g} s") from None
    if done.returncode:
        raise BenchmarkError(f"the client failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return done.stdout


def prepared(home: Path, name: str, primary: Node | None) -> Stage:
    """A node with its proxy, configured."""
    node = new_node(home, name, alone=False, primary=primary)
    stage = Stage(node, free_port(), free_port())
    file = node.home / "litereplica.yml"
    document = json.loads(file.read_text())
    document["proxy"] = {
        "listen": f"127.0.0.1:{stage.proxy}",
        "advertise": f"http://127.0.0.1:{stage.proxy}",
        "target": f"http://127.0.0.1:{stage.application}",
        "databases": [DATABASE],
    }
    file.write_text(json.dumps(document, indent=1) + "\n")
    return stage


def answers(port: int) -> bool:
    """Whether the proxy is ready: its node answers, and its application takes connections."""
    import httpx  # noqa: PLC0415 - not on the way of the other questions

    try:
        return httpx.get(f"http://127.0.0.1:{port}/litereplica/health", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def two_stages(home: Path) -> Iterator[tuple[Stage, Stage, list[int]]]:
    """The primary's and the replica's, ready, and the processes of both proxies."""
    first = prepared(home, "primary", None)
    second = prepared(home, "replica", first.node)
    proxies = []
    with contextlib.ExitStack() as stack:
        for stage in (first, second):
            running = stack.enter_context(stage.node.running())
            if stage is first:
                run("prepare", str(stage.node.mount / DATABASE))
            command = [sys.executable, "-m", "benchmarks.web", "serve", str(stage.application)]
            database = str(stage.node.mount / DATABASE)
            log = home / f"application-{stage.node.name}.log"
            stack.enter_context(daemon([*command, database], log, START_LIMIT_S))
            wait_until(lambda port=stage.proxy: answers(port), START_LIMIT_S, "the proxy is ready")
            proxies.append(proxy_of(running.process.pid))
        yield first, second, proxies


def ask(lab: Lab, effort: Effort) -> Answer:
    kinds = (READ, READ_BEHIND, WRITE, FORWARDED)
    added = Figure(
        "what the proxy adds to a request, p50", "ms", "lower",
        goals=tuple(Goal(kind, ADDED_LIMIT_MS) for kind in (READ, READ_BEHIND, WRITE)),
    )  # fmt: skip
    times = {kind: Figure(f"{kind}: time of a request, p50", "ms", "lower") for kind in kinds}
    rates = {kind: Figure(f"{kind}: {MANY} connections", "requests/s") for kind in kinds}
    share = Figure(f"throughput through the proxy, {MANY} connections", "× the application bare")
    memory = Figure("memory of a proxy (PSS)", "MB", "lower")
    with lab.home(QUESTION.name, PROXY) as home, two_stages(home) as (first, second, proxies):
        # Where a request goes bare, and where it goes through; a forwarded one passes both proxies.
        ways = {
            READ: ("GET", first.application, first.proxy),
            READ_BEHIND: ("GET", second.application, second.proxy),
            WRITE: ("POST", first.application, first.proxy),
            FORWARDED: ("POST", first.application, second.proxy),
        }
        cookie = str(load(first.proxy, "POST", 1, 0.2)["cookie"])
        for turn in range(effort.rounds):
            for kind in kinds:
                method, application, proxy = ways[kind]
                ports = {BARE: application, PROXY: proxy}
                order = list(ports)[turn % 2 :] + list(ports)[: turn % 2]
                for name in order:
                    found = load(ports[name], method, 1, effort.seconds, cookie)
                    times[kind].add(name, statistics.median(found["taken_ns"]) / 1e6)
                    found = load(ports[name], method, MANY, effort.seconds, cookie)
                    rates[kind].add(name, len(found["taken_ns"]) / found["seconds"])
                spent, done = times[kind].rounds, rates[kind].rounds
                added.add(kind, spent[PROXY][-1] - spent[BARE][-1])
                share.add(kind, done[PROXY][-1] / done[BARE][-1])
            for name, pid in zip(("on the primary", "on the replica"), proxies, strict=True):
                memory.add(name, memory_of(pid).pss_bytes / 1e6)
    return Answer([added, share, memory, *times.values(), *rates.values()])


QUESTION = Question("proxy", "The HTTP proxy in front of an application", ask)
