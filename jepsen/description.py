"""What was run: stands at the head of a stored history and of a report."""

from dataclasses import dataclass
from typing import Literal

Replication = Literal["async", "sync"]


@dataclass(frozen=True, slots=True)
class Description:
    """The workload and how it was set up.

    ``replication``: async, the default: what a primary acknowledged and took with it is listed in ``diverged/``;
    sync: nothing acknowledged is ever lost. ``stale_reads``: reads are answered by replicas that did not wait, so they
    may be old. ``total``, ``accounts``, ``negative``: of the bank. ``mutation``: a bug that was planted in the nodes
    (jepsen/mutations).
    """

    workload: str
    nodes: tuple[str, ...] = ()
    nemeses: tuple[str, ...] = ()
    seed: int = 0
    started: str = ""
    version: str = ""
    replication: Replication = "async"
    stale_reads: bool = False
    forwards: bool = False
    total: int = 0
    accounts: tuple[str, ...] = ()
    negative: bool = False
    mutation: str = ""
