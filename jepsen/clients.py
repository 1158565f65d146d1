"""Clients of a run: one process each, and a thread that gives it orders and records what is asked and answered.

Knows which client sits on which node, how long a call may take, and how one goes on after a call that nobody answered:
under a new number. Does not know workloads but for what they ask.
"""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from jepsen.checkers.answers import ENDED, HUNG
from jepsen.client import UNCLEAR
from jepsen.history import Type
from jepsen.node_log import NodeLog
from jepsen.observer import Observer
from jepsen.recorder import Recorder
from jepsen.session import Place
from jepsen.workloads.base import Order, Request, Workload
from tests.support.nodes import ROOT

CALL_LIMIT_S: Final = 40.0
"""SQLite's busy timeout and a node's for an outcome, both more than once, and a node that stands still meanwhile."""
PREPARE_LIMIT_S: Final = 60.0
RETRY_S: Final = 0.05
"""Between two of the last calls."""
ENDED_LIMIT_S: Final = 1.0
"""Between the end of what it says and its own end."""
KILL_LIMIT_S: Final = 10.0
"""A process that is killed ends when its mount has answered, or the mount is gone."""
FINAL_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Pace:
    """How many clients a node has, and how long one waits between two calls, on average.

    ``retry_s``: after an error; whoever is refused does not ask again at once.
    """

    of_a_node: int = 2
    pause_s: float = 0.008
    retry_s: float = 0.05


class Process:
    """The process of a client; another takes its place when it is killed. ``options``: of client.py."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = json.dumps(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self.struck = False
        self.ended = ""

    def begin(self) -> None:
        """Have it there when it is asked."""
        self._running()

    def ask(self, order: dict[str, Any], limit_s: float) -> dict[str, Any] | None:
        """The answer; None when it ended, or did not answer in time (it has ended then): ``ended`` says how."""
        process = self._running()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        line = self._line(process, time.monotonic() + limit_s)
        if not line:
            self.ended = self._why(process, limit_s)
            self.end()
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def _why(self, process: "subprocess.Popen[bytes]", limit_s: float) -> str:
        if self.struck:
            return "the client was killed"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(ENDED_LIMIT_S)
            return f"{ENDED} {signal.Signals(-code).name if code < 0 else code}"
        return f"{HUNG} {limit_s:g} s"

    def strike(self) -> bool:
        """Kill -9, wherever it is; whether there was a process."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        self.struck = True
        process.kill()
        return True

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # In a mount that does not answer it ends later, by itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_LIMIT_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._rest, self.struck = b"", False
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jepsen.client", self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
        return self._process

    def _line(self, process: "subprocess.Popen[bytes]", until_s: float) -> bytes:
        """The next line that it says; nothing when it says none."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, until_s - time.monotonic()))
            piece = os.read(descriptor, 1 << 20) if ready else b""
            if not piece:
                return b""
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


class Clients:
    """Some clients on every node. Use it as a context; they work between ``start`` and ``stop``."""

    def __init__(
        self,
        workload: Workload,
        places: Mapping[str, Place],
        recorder: Recorder,
        observer: Observer,
        logs: Mapping[str, NodeLog],
        *,
        seed: str,
        pace: Pace,
        call_limit_s: float = CALL_LIMIT_S,
    ) -> None:
        self.call_limit_s = call_limit_s
        self._workload = workload
        self._recorder = recorder
        self._observer = observer
        self._logs = logs
        self._nodes = list(places)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._next_process = 0
        self._failures: list[BaseException] = []
        self._pace = pace
        self._clients = [
            _Client(self, self._options(places, f"{seed} {at}"), self._home(at), stays=at % 2 == 1)
            for at in range(pace.of_a_node * len(places))
        ]
        self._threads: list[threading.Thread] = []

    def _options(self, places: Mapping[str, Place], seed: str) -> dict[str, Any]:
        where = {name: {"mount": str(each.mount), "namespace": each.namespace} for name, each in places.items()}
        return {"workload": self._workload.name, "tag": self._workload.tag, "seed": seed, "places": where}

    def _home(self, at: int) -> str:
        return self._nodes[at % len(self._nodes)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for each in self._clients:
            each.process.strike()
        for thread in self._threads:
            thread.join()
        for each in self._clients:
            each.process.end()

    # -- phases ----------------------------------------------------------------------------------------------------

    def prepare(self, node: str) -> None:
        """Make the databases, and have every client there. AssertionError when it cannot be done."""
        for each in self._clients:
            each.process.begin()
        answer = self._clients[0].process.ask({"prepare": node}, PREPARE_LIMIT_S)
        assert answer is not None, f"the databases could not be made on {node}"

    def start(self, seed: str) -> None:
        for number, each in enumerate(self._clients):
            numbers = random.Random(f"{seed} client {number}")  # noqa: S311  chance, no secret
            thread = threading.Thread(target=self._work, args=(each, numbers), daemon=True)
            self._threads.append(thread)
            thread.start()

    def let_end(self) -> None:
        """Nobody begins another call."""
        self._stopped.set()

    def stop(self) -> None:
        """Return when every open call has ended, or its limit is over. Raises what went wrong in a client's thread."""
        self.let_end()
        for each in self._threads:
            each.join()
        if self._failures:
            raise self._failures[0]

    def finish(self, requests: Sequence[Request]) -> None:
        """Make these calls one after the other, each until it succeeds, some times at most."""
        numbers = random.Random(0)  # noqa: S311  chance, no secret
        for request in requests:
            for _ in range(FINAL_TRIES):
                if self._clients[0].call(request, numbers):
                    break
                time.sleep(RETRY_S)

    @property
    def calling(self) -> bool:
        """Whether one of them waits for an answer."""
        return any(each.calling for each in self._clients)

    def strike(self, numbers: random.Random) -> str:
        """Kill -9 one of them, in a call if there is one; who, empty if nobody."""
        running = [each for each in self._clients if each.process_number >= 0]
        calling = [each for each in running if each.calling]
        chosen = numbers.choice(calling or running) if running else None
        number = chosen.process_number if chosen is not None else -1
        return f"process {number}" if chosen is not None and chosen.process.strike() else ""

    # -- what their threads do -------------------------------------------------------------------------------------

    def _work(self, client: "_Client", numbers: random.Random) -> None:
        try:
            while not self._stopped.is_set():
                with self._lock:
                    request = self._workload.ask(numbers)
                done = client.call(request, numbers)
                self._stopped.wait(numbers.expovariate(1 / (self._pace.pause_s if done else self._pace.retry_s)))
        except BaseException as error:  # noqa: BLE001  said by whoever joins the thread
            self._failures.append(error)

    def new_process(self) -> int:
        with self._lock:
            self._next_process += 1
            return self._next_process - 1

    def place(self, request: Request, home: str, numbers: random.Random) -> tuple[str, str]:
        """(node, primary) of a call; when nobody says that he is primary somebody is asked all the same."""
        primary = self._observer.primary or numbers.choice(self._nodes)
        if request.node:
            return request.node, primary
        return {"primary": primary, "home": home, "any": numbers.choice(self._nodes)}[request.where], primary

    def begun(self, process: int, request: Request, node: str) -> int:
        return self._recorder.note(process, "invoke", request.f, request.value, node)

    def ended(self, process: int, request: Request, node: str, type_: Type, value: object, error: str) -> None:
        self._recorder.note(process, type_, request.f, value, node, error)
        if type_ == "ok":
            with self._lock:
                self._workload.hear(request, value)

    def log(self, node: str) -> NodeLog:
        return self._logs[node]


