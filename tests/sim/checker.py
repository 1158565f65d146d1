"""What must hold at every instant, whatever happens to the nodes.

Every change of any log and every answer to a commit is told to the checker, in the order of true time, which no node
knows.
"""

from dataclasses import dataclass


class Violated(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One transaction in a log; its TXID is its place."""

    txid: int
    epoch: int
    value: int


class Checker:
    def __init__(self) -> None:
        self.acknowledged: list[Entry] = []
        self.logged = 0
        self.promotions = 0
        self.handoffs = 0
        self._granted, self._granted_to = 0, ""
        self._by_place: dict[tuple[int, int], int] = {}
        self._primaries: dict[int, str] = {}

    def promoted(self, node: str, epoch: int, *, candidate: bool) -> None:
        if not candidate:
            raise Violated(f"{node} is not a candidate and was promoted")
        # A node that was stopped in the middle may finish late, behind a fence that has closed by itself.
        if self._primaries.setdefault(epoch, node) != node:
            raise Violated(f"{node} and {self._primaries[epoch]} were both promoted with epoch {epoch}")
        self.promotions += 1

    def granted(self, node: str, epoch: int) -> None:
        """The lease's store has an epoch for a node."""
        if epoch <= self._granted and (epoch, node) != (self._granted, self._granted_to):
            raise Violated(f"{node} has the lease with epoch {epoch} after epoch {self._granted}")
        self._granted, self._granted_to = epoch, node

    def entered(self, node: str, entry: Entry) -> None:
        """An entry is in a log now."""
        self.logged += 1
        value = self._by_place.setdefault((entry.epoch, entry.txid), entry.value)
        if value != entry.value:
            raise Violated(f"{node} has another transaction {entry.txid} of epoch {entry.epoch} than was made")

    def answered(self, node: str, entry: Entry) -> None:
        """A commit was acknowledged to an application."""
        if self._primaries.get(entry.epoch) != node:
            raise Violated(f"{node} acknowledged a commit of epoch {entry.epoch}, which is not its own")
        if self.acknowledged and entry.epoch < self.acknowledged[-1].epoch:
            raise Violated(
                f"{node} acknowledged a commit of epoch {entry.epoch} after one of epoch {self.acknowledged[-1].epoch}"
            )
        self.acknowledged.append(entry)

    def handed_off(self, node: str, log: list[Entry], epoch: int) -> None:
        """A node was promoted that took an offered lease, of ``epoch``."""
        self.handoffs += 1
        have = set(log)
        lost = [each for each in self.acknowledged if each.epoch == epoch and each not in have]
        if lost:
            raise Violated(f"{node} took over by handoff without {lost[0]}, which was acknowledged")

    def nothing_lost(self, logs: list[list[Entry]], kept: list[list[Entry]]) -> None:
        have = {each for log in (*logs, *kept) for each in log}
        for each in self.acknowledged:
            if each not in have:
                raise Violated(f"{each} was acknowledged and is nowhere any more")
