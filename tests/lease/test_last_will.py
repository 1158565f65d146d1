"""The child that ends a dead daemon's lease."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.lease.will import Will
from tests.lease.agents import Front, silent
from tests.lease.support import TTL_S, Place, held, place
from tests.support.consul import Agent
from tests.support.nodes import ROOT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)
LIMIT_S = 5.0

HOLDER = """
import json, sys, trio
from litereplica.lease.consul import ConsulLease, ConsulOptions
from litereplica.lease.will import Will
from litereplica.cluster.lease import Endpoint, Member, Standing

async def main(url, key):
    at = Endpoint("a", "a-1", "http://a", "a:1")
    will = Will()
    will.start()
    lease = ConsulLease(ConsulOptions([url], key, 5.0), at.instance, "a", will)
    await lease.join("", Member(at, Standing(0, 0), True, 0))
    if sys.argv[3] == "between":
        async def say_epoch(*_arguments, **_named):
            print(json.dumps([will.pid, 0]), flush=True)
            await trio.sleep(60)
        lease._lease._say_epoch = say_epoch
    mine = await lease.acquire(await lease.watch(None, 1.0), at, 5.0, 0)
    print(json.dumps([will.pid, mine.epoch]), flush=True)
    if sys.argv[3] == "close":
        await lease.close()
        await will.close()
    elif sys.argv[3] == "abandon":
        await will.abandon()
    else:
        await trio.sleep(60)

trio.run(main, sys.argv[1], sys.argv[2])
"""


@pytest.fixture
async def kept(shared_agent: Agent) -> AsyncIterator[Place]:
    async with place(shared_agent) as made:
        yield made


@contextlib.contextmanager
def holder(url: str, key: object, how: str = "sleep") -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A process that holds the lease, and the pid of its child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, str(key), how],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            yield process, json.loads(process.stdout.readline())[0]
        finally:
            process.kill()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"
    except OSError:
        return False


async def test_a_killed_holders_lease_is_vacant_at_once(kept: Place) -> None:
    assert kept.agent is not None
    watcher, _ = await kept.joined("b")
    with holder(kept.agent.url, kept.options["key"]) as (process, child):
        known = await watcher.watch(None, LIMIT_S)
        assert known.holding is not None
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does; the child has a group of its own
        os.kill(child, signal.SIGTERM)
        process.kill()
        killed_at = trio.current_time()
        view = await watcher.watch(known, LIMIT_S)
        assert view.holding is None
        assert trio.current_time() - killed_at < 1.5
        wait_until(lambda: not is_alive(child), "the child ends")
    assert [each.endpoint.node for each in await watcher.members()] == ["b"]


async def test_who_dies_before_it_has_said_its_epoch_leaves_the_record_as_it_was(kept: Place) -> None:
    """It had taken the lease over from who may live still: that is not given up."""
    assert kept.agent is not None
    lease, mine = await held(kept, "b")
    kept.agent.ask("DELETE", f"/v1/kv/{kept.options['key']}")
    with holder(kept.agent.url, kept.options["key"], "between") as (process, child):
        seen = await lease.watch(None, LIMIT_S)
        assert seen.holding is not None
        assert (seen.holding.holder.node, seen.holding.epoch) == ("a", 0)
        process.kill()
        wait_until(lambda: not is_alive(child), "the child ends")
        seen = await lease.watch(None, LIMIT_S)
    assert seen.gone
    assert seen.holding is not None
    assert (seen.holding.holder, seen.holding.epoch) == (mine.holder, mine.epoch)


async def test_an_ordinary_end_leaves_nothing_to_the_child(kept: Place) -> None:
    assert kept.agent is not None
    with holder(kept.agent.url, kept.options["key"], "close") as (process, child):
        assert await trio.to_thread.run_sync(process.wait, 10) == 0
        assert not is_alive(child)


async def test_who_ends_without_having_stopped_leaves_the_lease_to_the_child(kept: Place) -> None:
    assert kept.agent is not None
    watcher, _ = await kept.joined("b")
    with holder(kept.agent.url, kept.options["key"], "abandon") as (process, child):
        assert await trio.to_thread.run_sync(process.wait, 10) == 0
        assert not is_alive(child)
    assert (await watcher.watch(None, LIMIT_S)).holding is None


async def test_a_child_that_no_agent_answers_is_not_waited_for() -> None:
    with silent() as url:
        will = Will()
        will.start()
        will.update(document(url, limit_s=5.0))
        child = will._process
        assert child is not None
        began = time.monotonic()
        await will.abandon()
        assert time.monotonic() - began < 4.0
        assert is_alive(child.pid), "it goes on without us"
        child.kill()
        await trio.to_thread.run_sync(child.wait, LIMIT_S)


def test_the_child_shares_nothing_with_its_daemon(shared_agent: Agent) -> None:
    with holder(shared_agent.url, "litereplica/shares-nothing") as (process, child):
        links = {each.name: str(each.readlink()) for each in Path(f"/proc/{child}/fd").iterdir()}
        assert set(links) == {"0", "1", "2"}
        assert links["0"].startswith("pipe:")
        assert links["1"] == links["2"] == "/dev/null"
        assert Path(f"/proc/{child}/cwd").readlink() == Path("/")
        assert os.getsid(child) == child != os.getsid(process.pid)
        rollup = Path(f"/proc/{child}/smaps_rollup").read_text(encoding="ascii")
        pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        assert pss_kib < 10_000


async def test_a_lease_that_others_have_by_then_is_left_alone(kept: Place) -> None:
    assert kept.agent is not None
    other, at = await kept.joined("b")
    with holder(kept.agent.url, kept.options["key"]) as (process, child):
        theirs = await other.acquire(await other.watch(None, LIMIT_S), at, TTL_S, 0)
        process.kill()
        wait_until(lambda: not is_alive(child), "the child ends")
    assert (await other.renew(theirs)).epoch == theirs.epoch


def document(url: str, **more: Any) -> dict[str, Any]:
    tls = {"ca": None, "cert": None, "key": None, "verify": True}
    return {"urls": [url], "token": "", "tls": tls, "session": "none", "steps": [], "limit_s": 1.0} | more


def let_go(will: Will) -> int:
    """Break the pipe as a kill -9 does; the child's pid."""
    assert will._process is not None
    assert will._process.stdin is not None
    will._process.stdin.close()
    return will._process.pid


