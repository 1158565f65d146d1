"""Django with its admin, unmodified, on three nodes behind three proxies."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.proxy.site import DATABASE, Site, Stage
from tests.support.consul import Consuls
from tests.support.nodes import ROOT, Nodes
from tests.support.waiting import wait_until

PROJECT: Final = ROOT / "tests" / "apps" / "django_site"
# A migration of Django's own applications is some 20 steps of several transactions.
MANAGE_LIMIT_S: Final = 60.0


def serve(port: int, database: Path, _: str) -> list[str]:
    return [sys.executable, str(PROJECT / "serve.py"), str(port), str(database)]


class Browser:
    """Somebody with cookies, who fills in forms on whichever node he meets."""

    def __init__(self) -> None:
        self.client = httpx.Client(timeout=30.0, trust_env=False, follow_redirects=True)

    def close(self) -> None:
        self.client.close()

    def get(self, stage: Stage, path: str) -> str:
        answer = self.client.get(f"{stage.url}{path}")
        assert answer.status_code == 200, f"{answer.status_code} {answer.text[:2000]}"
        assert answer.headers["Litereplica-Node"] == stage.name, "reads are local"
        return answer.text

    def fill_in(self, stage: Stage, path: str, **fields: str) -> httpx.Response:
        form = self.get(stage, path)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
        assert token, form[:2000]
        answer = self.client.post(f"{stage.url}{path}", data={"csrfmiddlewaretoken": token[1]} | fields)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text[:2000]}"
        return answer

    def log_in(self, stage: Stage) -> None:
        answer = self.fill_in(stage, "/admin/login/?next=/admin/", username="root", password="secret", next="/admin/")
        assert "Log out" in answer.text

    def write(self, stage: Stage, text: str) -> None:
        answer = self.fill_in(stage, "/admin/notes/note/add/", text=text, _save="Save")
        assert "was added successfully" in answer.text, answer.text[:2000]
        assert text in answer.text

    def notes(self, stage: Stage) -> set[str]:
        return set(re.findall(r'field-__str__"><a [^>]*>([^<]+)</a>', self.get(stage, "/admin/notes/note/")))


@pytest.fixture
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


@pytest.fixture
def stages(nodes: Nodes) -> Iterator[list[Stage]]:
    """Three nodes of one cluster, each with Django and a proxy."""
    consuls = Consuls()
    site = Site(nodes, serve)
    try:
        agent = consuls.single()
        yield [site.consul(agent.url, name) for name in "abc"]
    finally:
        site.print_logs()
        site.tear_down()
        consuls.tear_down()


def manage(stage: Stage, *arguments: str, **environment: str) -> str:
    """``manage.py`` on this node's mount."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "manage.py"), *arguments],
        env=os.environ | {"DJANGO_DATABASE": str(stage.node.path(DATABASE))} | environment,
        capture_output=True, text=True, timeout=MANAGE_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_order(stages: list[Stage]) -> tuple[Stage, list[Stage]]:
    """The primary, and the others."""
    first = next(stage for stage in stages if stage.health().get("role") == "primary")
    return first, [stage for stage in stages if stage is not first]


def prepare(stage: Stage) -> None:
    manage(stage, "migrate")
    manage(stage, "createsuperuser", "--noinput", DJANGO_SUPERUSER_USERNAME="root",
           DJANGO_SUPERUSER_PASSWORD="secret", DJANGO_SUPERUSER_EMAIL="root@example.org")  # fmt: skip


def test_the_admin_works_on_three_nodes_and_through_a_failover(stages: list[Stage], browser: Browser) -> None:
    primary, (second, third) = in_order(stages)
    prepare(second)
    assert "[X] 0001_initial" in manage(third, "showmigrations", "notes")
    browser.log_in(second)
    browser.write(third, "on the third")
    assert browser.notes(primary) == {"on the third"}
    browser.write(primary, "on the primary")
    assert browser.notes(second) == {"on the third", "on the primary"}

    primary.node.kill()
    rest = [second, third]
    wait_until(lambda: any(stage.health().get("role") == "primary" for stage in rest), "a new primary", 20)
    assert browser.notes(second) == {"on the third", "on the primary"}, "still logged in"
    browser.write(second, "after the failover")
    assert browser.notes(third) == {"on the third", "on the primary", "after the failover"}

    primary.node.start()
    primary.wait_ready()
    browser.write(primary, "back again")
    wanted = {"on the third", "on the primary", "after the failover", "back again"}
    for stage in stages:
        assert browser.notes(stage) == wanted
