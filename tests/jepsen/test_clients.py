"""Clients as processes, on a plain folder instead of a mount: who is asked what, and how it goes on after a kill."""

import io
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepsen.clients import Clients, Pace, Process
from jepsen.description import Description
from jepsen.history import Call, pair
from jepsen.judge import judge
from jepsen.lines import Record, read
from jepsen.node_log import NodeLog, says_refused
from jepsen.observer import Observer
from jepsen.recorder import Recorder
from jepsen.session import Place
from jepsen.workloads import WORKLOADS
from tests.support.nodes import Node
from tests.support.waiting import wait_until

LIMIT_S = 20.0


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    options = {"workload": "set", "tag": "x", "seed": "1", "places": {"a": {"mount": str(tmp_path), "namespace": ""}}}
    made = Process(options)
    assert made.ask({"prepare": "a"}, LIMIT_S) == {"type": "ok", "value": None, "error": ""}
    yield made
    made.end()


def order(index: int, f: str, value: object = None) -> dict[str, object]:
    return {"index": index, "f": f, "value": value, "database": "x.db", "node": "a", "primary": "a"}


def test_a_client_does_what_it_is_told(process: Process) -> None:
    assert process.ask(order(1, "add", 5), LIMIT_S) == {"type": "ok", "value": 5, "error": ""}
    assert process.ask(order(2, "read"), LIMIT_S) == {"type": "ok", "value": [5], "error": ""}


def test_after_a_kill_another_process_goes_on(process: Process) -> None:
    assert process.strike()
    assert process.ask(order(1, "add", 5), LIMIT_S) is None
    assert process.struck
    assert not process.strike()
    assert process.ask(order(2, "add", 6), LIMIT_S) == {"type": "ok", "value": 6, "error": ""}
    assert not process.struck


def test_who_does_not_answer_in_time_is_given_up(process: Process) -> None:
    began = time.monotonic()
    assert process.ask(order(1, "add", 5), 0.0) is None
    assert time.monotonic() - began < LIMIT_S
    assert process.ended == "no answer within 0 s"


def test_who_ends_by_himself_is_said_to(process: Process) -> None:
    assert process.ask({"no": "order"}, LIMIT_S) is None
    assert process.ended == "the client ended with 1"


class Bench:
    """Clients of a workload round two nodes that do not run, whose mounts are plain folders with the same databases."""

    def __init__(self, folder: Path, workload: str) -> None:
        self.stream = io.StringIO()
        began = time.monotonic_ns()
        self.workload = WORKLOADS[workload]("x")
        self.recorder = Recorder(self.stream, lambda: time.monotonic_ns() - began, Description(workload))
        node = Node(folder / "a", "a")
        self.nodes = {"a": node, "b": node}
        places = {name: Place(node.mount, "") for name in self.nodes}
        self.observer = Observer(self.nodes, lambda: time.monotonic_ns() - began, self.recorder.observed)
        logs = {name: NodeLog(node) for name in self.nodes}
        self.clients = Clients(self.workload, places, self.recorder, self.observer, logs, seed="1", pace=Pace())

    def calls(self) -> tuple[Call, ...]:
        return pair(read(self.stream.getvalue().encode()).operations)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, "append")
    with made.observer, made.clients:
        made.clients.prepare("a")
        yield made


def test_all_clients_work_until_they_are_stopped(bench: Bench) -> None:
    bench.clients.start("1")
    wait_until(lambda: bench.recorder.count > 300, "calls are made")
    bench.clients.stop()
    before = bench.recorder.count
    bench.clients.finish(bench.workload.last(["a"]))
    calls = bench.calls()
    assert len({call.invocation.process for call in calls}) == 4
    assert {call.invocation.node for call in calls} == {"a", "b"}
    assert [call.ok for call in calls if call.index >= before] == [True]
    record = Record(tuple(read(bench.stream.getvalue().encode()).operations), Description("append"))
    assert judge(record, clock=time.monotonic).valid is True


def test_every_second_client_stays_where_its_last_call_for_the_primary_was_acknowledged(bench: Bench) -> None:
    bench.clients.start("1")
    wait_until(lambda: bench.recorder.count > 600, "calls are made")
    bench.clients.stop()
    moved: dict[object, int] = {}
    last: dict[object, Call] = {}
    for call in bench.calls():
        before = last.get(call.invocation.process)
        if before is not None:
            moved.setdefault(before.invocation.process, 0)
            moved[before.invocation.process] += before.ok and before.node != call.node
        last[call.invocation.process] = call
    # Nobody is primary here: who asks is sent to either node, by chance.
    assert sum(number == 0 for number in moved.values()) == 2
    assert sum(number > 10 for number in moved.values()) == 2


def have_gone_on(calls: tuple[Call, ...]) -> bool:
    ended = [call for call in calls if call.completion is not None and call.indeterminate]
    return len({call.invocation.process for call in calls}) == 4 + len(ended)


def test_who_goes_on_after_a_kill_has_a_new_number(bench: Bench) -> None:
    bench.clients.start("1")
    wait_until(lambda: bench.recorder.count > 50, "calls are made")
    numbers = random.Random(1)
    killed = {bench.clients.strike(numbers) for _ in range(3)}
    wait_until(lambda: sum(call.indeterminate for call in bench.calls()) >= 1, "a call has no answer")
    before = bench.recorder.count
    wait_until(lambda: bench.recorder.count > before + 100, "clients go on")
    wait_until(lambda: have_gone_on(bench.calls()), "whoever was killed in a call goes on, too")
    bench.clients.stop()
    calls = bench.calls()
    unanswered = [call for call in calls if call.indeterminate]
    assert {f"process {call.invocation.process}" for call in unanswered} <= killed
    assert all(call.completion is not None and call.completion.error == "the client was killed" for call in unanswered)
    assert len({call.invocation.process for call in calls}) == 4 + len(unanswered)


def test_a_client_that_hangs_is_given_up_and_said_to(bench: Bench) -> None:
    bench.clients.call_limit_s = 0.0
    bench.clients.finish(bench.workload.last(["a"])[:1])
    assert {call.completion.error for call in bench.calls() if call.completion is not None} == {"no answer within 0 s"}


# ------------------------------------------------------------------------------------------------ what a log says
@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        ("", True),
        ("2026-11-21T14:09:20.685Z info    commit_refused database=x.db reason=stale", True),
        ('2026-11-21T14:09:20.685Z warning commit_outcome_unknown database=x.db txid=01 reason="no answer"', False),
        ("2026-11-21T14:09:20.685Z warning commit_unknown database=x.db reason=why", False),
        ("2026-11-21T14:09:20.685Z warning commit_unknown database=y.db reason=why", True),
        ("2026-11-21T14:09:20.685Z error   commit_not_completed database=x.db position=1/2 reason=why", False),
        ("2026-11-21T14:09:20.685Z info    role_changed role=primary primary=a epoch=2 reason=why", False),
    ],
)
def test_what_a_log_says_of_a_commit_that_failed(lines: str, *, refused: bool) -> None:
    assert says_refused(f"{lines}\n".encode(), "x.db") is refused


def test_a_node_whose_daemon_does_not_answer_says_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path / "a", "a")
    line = "2026-11-21T14:09:20.685Z info    role_changed role=replica primary=b epoch=2 reason=why\n"
    node.log_file.write_text(line * 2 + "2026-11-21T14:09:20.6", encoding="utf-8")
    log = NodeLog(node)
    mark = log.mark()
    assert (mark.role, mark.pid) == ("replica", 0)
    assert mark.end_bytes == len(line) * 2 - 1
    assert not log.refused(mark, "x.db")