@pytest.mark.parametrize("kind", ["silent", "nobody"])
def test_the_child_ends_in_time_when_consul_does_not_answer(kind: str) -> None:
    with silent() as url:
        will = Will()
        will.start()
        will.update(document(url if kind == "silent" else "http://127.0.0.1:1"))
        began = time.monotonic()
        let_go(will)
        assert will._process is not None
        assert will._process.wait(10) == 0
        assert 0.8 < time.monotonic() - began < 9.0


def test_a_child_that_was_told_nothing_does_nothing() -> None:
    will = Will()
    will.start()
    let_go(will)
    assert will._process is not None
    assert will._process.wait(10) == 0


async def test_a_child_that_was_killed_is_replaced() -> None:
    will = Will()
    will.start()
    first = will.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_alive(first), "the child is dead")
    will.update(document("http://127.0.0.1:1"))
    assert will.pid != first
    await will.close()
    assert will.pid is None


@pytest.mark.parametrize("code", [200, 302, 404, 409, 503])
def test_what_stands_in_front_of_an_agent_has_done_nothing(shared_agent: Agent, code: int) -> None:
    session = shared_agent.ask("PUT", "/v1/session/create", {"checks": []})["ID"]
    front = Front(shared_agent.http_port)
    with contextlib.closing(front):
        front.answer = (code, {"content-type": "text/html"}, b"<html></html>")
        will = Will()
        will.start()
        will.update(document(front.url, session=session, limit_s=9.0))
        let_go(will)
        time.sleep(0.5)
        front.answer = None
        assert will._process is not None
        assert will._process.wait(10) == 0
    assert session not in {each["ID"] for each in shared_agent.ask("GET", "/v1/session/list")}


async def test_a_second_agent_is_asked_when_the_first_is_silent(kept: Place) -> None:
    assert kept.agent is not None
    session = kept.agent.ask("PUT", "/v1/session/create", {"checks": []})["ID"]
    with silent() as url:
        will = Will()
        will.start()
        will.update(document(url, urls=[url, kept.agent.url], session=session, limit_s=5.0))
        let_go(will)
        assert will._process is not None
        assert await trio.to_thread.run_sync(will._process.wait, 10) == 0
    assert kept.agent.ask("GET", f"/v1/session/info/{session}") == []
