"""``POST /failover`` and ``POST /promote``, whichever node is asked."""

from typing import Any

import httpx
import pytest

from litereplica.errors import Refused, Unavailable
from tests.http.twin import TwinCluster, client, database, running


async def ask(cluster: TwinCluster, name: str, to: str | None = None, *, force: bool = False) -> httpx.Response:
    async with client() as asking:
        return await asking.post(cluster[name].url + "/failover", json={"to": to, "force": force})


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["error"], answer.json()["message"]


async def test_the_answer_comes_when_the_new_primary_serves() -> None:
    async with running("a", "b") as cluster:
        cluster["b"].promotes_after_s = 0.3
        answer = await ask(cluster, "a", "b")
        assert cluster["b"].ready
    assert (answer.status_code, answer.json()) == (200, {"primary": "b", "http": cluster["b"].url})


@pytest.mark.parametrize("asked", ["b", "c"])
async def test_a_replica_passes_the_question_to_the_primary(asked: str) -> None:
    async with running("a", "b", "c") as cluster:
        answer = await ask(cluster, asked, "b")
        assert (cluster["a"].asked, cluster["b"].asked, cluster["c"].asked) == ([("b", False)], [], [])
    assert (answer.status_code, answer.json()["primary"]) == (200, "b")


@pytest.mark.parametrize("asked", ["a", "b"])
async def test_a_refusal_is_409_with_the_primary_s_own_words(asked: str) -> None:
    async with running("a", "b") as cluster:
        cluster["a"].refusal = Refused("b is in the middle of a snapshot: wait")
        answer = await ask(cluster, asked, "b")
    assert refusal(answer) == (409, "refused", "b is in the middle of a snapshot: wait")


async def test_an_unknown_outcome_is_503() -> None:
    async with running("a", "b") as cluster:
        cluster["a"].refusal = Unavailable("no answer from Consul")
        answer = await ask(cluster, "a", "b")
    assert refusal(answer) == (503, "unavailable", "no answer from Consul")


async def test_asking_again_after_it_happened_changes_nothing() -> None:
    async with running("a", "b") as cluster:
        first, again = await ask(cluster, "a", "b"), await ask(cluster, "a", "b")
        at_it = await ask(cluster, "b", "b")
        assert (cluster["a"].asked, cluster["b"].asked) == ([("b", False)], [])
    assert first.json() == again.json() == at_it.json()


async def test_a_dead_primary_is_not_taken_over_from_without_force() -> None:
    async with running("a", "b", "c") as cluster:
        await cluster.stop("a")
        answer = await ask(cluster, "b", "c")
        assert cluster["b"].asked == cluster["c"].asked == []
    code, _, message = refusal(answer)
    assert code == 503
    assert message.startswith(f"a at {cluster['a'].url} was asked and gave no outcome (")
    assert message.endswith(
        "'litereplica status' shows who is primary; ask again, or use --force when it is gone for good"
    )


@pytest.mark.parametrize("asked", ["b", "c"])
async def test_with_force_the_node_that_is_to_be_primary_takes_over_from_a_dead_one(asked: str) -> None:
    async with running("a", "b", "c") as cluster:
        await cluster.stop("a")
        answer = await ask(cluster, asked, "c", force=True)
        assert (cluster["b"].asked, cluster["c"].asked) == ([], [("c", True)])
    assert (answer.status_code, answer.json()["primary"]) == (200, "c")


async def test_with_force_a_living_primary_is_asked_to_hand_over_all_the_same() -> None:
    async with running("a", "b") as cluster:
        answer = await ask(cluster, "b", "b", force=True)
        assert (cluster["a"].asked, cluster["b"].asked) == ([("b", True)], [])
    assert answer.status_code == 200


async def test_with_force_and_no_name_the_most_advanced_candidate_that_answers_takes_over() -> None:
    async with running("a", "b", "c", "d", "e", "f") as cluster:
        cluster["b"].databases = [database("app.db", 11)]
        cluster["c"].databases = [database("app.db", 12), database("x.db", 1)]
        cluster["d"].databases, cluster["d"].candidate = [database("app.db", 50)], False
        cluster["e"].databases, cluster["e"].whole = [database("app.db", 50)], False
        cluster["f"].databases = [database("app.db", 99)]
        await cluster.stop("a")
        await cluster.stop("f")
        answer = await ask(cluster, "b", force=True)
    assert answer.json()["primary"] == "c"


