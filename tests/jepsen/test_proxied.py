"""Calls by HTTP: the application on a plain folder, and what the answers of a proxy say of a call."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from jepsen.proxied import BEHIND, NOT_DONE, OTHER_HISTORY, outcome
from jepsen.session import Place, Session, Undone
from jepsen.workloads.anywhere import Anywhere
from tests.support.nodes import ROOT, free_ports
from tests.support.waiting import wait_until

LIMIT_S: Final = 20.0
DONE: Final[dict[str, Any]] = {"type": "ok", "value": [1, 2], "error": "", "node": "b"}


@pytest.fixture
def application(tmp_path: Path) -> Iterator[httpx.Client]:
    """On a folder with the databases of the workload."""
    Anywhere("x").prepare(Session({"a": Place(tmp_path, "")}), "a")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "jepsen.application", str(port), str(tmp_path), "a"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
                wait_until(lambda: answers(client), "the application answers", LIMIT_S)
                yield client
        finally:
            process.kill()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/nothing").status_code == 404
    except httpx.TransportError:
        return False


def order(index: int, f: str, value: object, database: str = Anywhere.proxied[1]) -> dict[str, Any]:
    one = {"index": index, "f": f, "value": value, "database": database, "node": "c", "primary": "c", "how": ""}
    return {**one, "workload": "anywhere", "tag": "x"}


def test_the_application_does_what_a_client_would(application: httpx.Client) -> None:
    def write(*given: Any) -> dict[str, Any]:
        found: dict[str, Any] = application.post("/", json=order(*given)).raise_for_status().json()
        return found

    assert write(1, "write", [1, 5]) == {"type": "ok", "value": [1, 5], "error": "", "node": "a"}
    assert write(2, "cas", [1, [4, 6]]) == {"type": "fail", "value": None, "error": "it is 5", "node": "a"}
    assert write(3, "read", [1, None])["value"] == [1, 5]
    lists = [["append", 1, 1], ["r", 1, None]]
    assert write(4, "txn", lists, Anywhere.proxied[0])["value"] == [["append", 1, 1], ["r", 1, [1]]]
    looked = application.get("/", params={"order": json.dumps(order(5, "look", {"key": 1}))}).json()
    assert (looked["type"], looked["value"]) == ("ok", 5)


@pytest.mark.parametrize(
    ("status", "headers", "said", "reads", "came"),
    [
        (200, {}, DONE, False, [1, 2]),
        (200, {BEHIND: "x.db"}, DONE, False, [1, 2]),
        (200, {BEHIND: "x.db"}, DONE, True, Undone),
        (200, {OTHER_HISTORY: "x.db"}, DONE, True, Undone),
        (200, {}, DONE | {"type": "fail"}, False, Undone),
        (200, {}, DONE | {"type": "info"}, False, OSError),
        (200, {}, DONE | {"type": "unclear"}, False, OSError),
        (503, {}, {"error": "no_primary", "outcome": NOT_DONE}, False, Undone),
        (502, {}, {"error": "connection_lost", "outcome": "unknown"}, False, OSError),
        (500, {}, {}, False, OSError),
    ],
)
def test_what_an_answer_says_of_a_call(
    status: int, headers: dict[str, str], said: dict[str, Any], reads: bool, came: object
) -> None:
    try:
        found = outcome(status, headers, said, reads=reads)
    except (Undone, OSError) as error:
        found = type(error)
    assert found == came
