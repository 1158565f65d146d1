"""``failover``: what is said before it is done, who is asked, and the outcomes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from litereplica.cli.failover import Plan, plan_of
from litereplica.errors import Refused, Unavailable
from tests.cli.running import LIMIT_S, CommandLine
from tests.http.twin import TwinCluster, running_beside


@pytest.fixture
def cluster() -> Iterator[TwinCluster]:
    with running_beside("a", "b", "c") as found:
        yield found


def test_the_primary_hands_over_and_what_happens_is_said_first(litereplica: CommandLine, cluster: TwinCluster) -> None:
    ran = litereplica("failover", "--yes", "--url", cluster["c"].url)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[:2] == [
        "a (primary, epoch 7) hands over to b.",
        "Writers wait meanwhile, some tenths of a second as a rule. Nothing is lost.",
    ]
    assert re.match(r"b is the primary now, after \d+\.\d+ s", lines[2])
    assert cluster["a"].asked == [("b", False)]


def test_with_json_the_outcome_is_the_only_thing_on_stdout(litereplica: CommandLine, cluster: TwinCluster) -> None:
    ran = litereplica("--json", "failover", "--to", "c", "--yes", "--url", cluster["a"].url)
    assert ran.err.startswith("a (primary, epoch 7) hands over to c.")
    document = json.loads(ran.out)
    assert (document["primary"], document["http"]) == ("c", cluster["c"].url)
    assert document["seconds"] < LIMIT_S


def test_without_a_terminal_nothing_is_done_unless_told_to(litereplica: CommandLine, cluster: TwinCluster) -> None:
    ran = litereplica("failover", "--url", cluster["a"].url)
    assert (ran.code, ran.error) == (1, "this changes the primary, and nobody is there to be asked: add --yes")
    assert cluster["a"].asked == []


@pytest.mark.parametrize(("said", "code", "asked"), [("y\n", 0, [("b", False)]), ("\n", 1, [])])
def test_on_a_terminal_a_person_is_asked(
    litereplica: CommandLine, cluster: TwinCluster, said: str, code: int, asked: list[Any]
) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "litereplica", "failover", "--url", cluster["a"].url]
    with (
        os.fdopen(ours, "wb", buffering=0) as keyboard,
        os.fdopen(theirs, "rb", buffering=0) as terminal,
        subprocess.Popen(
            command, env=litereplica.environment, stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal
        ) as process,
    ):
        keyboard.write(said.encode())
        assert process.wait(LIMIT_S) == code
    assert cluster["a"].asked == asked


def test_a_refusal_is_exit_code_1_with_the_node_s_words(litereplica: CommandLine, cluster: TwinCluster) -> None:
    cluster["a"].refusal = Refused("in a write transaction: app.db: process 7 (python3)")
    ran = litereplica("failover", "--to", "b", "--yes", "--url", cluster["a"].url)
    assert (ran.code, ran.error) == (1, "in a write transaction: app.db: process 7 (python3)")


def test_an_unknown_outcome_is_exit_code_3_and_says_how_to_ask_again(
    litereplica: CommandLine, cluster: TwinCluster
) -> None:
    cluster["a"].refusal = Unavailable("no answer from Consul")
    ran = litereplica("failover", "--yes", "--url", cluster["b"].url)
    assert (ran.code, ran.error) == (3, "no answer from Consul; it is safe to ask again, with --to b")


def test_who_is_primary_already_stays_it_and_nobody_is_asked(litereplica: CommandLine, cluster: TwinCluster) -> None:
    ran = litereplica("failover", "--to", "a", "--url", cluster["b"].url)
    assert (ran.code, ran.out, ran.err) == (0, "a is the primary already\n", "")
    assert cluster["a"].asked == []


# -- what is said --------------------------------------------------------------------------------------------------


def node(name: str, total: int, *, lag_ms: int | None = 0, primary: str | None = "a", epoch: int = 4) -> dict[str, Any]:
    status = {
        "node": name,
        "role": "primary" if name == primary else "replica",
        "primary": primary,
        "epoch": epoch,
        "ready": True,
        "databases": [{"name": "app.db", "txid": f"{total:016x}", "lag_ms": lag_ms}],
        "members": [
            {"name": each, "candidate": each != "z", "priority": 0, "epoch": 4, "total": 0}
            for each in ("a", "b", "c", "z")
        ],
    }
    return {"name": name, "http": "", "answers": True, "status": status}


def dead(name: str) -> dict[str, Any]:
    return {"name": name, "http": "", "answers": False, "reason": "no answer within 2 s"}


def cluster_of(*nodes: dict[str, Any], asked: str = "b", primary: str | None = None) -> dict[str, Any]:
    return {"node": asked, "primary": primary, "nodes": list(nodes)}


def test_a_target_that_is_behind_gets_everything_first() -> None:
    document = cluster_of(node("a", 100), node("b", 97), node("c", 99), primary="a")
    assert plan_of(document, "b", force=False).lines == (
        "a (primary, epoch 4) hands over to b.",
        (
            "b is 3 transactions behind and gets them first. "
            "Writers wait meanwhile, some tenths of a second as a rule. Nothing is lost."
        ),
    )
    assert plan_of(document, None, force=False).target == "c"


def test_force_with_a_living_primary_says_whose_transaction_fails() -> None:
    lines = plan_of(cluster_of(node("a", 9), node("b", 9), primary="a"), None, force=True).lines
    assert lines[-1] == "--force: a transaction that an application has open by then, and does not end, fails."


def test_a_takeover_says_what_could_be_lost_and_who_has_more() -> None:
    document = cluster_of(dead("a"), node("b", 97, lag_ms=42_000), node("c", 98))
    assert plan_of(document, "b", force=True) == Plan(
        "b",
        (
            "a, the primary, does not answer (no answer within 2 s).",
            "b takes over when a does not renew its lease.",
            (
                "What a committed and b has not is lost to the cluster; it was last in step with it 42 s ago. "
                "a sets it aside when it returns: litereplica diverged."
            ),
            "c has 1 transaction that b has not: --to c?",
        ),
    )
    assert plan_of(document, None, force=True).target == "c"


@pytest.mark.parametrize(
    ("document", "to", "kind", "message"),
    [
        (
            cluster_of(dead("a"), node("b", 9)),
            None,
            Unavailable,
            "a, the primary, does not answer (no answer within 2 s): ask again, or use --force when it is gone",
        ),
        (
            cluster_of(node("a", 9), node("b", 9), primary="a"),
            "x",
            Refused,
            "no node 'x' in the cluster: there are a, b",
        ),
        (
            cluster_of(node("a", 9), node("b", 9), node("z", 9), primary="a"),
            "z",
            Refused,
            "z may not become primary: its configuration says node.candidate: false",
        ),
        (
            cluster_of(node("a", 9), node("b", 9), dead("c"), primary="a"),
            "c",
            Refused,
            "c does not answer (no answer within 2 s): choose another, or start it",
        ),
        (
            cluster_of(node("a", 9), dead("b"), asked="a", primary="a"),
            None,
            Refused,
            "there is no other candidate that answers: start one; 'litereplica status' lists the nodes",
        ),
    ],
)
def test_what_can_only_fail_is_not_begun(
    document: dict[str, Any], to: str | None, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as raised:
        plan_of(document, to, force=False)
    assert str(raised.value) == message
