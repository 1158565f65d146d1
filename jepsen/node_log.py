"""What a node's log says of a COMMIT that ended with an error there.

A replica logs each COMMIT whose outcome nobody knows, and each that was committed though it failed (docs/writes.md);
without such a line, by a daemon that lived and was a replica all the time, an error says that nothing was committed. A
primary promises nothing of that kind.
"""

import re
import threading
from dataclasses import dataclass
from typing import Final

from tests.support.nodes import Node

ASK_LIMIT_S: Final = 1.0
_ROLE: Final = re.compile(rb"^\S+ +info +role_changed role=(\w+)", re.MULTILINE)
_UNKNOWN: Final = re.compile(
    rb"^\S+ +\w+ +commit_(?:outcome_unknown|unknown|not_completed) .*?database=(\S+)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Mark:
    """How a node stood at an instant: ``end_bytes`` of its log, its role by it, its process id (0: none)."""

    end_bytes: int
    role: str
    pid: int


def says_refused(log: bytes, database: str) -> bool:
    """Whether what a replica has logged since, which is still one, leaves no doubt about a COMMIT that failed."""
    return not _ROLE.search(log) and database.encode() not in _UNKNOWN.findall(log)


class NodeLog:
    """Of one node, read as it grows. Any thread may ask."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._role = ""

    def mark(self) -> Mark:
        with self._lock:
            text = self._since(self._read_bytes)
            whole = text.rpartition(b"\n")[0]
            self._read_bytes += len(whole)
            for role in _ROLE.findall(whole):
                self._role = role.decode()
            process = self._node.process
            return Mark(self._read_bytes, self._role, process.pid if process is not None else 0)

    def refused(self, since: Mark, database: str) -> bool:
        """Whether an error at COMMIT, in a call begun at ``since``, says that it was not committed."""
        process = self._node.process
        if since.role != "replica" or process is None or process.pid != since.pid:
            return False
        # A daemon that is being killed answers nobody any more.
        code, status = self._node.get("/status", ASK_LIMIT_S)
        if code != 200 or status["role"] != "replica":
            return False
        return says_refused(self._since(since.end_bytes), database)

    def _since(self, offset: int) -> bytes:
        with self._node.log_file.open("rb") as log:
            log.seek(offset)
            return log.read()
