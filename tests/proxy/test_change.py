"""The primary changes while clients read and write through the proxies of all nodes."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.proxy.site import DATABASE, Site, Stage
from tests.support.consul import Consuls
from tests.support.waiting import wait_until

HANDOFFS = 3


@pytest.fixture
def consuls() -> Iterator[Consuls]:
    """Makes real agents."""
    made = Consuls()
    yield made
    made.tear_down()


class Visitor(threading.Thread):
    """Writes a row and reads it back, again and again, each time on the next node; never repeats a write."""

    def __init__(self, name: str, stages: list[Stage]) -> None:
        super().__init__(name=name)
        self.stages = stages
        self.done: list[str] = []
        self.unknown: list[str] = []
        self.refused: list[str] = []
        self.missing: list[str] = []
        self.was_told = False
        self.longest_s = 0.0
        self._end = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=30.0, trust_env=False) as client:
            for number in itertools.count():
                if self._end.is_set():
                    return
                stage = self.stages[number % len(self.stages)]
                begin = time.monotonic()
                self._visit(client, stage, f"{self.name}-{number}")
                self.longest_s = max(self.longest_s, time.monotonic() - begin)

    def _visit(self, client: httpx.Client, stage: Stage, text: str) -> None:
        try:
            answer = client.post(f"{stage.url}/rows", content=text)
        except httpx.ConnectError:
            time.sleep(0.05)
            return
        except httpx.HTTPError:
            self.unknown.append(text)
            return
        if answer.status_code == 201:
            self.done.append(text)
        elif answer.headers["content-type"].startswith("application/json") and answer.json()["outcome"] == "not_done":
            self.refused.append(text)
            time.sleep(0.05)
        else:
            self.unknown.append(text)
            time.sleep(0.05)
        self._read(client, self.stages[(len(self.done) + 1) % len(self.stages)])

    def _read(self, client: httpx.Client, stage: Stage) -> None:
        try:
            answer = client.get(f"{stage.url}/rows")
        except httpx.HTTPError:
            return
        told = {"Litereplica-Other-History", "Litereplica-Behind"} & set(answer.headers)
        self.was_told = self.was_told or bool(told)
        if answer.status_code == 200 and not told and not self.was_told:
            rows = set(answer.json()["rows"])
            self.missing += [text for text in self.done if text not in rows]

    def stop(self) -> None:
        self._end.set()
        self.join(40)


def cluster(site: Site, consuls: Consuls) -> list[Stage]:
    agent = consuls.single()
    return [site.consul(agent.url, name) for name in "abc"]


def primary_of(stages: list[Stage]) -> Stage:
    return next(stage for stage in stages if stage.health().get("role") == "primary")


def final_rows(stages: list[Stage]) -> list[str]:
    """What every node that runs has, once they are equal."""

    def equal() -> list[str]:
        found = [httpx.get(f"{each.url}/rows", timeout=10, trust_env=False).json()["rows"] for each in stages]
        return found[0] if all(rows == found[0] for rows in found) else []

    return wait_until(equal, "all nodes have the same rows", 20)


def visit(stages: list[Stage]) -> list[Visitor]:
    visitors = [Visitor(f"v{number}", stages[number:] + stages[:number]) for number in range(3)]
    with httpx.Client(trust_env=False, timeout=20) as client:
        assert client.post(f"{stages[0].url}/rows", content="first").status_code == 201
    for visitor in visitors:
        visitor.start()
    return visitors


def check(visitors: list[Visitor], rows: list[str]) -> None:
    assert len(set(rows)) == len(rows), "nothing was done twice"
    for visitor in visitors:
        assert not visitor.missing, "everybody reads what he wrote"
        assert not set(visitor.refused) & set(rows), "what was not done was not done"


def await_some(visitors: list[Visitor]) -> None:
    wait_until(lambda: all(len(visitor.done) > 20 for visitor in visitors), "everybody wrote", 60)


def test_a_handoff_while_clients_write_everywhere(site: Site, consuls: Consuls) -> None:
    stages = cluster(site, consuls)
    visitors = visit(stages)
    try:
        for _ in range(HANDOFFS):
            time.sleep(1.0)
            old = primary_of(stages)
            new = stages[(stages.index(old) + 1) % 3]
            answer = httpx.post(f"{old.node.url}/failover", json={"to": new.name}, timeout=30, trust_env=False)
            assert answer.status_code == 200, answer.text
        time.sleep(1.0)
        await_some(visitors)
    finally:
        for visitor in visitors:
            visitor.stop()
    rows = final_rows(stages)
    check(visitors, rows)
    for visitor in visitors:
        assert set(visitor.done) <= set(rows), "a planned handoff loses nothing"
    # One that was given to the application of the old primary may come to its COMMIT on a replica, and be stale there.
    assert sum(len(visitor.refused) for visitor in visitors) <= HANDOFFS, "a write waits for the new primary"


def test_a_primary_that_was_paused_does_not_declare_its_successors_transactions_lost(
    site: Site, consuls: Consuls
) -> None:
    """In the moment after it goes on and before it notices."""
    agent = consuls.single()
    old, new = (site.consul(agent.url, name) for name in "ab")
    assert httpx.post(f"{old.url}/rows", content="first", timeout=20, trust_env=False).status_code == 201
    for number in range(4):
        wait_until(lambda pair=(old, new): have_met(*pair), "the replica has everything", 20)  # type: ignore[misc]
        answer = read_while_resumed(old, new, f"{number}")
        assert "Litereplica-Other-History" not in answer.headers
        assert "Set-Cookie" not in answer.headers
        assert "Litereplica-Behind" in answer.headers or f"{number}" in answer.json()["rows"]
        old, new = new, old


def have_met(primary: Stage, replica: Stage) -> bool:
    roles = (primary.health().get("role"), replica.health().get("role"))
    return roles == ("primary", "replica") and primary.node.position(DATABASE) == replica.node.position(DATABASE)


def read_while_resumed(old: Stage, new: Stage, text: str) -> httpx.Response:
    """The answer to somebody who wrote ``text`` on the new primary, and comes to the old one as that goes on."""
    found: list[httpx.Response] = []
    os.kill(old.node.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: new.health().get("role") == "primary", "a new primary", 20)
        with new.client() as client:
            answer = client.post("/rows", content=text)
        assert answer.status_code == 201
        seen = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}

        def read() -> None:
            with old.client() as client:
                found.append(client.get("/rows", headers=seen))

        reading = threading.Thread(target=read)
        reading.start()
        time.sleep(0.3)
    finally:
        os.kill(old.node.pid, signal.SIGCONT)
    reading.join(40)
    return found[0]


def test_a_primary_that_dies_while_clients_write_everywhere(site: Site, consuls: Consuls) -> None:
    stages = cluster(site, consuls)
    visitors = visit(stages)
    try:
        time.sleep(1.5)
        old = primary_of(stages)
        old.node.kill()
        rest = [stage for stage in stages if stage is not old]
        wait_until(lambda: any(stage.health().get("role") == "primary" for stage in rest), "a new primary", 20)
        time.sleep(2)
        await_some(visitors)
    finally:
        for visitor in visitors:
            visitor.stop()
    rows = final_rows(rest)
    check(visitors, rows)
    for visitor in visitors:
        lost = set(visitor.done) - set(rows)
        assert not lost or visitor.was_told, f"replication is asynchronous here, but {lost} went without a word"
        assert visitor.longest_s < 20
