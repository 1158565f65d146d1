"""The test's end of a replica with a twin (twin.py is the node's), and one such node for the tests of a module."""

import contextlib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

from litereplica.store.stopped import verify_stopped
from tests.roles.directed import DirectedNode
from tests.support.nodes import Nodes
from tests.support.waiting import wait_until

PROGRAM: Final = Path(__file__).with_name("twin.py")


class TwinNode(DirectedNode):
    """A replica whose applications write, and whose primary is a twin that does as it is told.

    ``database`` is the test's own, and ``log`` what was logged since ``begin``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.database = "app.db"
        self._epoch = self._log_from = 0
        super().__init__(folder, name, "forward")

    def begin(self, database: str) -> None:
        """A test begins."""
        self.database = database
        self._log_from = len(super().log)

    def rest(self) -> None:
        """A test has ended well: a replica of a twin that commits, and was asked nothing."""
        self.tell("wrong", reason=None)
        self.go()
        self.seen()

    @property
    def log(self) -> str:
        return super().log[self._log_from :]

    def path(self, database: str | None = None) -> Path:
        return super().path(database or self.database)

    def position(self, database: str | None = None) -> str:
        return super().position(database or self.database)

    def wait_applied(self) -> None:
        """Return when readers see everything that is logged."""
        self.wait_for(self.database, self.position())

    def lead(self) -> None:
        """Become the primary, in an epoch of its own."""
        self._epoch += 1
        self.promote(self._epoch)

    def verify(self) -> dict[str, Any]:
        """Compare the database with its log; the result."""
        with urllib.request.urlopen(f"{self.url}/verify?db={self.database}", timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read().splitlines()[-1])
        assert found["type"] == "result", found
        return found

    def program(self) -> list[str]:
        self.control.unlink(missing_ok=True)
        return [sys.executable, str(PROGRAM), str(self.config), str(self.control)]

    def answer(self, how: str) -> None:
        """What becomes of transactions from now on (twin.ANSWERS)."""
        assert self.tell("answer", how=how) == {}

    def go(self, how: str = "commit") -> None:
        """What is held goes on, and ends so."""
        assert self.tell("go", how=how) == {}

    def arrive(self) -> None:
        """A transaction of another node is received."""
        assert self.tell("arrive", database=self.database) == {}

    def seen(self) -> list[list[Any]]:
        """What the twin was asked since the last time."""
        found: list[list[Any]] = self.tell("seen")["seen"]
        return found

    def wait_seen(self, what: str) -> list[Any]:
        """The first thing of this kind that the twin is asked from now on."""
        found: list[list[Any]] = []

        def asked() -> bool:
            found.extend(each for each in self.seen() if each[0] == what)
            return bool(found)

        wait_until(asked, f"the twin is asked to {what}")
        return found[0]


class Shared:
    """The node that there is, if any; a new one after a test that failed. Every test has a database of its own."""

    def __init__(self, failed: int) -> None:
        self._nodes: Nodes | None = None
        self._node: TwinNode | None = None
        self._failed = failed

    def get(self, failed: int) -> TwinNode:
        """``failed``: how many tests have failed so far."""
        if failed != self._failed:
            self._failed = failed
            self._take_down()
        if self._node is None:
            self._nodes = Nodes()
            self._node = self._nodes.add(TwinNode(self._nodes.folder / "b", "b"))
            self._node.start()
        return self._node

    def close(self, failed: int) -> None:
        """Stop it; nothing is left, and every database that it has and its log agree."""
        unsound = []
        with contextlib.ExitStack() as stack:
            stack.callback(self._take_down)
            if self._node is not None and failed == self._failed:
                names = [each["name"] for each in self._node.status()["databases"]]
                self._node.stop()
                unsound = [each for each in names if not verify_stopped(self._node.data, each, lambda *_: None).sound]
        assert not unsound, unsound

    def _take_down(self) -> None:
        nodes, self._nodes, self._node = self._nodes, None, None
        problems = nodes.tear_down() if nodes is not None else []
        assert not problems, problems
