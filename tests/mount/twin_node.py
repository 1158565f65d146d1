"""The test's end of a replica with a twin (twin.py is the node's)."""

import sys
from pathlib import Path
from typing import Any, Final

from tests.roles.directed import DirectedNode
from tests.support.waiting import wait_until

PROGRAM: Final = Path(__file__).with_name("twin.py")


class TwinNode(DirectedNode):
    """A replica whose applications write, and whose primary is a twin that does as it is told."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name, "forward")

    def program(self) -> list[str]:
        self.control.unlink(missing_ok=True)
        return [sys.executable, str(PROGRAM), str(self.config), str(self.control)]

    def answer(self, how: str) -> None:
        """What becomes of transactions from now on (twin.ANSWERS)."""
        assert self.tell("answer", how=how) == {}

    def go(self, how: str = "commit") -> None:
        """What is held goes on, and ends so."""
        assert self.tell("go", how=how) == {}

    def arrive(self, database: str = "app.db") -> None:
        """A transaction of another node is received."""
        assert self.tell("arrive", database=database) == {}

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