async def test_of_two_that_are_equal_the_higher_priority_and_then_the_first_name_takes_over() -> None:
    async with running("a", "b", "c", "d") as cluster:
        cluster["c"].priority = cluster["d"].priority = 5
        await cluster.stop("a")
        answer = await ask(cluster, "b", force=True)
    assert answer.json()["primary"] == "c"


async def test_without_a_candidate_that_answers_nothing_is_done() -> None:
    async with running("a", "b") as cluster:
        cluster["b"].candidate = False
        await cluster.stop("a")
        answer = await ask(cluster, "b", force=True)
    assert refusal(answer)[:2] == (409, "refused")


async def test_an_unknown_name_is_refused() -> None:
    async with running("a", "b") as cluster:
        await cluster.stop("a")
        answer = await ask(cluster, "b", "z", force=True)
    assert refusal(answer) == (
        409,
        "refused",
        "no node 'z' is known here: check the name ('litereplica status' lists them)",
    )


@pytest.mark.parametrize(
    ("headers", "content", "message"),
    [
        ({}, b"{}", "send Content-Type: application/json, not 'none'"),
        (
            {"Content-Type": "application/x-www-form-urlencoded"},
            b"to=b",
            "send Content-Type: application/json, not 'application/x-www-form-urlencoded'",
        ),
        ({"Content-Type": "text/plain"}, b"{}", "send Content-Type: application/json, not 'text/plain'"),
        ({"Content-Type": "application/json"}, b"[]", 'send a JSON object, such as {"to": "b", "force": false}'),
        ({"Content-Type": "application/json"}, b"{", 'send a JSON object, such as {"to": "b", "force": false}'),
        ({"Content-Type": "application/json"}, b'{"too": "b"}', "unknown key 'too': there are to and force"),
        (
            {"Content-Type": "application/json"},
            b'{"to": 1}',
            '"to" is the name of a node or null, "force" is true or false',
        ),
        (
            {"Content-Type": "application/json"},
            b'{"force": 1}',
            '"to" is the name of a node or null, "force" is true or false',
        ),
        ({"Content-Type": "application/json"}, b" " * 5000, "the body is longer than 4096 bytes"),
        (
            {"Content-Type": "application/json", "Origin": "http://evil.example"},
            b"{}",
            "this is not for web pages: ask without an Origin header",
        ),
        (
            {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"},
            b"{}",
            "this is not for web pages: ask without an Origin header",
        ),
    ],
)
async def test_what_is_no_question_of_ours_is_400(headers: dict[str, str], content: bytes, message: str) -> None:
    async with running("a", "b") as cluster, client() as asking:
        answer = await asking.post(cluster["a"].url + "/failover", headers=headers, content=content)
        assert cluster["a"].asked == []
    assert refusal(answer) == (400, "bad_request", message)


async def test_an_empty_object_leaves_the_choice_to_the_primary() -> None:
    async with running("a", "b") as cluster, client() as asking:
        answer = await asking.post(cluster["a"].url + "/failover", json={})
        assert cluster["a"].asked == [(None, False)]
    assert answer.json()["primary"] == "b"


# -- LiteFS's ------------------------------------------------------------------------------------------------------


async def promote(cluster: TwinCluster, name: str, **headers: str) -> httpx.Response:
    async with client() as asking:
        return await asking.post(cluster[name].url + "/promote", headers=headers)


async def test_promote_makes_the_node_that_is_asked_the_primary() -> None:
    async with running("a", "b") as cluster:
        answer = await promote(cluster, "b")
        assert cluster.primary == "b"
    assert (answer.status_code, answer.content) == (200, b"")


async def test_promote_of_the_primary_is_200_and_nothing_happens() -> None:
    async with running("a", "b") as cluster:
        answer = await promote(cluster, "a")
        assert (cluster.primary, cluster["a"].asked) == ("a", [])
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("change", "code"),
    [({"candidate": False}, 409), ({"primary": None}, 503), ({"origin": "http://evil.example"}, 400)],
)
async def test_promote_says_why_not(change: dict[str, Any], code: int) -> None:
    async with running("a", "b") as cluster:
        cluster["b"].candidate = change.get("candidate", True)
        cluster.primary = change.get("primary", "a")
        answer = await promote(cluster, "b", **({"Origin": change["origin"]} if "origin" in change else {}))
        assert cluster["a"].asked == []
    assert answer.status_code == code
    assert set(answer.json()) == {"error", "message"}
