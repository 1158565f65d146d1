"""Runs a node whose disk cannot make log segments durable as long as a certain file is there.

The file's text may name other files, by the end of their paths or of their folders', and what of them fails:
``[CALL:]END``, a line each; CALL is one of tests.store.named_calls, fdatasync unless said; of pread, one in three.
Usage, put before a node's own command: ``python -m tests.mount.failing_disk FILE python -m litereplica -c CONFIG run``.
"""

import random
import sys
from pathlib import Path

from litereplica.config import load_settings
from litereplica.errors import LitereplicaError
from litereplica.logs import configure_logs
from litereplica.node.main import run_node
from litereplica.store.store import Store
from tests.store.named_calls import NamedCalls


class FailingDisk(NamedCalls):
    """While ``fails`` exists, such a call answers as the kernel does when the disk has lost a write."""

    __slots__ = ("_fails", "_numbers")

    def __init__(self, fails: Path) -> None:
        super().__init__()
        self._fails = fails
        self._numbers = random.Random(1)
        self.refuses = self._is_named

    def _is_named(self, call: str, path: Path) -> bool:
        if not self._fails.exists() or (call == "pread" and self._numbers.random() >= 1 / 3):
            return False
        named = [line.rpartition(":") for line in self._fails.read_text(encoding="utf-8").split() or [".ltx"]]
        ends = [end for failing, _, end in named if (failing or "fdatasync") == call]
        return any(str(path).endswith(end) or str(path.parent).endswith(end) for end in ends)


def main(arguments: list[str]) -> int:
    disk = FailingDisk(Path(arguments[0]))
    settings = load_settings(Path(arguments[arguments.index("-c") + 1]), {})
    configure_logs(settings.log.format, settings.log.level)
    try:
        return run_node(settings, lambda root, _, node, compression: Store.open(root, disk, node, compression))
    except LitereplicaError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
