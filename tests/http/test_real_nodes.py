"""The port as real nodes implement it: what the other tests of this folder show with a twin."""

import http.client
import json
import sqlite3

from tests.support.nodes import Node, Nodes
from tests.support.waiting import wait_until


def post(node: Node, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=20)
    connection.request("POST", path, json.dumps({"to": "b"}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_a_primary_and_a_replica_of_a_configuration_answer_every_question(nodes: Nodes) -> None:
    primary = nodes.primary("a")
    replica = nodes.replica(primary, "b")
    listening = http.client.HTTPConnection(primary.url.removeprefix("http://"), timeout=20)
    listening.request("GET", "/events")
    events = listening.getresponse()
    assert json.loads(events.readline()) == {"type": "init", "data": {"isPrimary": True, "hostname": "a"}}

    database = sqlite3.connect(primary.path())
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE t (x)")
    database.close()
    event = json.loads(events.readline())
    assert (event["type"], event["db"]) == ("tx", "app.db")
    listening.close()
    wait_until(lambda: replica.position() == primary.position(), "the replica is at the primary's position")

    assert [node.get(path)[0] for node in (primary, replica) for path in ("/primary", "/replica?lag=10s")] == [
        200,
        503,
        503,
        200,
    ]
    assert replica.get("/info")[1]["primary"] == {"hostname": "a"}
    assert replica.get("/history")[0] == 200
    for node in (primary, replica):
        code, answer = post(node, "/failover")
        assert code == 409
        assert set(json.loads(answer)) == {"error", "message"}
    connection = http.client.HTTPConnection(primary.url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/metrics")
    figures = connection.getresponse().read().decode()
    connection.close()
    assert "litereplica_is_primary 1.0\n" in figures
    assert "litereplica_replicas_connected 1.0\n" in figures

    code, cluster = replica.get("/cluster")
    assert (code, cluster["primary"]) == (200, "a")
    assert [(each["name"], each["answers"]) for each in cluster["nodes"]] == [("a", True), ("b", True)]
