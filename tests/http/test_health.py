"""Codes for load balancers."""

import pytest

from tests.http.twin import TwinCluster, client, database, running

METHODS = ("GET", "HEAD", "OPTIONS")


async def codes(cluster: TwinCluster, name: str, path: str) -> set[int]:
    async with client() as asking:
        return {(await asking.request(method, cluster[name].url + path)).status_code for method in METHODS}


async def test_primary_is_200_on_the_primary_alone() -> None:
    async with running("a", "b") as cluster:
        assert await codes(cluster, "a", "/primary") == {200}
        assert await codes(cluster, "b", "/primary") == {503}
        assert await codes(cluster, "a", "/replica") == {503}
        assert await codes(cluster, "b", "/replica") == {200}


async def test_a_primary_whose_fence_is_closed_is_no_primary_to_a_load_balancer() -> None:
    async with running("a") as cluster, client() as asking:
        cluster["a"].ready, cluster["a"].reason = False, "the lease was not renewed"
        answer = await asking.get(cluster["a"].url + "/primary")
    assert answer.status_code == 503
    assert answer.json()["error"] == "not_primary"
    assert answer.json()["message"] == "a is the primary and accepts no commits now: the lease was not renewed"


@pytest.mark.parametrize(
    ("lag_ms", "query", "code"),
    [
        (900, "", 200),
        (900, "?lag=1s", 200),
        (1001, "?lag=1s", 503),
        (None, "", 200),
        (None, "?lag=1s", 503),
        (0, "?lag=soon", 400),
    ],
)
async def test_a_replica_further_behind_than_wanted_is_503(lag_ms: int | None, query: str, code: int) -> None:
    async with running("a", "b") as cluster:
        cluster["b"].databases = [database("near.db", 5, 0), database("app.db", 5, lag_ms)]
        assert await codes(cluster, "b", f"/replica{query}") == {code}


async def test_a_replica_that_is_not_ready_is_503_with_the_reason() -> None:
    async with running("a", "b") as cluster, client() as asking:
        cluster["b"].ready, cluster["b"].reason = False, "starting"
        answer = await asking.get(cluster["b"].url + "/replica")
        ready = await asking.get(cluster["b"].url + "/readyz")
        live = await asking.get(cluster["b"].url + "/livez")
    assert (answer.status_code, ready.status_code, live.status_code) == (503, 503, 200)
    assert answer.json()["message"] == ready.json()["message"] == "this node is not ready: starting"
