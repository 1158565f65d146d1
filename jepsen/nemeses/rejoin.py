"""A node leaves in order, and returns with a data directory of some time ago."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Final

from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import BreakableMachine
from jepsen.nemeses.nemesis import NOBODY, OneOf, one_node

COPY_LIMIT_S: Final = 60.0
DIVERGED: Final = "diverged"
ASK_LIMIT_S: Final = 2.0


class Rejoin(OneOf):
    """Of a node that leaves.

    ``away``: it is gone until the end, and has what it had then. ``restored``: it goes on meanwhile, and at the end
    it gets back the directory that it had at the beginning, from a copy that was made while it was stopped.

    What it kept in diverged/ since stays, and a node that may have what nobody else has keeps its directory: whoever
    restores an old one in its place has lost that by himself.
    """

    name = "rejoin"
    KINDS: tuple[str, ...] = ("away", "restored")
    touches = frozenset({"processes"})

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self._node: BreakableMachine | None = None
        self._copy: Path | None = None

    def begin(self, cluster: Cluster, numbers: random.Random) -> str:
        kind = numbers.choice(self.kinds)
        self._node = node = one_node(cluster, numbers, numbers.choice(["primary", "replica"]))
        if node is None:
            return NOBODY
        node.terminate()
        if kind == "restored":
            self._copy = node.data.with_name("data-copy")
            _run("cp", "-a", "--", node.data, self._copy)
            node.start_again()
        return f"{kind} {node.name}"

    def end(self, cluster: Cluster) -> str:
        super().end(cluster)
        node, copy = self._node, self._copy
        self._node = self._copy = None
        if node is None:
            return NOBODY
        if copy is not None and not has_what_others_have(node):
            _run("rm", "-rf", "--", copy)
            node.start_again()
            return f"{node.name}, which may have what nobody else has: with what it has"
        if copy is not None:
            node.terminate()
            kept = node.data / DIVERGED
            if kept.exists():
                shutil.rmtree(copy / DIVERGED, ignore_errors=True)
                _run("mv", "--", kept, copy / DIVERGED)
            _run("rm", "-rf", "--", node.data)
            _run("mv", "--", copy, node.data)
        node.start_again()
        return node.name


def has_what_others_have(node: BreakableMachine) -> bool:
    """It follows a primary, and went back with all that this one does not have."""
    if not node.is_running:
        return False
    code, status = node.get("/status", ASK_LIMIT_S)
    return code == 200 and status["role"] == "replica" and node.get("/readyz", ASK_LIMIT_S)[0] == 200


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=COPY_LIMIT_S)