class _Client:
    """One client: its process, and the number by which the history knows it.

    ``stays``: what is for the primary it asks of the node that acknowledged such a call last, until one fails there, as
    a program does that keeps its connections; the others go to whoever is said to be primary. Where there are two
    primaries both have clients.
    """

    def __init__(self, clients: Clients, options: dict[str, Any], home: str, *, stays: bool) -> None:
        self._clients = clients
        self._home = home
        self._stays = stays
        self._acknowledged_by = ""
        self.process = Process(options)
        self.process_number = -1
        self.calling = False

    def call(self, request: Request, numbers: random.Random) -> bool:
        """Make a call, and record it; whether it succeeded."""
        if self.process_number < 0:
            self.process_number = self._clients.new_process()
        node, primary = self._clients.place(request, self._home, numbers)
        is_primarys = request.where == "primary" and not request.node
        if is_primarys and self._stays:
            node = self._acknowledged_by or node
        log = self._clients.log(node)
        mark = log.mark()
        index = self._clients.begun(self.process_number, request, node)
        order = Order(index, request.f, request.value, request.database, node, primary, request.how)
        self.calling = True
        try:
            answer = self.process.ask(asdict(order), self._clients.call_limit_s)
        finally:
            self.calling = False
        if answer is None:
            answer = {"type": "info", "value": None, "error": self.process.ended}
        elif answer["type"] == UNCLEAR:
            answer["type"] = "fail" if log.refused(mark, request.database) else "info"
        type_: Type = answer["type"]
        if is_primarys:
            self._acknowledged_by = node if type_ == "ok" else ""
        value = answer["value"] if type_ == "ok" else request.value
        number = self.process_number
        if type_ == "info":
            self.process_number = -1
        self._clients.ended(number, request, answer.get("node", node), type_, value, answer["error"])
        return type_ == "ok"
