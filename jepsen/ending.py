"""What was found when a run was over: the input of the checkers that look at nodes and not at answers.

Only values. The runner fills them in, from the nodes' files, their commands and their logs; lines.py keeps them beside
the history, so that a stored run can be judged again without any node.

A call is named by the index of its invocation. A workload whose lost writes shall be accounted for writes that index
into its rows, so that the rows of the databases tell which calls happened.
"""

from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["primary", "replica", "none"]
PUT_ASIDE_S: Final = 3.0
"""From the instant at which an entry of ``diverged/`` is made, or at which a node that was killed then has gone back
after all, until readers of the node see the cluster's history."""


@dataclass(frozen=True, slots=True)
class DatabaseEnd:
    """One database of one node, its WAL folded in, when nobody wrote any more.

    ``txid`` and ``checksum`` (16 hex digits): the position that the node gives. ``computed``: the rolling checksum of
    the bytes that were found, by other code than the node's. ``digest``: of all bytes, any cryptographic hash.
    ``integrity``: the lines that ``PRAGMA integrity_check`` answered.
    """

    name: str
    txid: int
    checksum: str
    computed: str
    digest: str
    size_bytes: int
    integrity: tuple[str, ...] = ("ok",)


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry of ``diverged/``: ``database`` after ``base_txid`` until ``end_txid`` as that node had it.

    ``calls``: those whose rows are in the exported copy. ``time_ns``: when it was kept, on the clock of the history.
    ``gone_ns``: when the node had gone back, if it said so later: one that is killed in between still has it all.
    """

    id: str
    database: str
    base_txid: int
    end_txid: int
    time_ns: int
    calls: tuple[int, ...] = ()
    gone_ns: int = 0

    @property
    def shown_until_ns(self) -> int:
        """From then on readers of the node see none of it."""
        return max(self.time_ns, self.gone_ns) + round(PUT_ASIDE_S * 1e9)


@dataclass(frozen=True, slots=True)
class NodeEnd:
    """``problem``: why the node could not be looked at, empty when it could: hung, dead, does not answer."""

    node: str
    databases: tuple[DatabaseEnd, ...] = ()
    diverged: tuple[Kept, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RoleChange:
    """A node says, in its log, that it has another role from this instant on; ``epoch``: of the lease it goes by."""

    time_ns: int
    node: str
    role: Role
    epoch: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the log of a node: ``level`` debug, info, warning, error or critical; ``text`` all of it."""

    time_ns: int
    node: str
    level: str
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class Ending:
    """``present``: the calls whose rows are in the cluster; None when the workload does not write them."""

    nodes: tuple[NodeEnd, ...] = ()
    present: tuple[int, ...] | None = None
    roles: tuple[RoleChange, ...] = ()
    log: tuple[LogLine, ...] = ()

    @property
    def kept(self) -> frozenset[int]:
        """Calls that only ``diverged/`` has: of the cluster's history they are no part."""
        found = {call for node in self.nodes for entry in node.diverged for call in entry.calls}
        return frozenset(found.difference(self.present or ()))
