"""A primary and its replicas, with lines between them that can be made bad, and applications that write and watch.

Knows nodes and SQLite sessions (tests.support) and adds what a cluster test needs. Does not know litereplica's code.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from tests.cluster.line import Line
from tests.support.mounts import abort, mounts_below
from tests.support.nodes import Node, Nodes
from tests.support.waiting import wait_until

APPLICATION: Final = Path(__file__).with_name("application.py")
CAUGHT_UP_S: Final = 60.0
"""Generous: this machine has two cores, and they are shared."""
END_S: Final = 30.0
TIMEOUT_S: Final = 3.0
REPLICATION: Final = {"heartbeat": "500ms", "timeout": f"{TIMEOUT_S:g}s"}
# What a node writes when it has met a bug of its own.
SURPRISES: Final = ("Traceback", "internal error", "request_failed", "AssertionError", "misunderstood")


class Group(Nodes):
    """A primary and replicas, each behind a line of its own; nothing runs until ``start``."""

    def __init__(self, replicas: int = 2, **retention: str) -> None:
        """``retention``: age and size, of every node."""
        super().__init__()
        self._lines = contextlib.ExitStack()
        self._sections: dict[str, Any] = {"replication": REPLICATION}
        self._retention = retention
        self.primary_node = self.make_primary("primary", **self._sections)
        self._retain(self.primary_node)
        self.replicas: list[Node] = []
        self.lines: list[Line] = []
        for _ in range(replicas):
            self.join()

    def _retain(self, node: Node) -> None:
        document = json.loads(node.config.read_text())
        document["data"]["retention"] = self._retention
        node.config.write_text(json.dumps(document))

    def join(self) -> Node:
        """One more replica; not started."""
        line = self._lines.enter_context(Line(self.primary_node.replication_port))
        replica = self.make_replica(
            self.primary_node, f"replica{len(self.replicas) + 1}", port=line.port, **self._sections
        )
        self._retain(replica)
        self.replicas.append(replica)
        self.lines.append(line)
        return replica

    def start(self) -> Self:
        for each in self.all:
            each.start(wait=False)
        for each in self.all:
            each.wait_ready()
        return self

    @property
    def all(self) -> list[Node]:
        return [self.primary_node, *self.replicas]

    def path(self, database: str = "app.db") -> Path:
        """A database in the primary's mount."""
        return self.primary_node.path(database)

    def abort(self) -> None:
        """End every request to the mounts, so that nobody hangs in one."""
        for _, minor in mounts_below(self.folder):
            abort(minor)

    def surprises(self) -> list[str]:
        """What the nodes met that is a bug of theirs."""
        found = []
        for node in self.all:
            words = node.log
            for each in SURPRISES:
                if each in words:
                    at = words.index(each)
                    found.append(f"{each} at {node.name}: {words[max(0, at - 3000) : at + 3000]}")
        return found

    def tear_down(self) -> list[str]:
        self._lines.close()
        for node in self.all:
            with contextlib.suppress(AssertionError):
                node.signal(signal.SIGCONT)
        return super().tear_down()


# ------------------------------------------------------------------------------------------------------------- nodes
def kill(node: Node) -> None:
    """Kill -9, and wait until its applier has followed it."""
    children = node.children()
    node.kill()
    wait_until(lambda: not any(psutil.pid_exists(each) for each in children), f"the applier of {node.name} ends")


def kill_applier(node: Node) -> None:
    """Kill -9 the applier, if there is one just now."""
    with contextlib.suppress(AssertionError, ProcessLookupError):
        os.kill(node.applier(), signal.SIGKILL)


def forget_data(node: Node) -> None:
    """Remove the data directory of a node that is down."""
    subprocess.run(["rm", "-rf", "--", node.data], check=True, timeout=END_S)


def cpu_s(node: Node) -> float:
    """Processor time that the node and its applier have used so far."""
    total = 0.0
    for pid in (node.pid, *node.children()):
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total


def visible(node: Node) -> dict[str, str]:
    """TXID/checksum by database, with a remark when readers do not see it yet."""
    return {
        each["name"]: f"{each['txid']}/{each['checksum']}"
        + ("" if each["applied"] == each["txid"] else f" applied {each['applied']}")
        for each in node.status()["databases"]
    }


# ------------------------------------------------------------------------------------------------------ applications
class Writer:
    """A writer in a process of its own; ``acknowledged`` is the last number whose COMMIT it has reported."""

    def __init__(
        self,
        path: Path,
        name: str = "w",
        *,
        count: int = 1 << 40,
        seconds: float = 90,
        size: int = 100,
        pause_s: float = 0.0,
    ) -> None:
        """``count`` transactions of one row with ``size`` random bytes, for ``seconds`` at most."""
        self.name = name
        self.acknowledged = 0
        self.stopped_by = ""
        self._process = subprocess.Popen(
            [sys.executable, APPLICATION, "write", path, name, str(count), str(seconds), str(size), str(pause_s)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self.acknowledged = int(line)
            else:
                self.stopped_by = line.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def await_number(self, number: int, limit_s: float = CAUGHT_UP_S) -> None:
        wait_until(lambda: self.acknowledged >= number, f"writer {self.name} reaches {number}", limit_s)

    def join(self, limit_s: float = 100.0) -> int:
        """Wait for its end, by itself or by an error; its last number."""
        assert self._process.wait(limit_s) == 0
        self._reader.join(END_S)
        return self.acknowledged

    def finish(self, limit_s: float = 100.0) -> int:
        """The same; it must not have met an error."""
        self.join(limit_s)
        assert not self.stopped_by, self.stopped_by
        return self.acknowledged

    def end(self) -> int:
        """End it after the transaction at hand; its last number."""
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)
        self._reader.join(END_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self.acknowledged


@contextlib.contextmanager
def writers(path: Path, how_many: int, **options: Any) -> Iterator[list[Writer]]:
    """Writers at work on one database; ended at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Writer(path, f"w{number}", **options)) for number in range(how_many)]


class Watcher:
    """A reader in a process of its own that must never see time go backwards."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, APPLICATION, "watch", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate(timeout=END_S)

    def finish(self) -> dict[str, Any]:
        """{"seen", "reads", "errors", "backwards"}; nothing backwards, or the test fails."""
        output, _ = self._process.communicate("\n", timeout=END_S)
        found: dict[str, Any] = json.loads(output)
        assert not found["backwards"], found
        return found


def prepare(path: Path, page_size: int = 4096) -> None:
    """A WAL database with the tables that writers and watchers use; its directory is made."""
    subprocess.run(
        [sys.executable, APPLICATION, "prepare", path, str(page_size)], check=True, timeout=END_S, capture_output=True
    )
