"""Workloads by name: one file each."""

from typing import Final

from jepsen.workloads.anywhere import Anywhere
from jepsen.workloads.append import Append
from jepsen.workloads.bank import Bank
from jepsen.workloads.base import Workload
from jepsen.workloads.counter import Counter
from jepsen.workloads.ddl import Ddl
from jepsen.workloads.journal import Journal
from jepsen.workloads.monotonic import Monotonic
from jepsen.workloads.multi import Multi
from jepsen.workloads.own_writes import OwnWrites
from jepsen.workloads.register import Register
from jepsen.workloads.sets import Set

WORKLOADS: Final[dict[str, type[Workload]]] = {
    each.name: each
    for each in (Append, Register, Set, Bank, Counter, Monotonic, OwnWrites, Ddl, Multi, Journal, Anywhere)
}
