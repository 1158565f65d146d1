"""Something stands in front of Consul and answers in its place: that is no answer, whatever it says."""

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest

from litereplica.errors import Unavailable
from litereplica.lease.consul import ConsulLease
from tests.lease.agents import Front
from tests.lease.support import LIMIT_S, TTL_S, Place, endpoint, held, leased_node, member, place
from tests.support.consul import Agent
from tests.support.nodes import Node, Nodes
from tests.support.sql import run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PAGE: Final = b"<html><body>404 page not found</body></html>"
HTML: Final = {"content-type": "text/html"}
JSON: Final = {"content-type": "application/json"}

Said = tuple[int, dict[str, str], bytes]

ANSWERS: Final[dict[str, Said]] = {
    "404 of a router": (404, {"content-type": "text/plain"}, b"404 page not found\n"),
    "404 with a page": (404, HTML, PAGE),
    "404 with nothing": (404, {}, b""),
    "404 with JSON": (404, JSON, b'{"error": "not found"}'),
    "a page": (200, HTML, PAGE),
    "nothing": (200, {}, b""),
    "null": (200, JSON, b"null"),
    "an empty list": (200, JSON, b"[]"),
    "an empty object": (200, JSON, b"{}"),
    "a list of numbers": (200, JSON, b"[1]"),
    "true": (200, JSON, b"true"),
    "accepted": (202, JSON, b"[]"),
    "no content": (204, {}, b""),
    "a redirect": (302, {"location": "http://127.0.0.1:9/login"} | HTML, b"<html>login</html>"),
    "moved": (308, {"location": "/elsewhere"}, b""),
    "401": (401, HTML, b"<html>Authorization required</html>"),
    "403": (403, HTML, b"<html>Forbidden</html>"),
    "405": (405, HTML, b"<html>Not allowed</html>"),
    "a conflict with a page": (409, HTML, PAGE),
    "a conflict with a list": (409, JSON, b"[]"),
    "a conflict without errors": (409, JSON, b"{}"),
    "a conflict with strange errors": (409, JSON, b'{"Errors": [1]}'),
    "429": (429, HTML, b"<html>Too many requests</html>"),
    "500": (500, HTML, b"<html>Oops</html>"),
    "502": (502, HTML, b"<html>Bad gateway</html>"),
    "503": (503, {}, b""),
    "504": (504, HTML, b"<html>Gateway timeout</html>"),
}


@pytest.fixture
def front(shared_agent: Agent) -> Iterator[Front]:
    made = Front(shared_agent.http_port)
    yield made
    made.close()


@pytest.fixture
async def kept(shared_agent: Agent, front: Front) -> AsyncIterator[Place]:
    async with place(shared_agent, urls=[front.url]) as made:
        yield made
        front.answer = None


@pytest.mark.parametrize("what", ANSWERS)
async def test_what_a_front_says_is_no_answer_of_consuls(kept: Place, front: Front, what: str) -> None:
    lease, mine = await held(kept)
    assert isinstance(lease, ConsulLease)
    session = lease._session.id
    seen = await lease.watch(None, LIMIT_S)
    assert seen.holding is not None
    at = endpoint("b")
    other = kept.lease(at)
    calls: dict[str, Any] = {
        "renew": lambda: lease.renew(mine),
        "watch": lambda: lease.watch(seen, 0.3),
        "look": lambda: lease.watch(None, 0.3),
        "members": lease.members,
        "history": lease.history,
        "publish": lambda: lease.publish(member(mine.holder)),
        "session": lease._session.renew,
    }
    if what not in {"401", "403"}:  # somebody may not: a node that has not joined says so and ends
        calls["join"] = lambda: other.join("", member(at))
    front.answer = ANSWERS[what]
    for name, call in calls.items():
        with pytest.raises(Unavailable):
            pytest.fail(f"{name}: {await call()}")
    assert lease._session.id == session, "a session that Consul has is not lost"
    front.answer = None
    renewed = await lease.renew(mine)
    assert (renewed.epoch, renewed.counter) == (mine.epoch, mine.counter + 1)
    assert await lease.members()


@pytest.mark.parametrize("what", ANSWERS)
async def test_who_comes_without_a_session_gets_none_from_a_front(kept: Place, front: Front, what: str) -> None:
    lease, _ = await kept.joined("a")
    assert isinstance(lease, ConsulLease)
    await lease._session.end()
    front.answer = ANSWERS[what]
    with pytest.raises(Unavailable):
        await lease._session.ensure()
    assert lease._session.id == ""


async def test_consuls_own_word_that_a_session_is_gone_is_heard(kept: Place) -> None:
    assert kept.agent is not None
    lease, _ = await kept.joined("a")
    assert isinstance(lease, ConsulLease)
    before = lease._session.id
    assert kept.agent.ask("PUT", f"/v1/session/destroy/{before}") is True
    await lease._session.renew()
    assert lease._session.id not in {"", before}


# ---------------------------------------------------------------------------------------------------------- real nodes
_KEYS = itertools.count()


@pytest.mark.parametrize("what", ["404 of a router", "a page"])
def test_nodes_live_on_behind_a_front_that_has_lost_its_backend(
    nodes: Nodes, shared_agent: Agent, front: Front, what: str
) -> None:
    key = f"fronts/{next(_KEYS)}"
    made = [leased_node(nodes, name, front.url, key).start() for name in ("a", "b")]

    def primaries() -> list[Node]:
        return [each for each in made if each.get("/status")[1].get("role") == "primary"]

    (old,) = wait_until(primaries, "one is the primary")
    run_sql(old.path(), "CREATE TABLE t (x)", mode="rwc")
    session = shared_agent.ask("GET", f"/v1/kv/{key}")[0]["Session"]
    front.answer = ANSWERS[what]
    late = leased_node(nodes, "c", front.url, key)
    late.start(wait=False)
    made.append(late)
    end = time.monotonic() + 2 * TTL_S
    while time.monotonic() < end:
        assert all(each.process is not None and each.process.poll() is None for each in made), [e.log for e in made]
        time.sleep(0.2)
    assert all(each.log_lines("lease_not_readable") for each in made if each is not late)
    wait_until(lambda: late.log_lines("lease_not_reached"), "the one that comes now says why it does not join")
    front.answer = None
    late.wait_ready()
    wait_until(lambda: len(primaries()) == 1, "there is a primary again")
    run_sql(primaries()[0].path(), "INSERT INTO t VALUES (1)", mode="rw")
    assert any(each["ID"] == session for each in shared_agent.ask("GET", "/v1/session/list"))
    for each in made:
        assert "Traceback" not in each.log
        each.stop()


def test_a_short_absence_of_the_backend_changes_nothing(nodes: Nodes, shared_agent: Agent, front: Front) -> None:
    key = f"fronts/{next(_KEYS)}"
    old = leased_node(nodes, "a", front.url, key).start()
    other = leased_node(nodes, "b", front.url, key).start()
    epoch = old.status()["epoch"]
    front.answer = ANSWERS["404 of a router"]
    time.sleep(TTL_S / 3)
    front.answer = None
    time.sleep(TTL_S)
    run_sql(old.path(), "CREATE TABLE t (x)", mode="rwc")
    assert (old.status()["role"], old.status()["epoch"]) == ("primary", epoch)
    assert other.status()["primary"] == "a"
    assert shared_agent.ask("GET", f"/v1/kv/{key}") is not None
