"""``/cluster``, ``/history``, ``/info``: what any node says about all of them."""

import contextlib
import socket

import trio

from litereplica.cluster.lease import Reign
from tests.http.twin import CLUSTER_ID, client, running


async def test_a_cluster_is_every_known_node_s_status_in_one_document() -> None:
    async with running("a", "b", "c") as cluster, client() as asking:
        document = (await asking.get(cluster["b"].url + "/cluster")).json()
        one = (await asking.get(cluster["c"].url + "/status")).json()
    assert (document["node"], document["primary"]) == ("b", "a")
    assert [(each["name"], each["answers"]) for each in document["nodes"]] == [("a", True), ("b", True), ("c", True)]
    assert document["nodes"][2]["status"] == one
    assert document["nodes"][2]["http"] == cluster["c"].url


async def test_a_node_that_is_gone_is_listed_as_such_with_the_reason() -> None:
    async with running("a", "b") as cluster, client() as asking:
        await cluster.stop("a")
        document = (await asking.get(cluster["b"].url + "/cluster")).json()
    gone = document["nodes"][0]
    assert (gone["name"], gone["answers"], "status" in gone) == ("a", False, False)
    assert gone["reason"]
    assert document["primary"] is None


async def test_a_node_that_hangs_costs_two_seconds_however_many_hang() -> None:
    async with running("a", "b", "c", "d", "e", "f") as cluster, client() as asking:
        with contextlib.ExitStack() as servers:
            for name in "bcde":
                server = servers.enter_context(socket.create_server(("127.0.0.1", 0)))
                cluster[name].url = f"http://127.0.0.1:{server.getsockname()[1]}"
            began = trio.current_time()
            document = (await asking.get(cluster["a"].url + "/cluster")).json()
            took_s = trio.current_time() - began
    assert took_s < 7.5
    assert [each.get("reason") for each in document["nodes"]] == [None, *["no answer within 2 s"] * 4, None]


async def test_another_node_at_a_node_s_url_is_not_taken_for_it() -> None:
    async with running("a", "b", "c") as cluster, client() as asking:
        cluster["b"].url = cluster["c"].url
        document = (await asking.get(cluster["a"].url + "/cluster")).json()
    assert document["nodes"][1]["reason"] == "at its URL is 'c': check http.advertise of both"


async def test_without_members_a_cluster_is_the_node_itself() -> None:
    async with running("a") as cluster, client() as asking:
        cluster.has_lease = False
        document = (await asking.get(cluster["a"].url + "/cluster")).json()
    assert [each["name"] for each in document["nodes"]] == ["a"]
    assert document["primary"] == "a"


async def test_a_history_is_the_reigns_oldest_first() -> None:
    async with running("a") as cluster, client() as asking:
        cluster.history = (Reign(3, "b", 1_700_000_000_000, "b was elected", {"app.db": "0000000000000001/00"}),)
        document = (await asking.get(cluster["a"].url + "/history")).json()
    assert document == {
        "history": [
            {
                "epoch": 3,
                "node": "b",
                "timestamp_ms": 1_700_000_000_000,
                "reason": "b was elected",
                "positions": {"app.db": "0000000000000001/00"},
            }
        ]
    }


async def test_info_is_in_litefs_s_form() -> None:
    async with running("a", "b") as cluster, client() as asking:
        cluster["b"].candidate = False
        document = (await asking.get(cluster["b"].url + "/info")).json()
        primary = (await asking.get(cluster["a"].url + "/info")).json()
    assert document == {
        "clusterID": CLUSTER_ID,
        "isPrimary": False,
        "candidate": False,
        "path": "/data/b",
        "primary": {"hostname": "a"},
    }
    assert (primary["isPrimary"], primary["candidate"]) == (True, True)


async def test_an_unknown_path_and_a_wrong_method_are_errors_in_our_form() -> None:
    async with running("a") as cluster, client() as asking:
        unknown = await asking.get(cluster["a"].url + "/nothing")
        wrong = await asking.get(cluster["a"].url + "/failover")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]) == (405, "method_not_allowed")
